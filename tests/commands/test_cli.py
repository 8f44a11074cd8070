"""The command line as a whole: help, exit codes, what errors look like."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from landmark_batch import __version__
from landmark_batch.cli import COMMANDS, cli
from landmark_batch.commands import doctor, logs
from landmark_batch.errors import GroupError, RenderInterrupted
from tests.commands.conftest import Run

ROOT = Path(__file__).resolve().parent.parent.parent


def test_help_lists_every_command_and_starts_quickly() -> None:
    """It takes 0.2 s on a machine at rest, because nothing that takes long to import is imported for it."""
    words = [sys.executable, "-X", "importtime", "-m", "landmark_batch.cli", "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "landmark_batch.errors" in imported
    assert not {"torch", "numpy", "zarr", "dask", "distributed", "pydantic", "rich"} & imported
    for name, text in COMMANDS.items():
        assert name in done.stdout
        assert text in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, run: Run) -> None:
    outcome = run(name, "--help")
    assert outcome.code == 0
    assert f"landmark-batch {name}" in outcome.out


def test_without_a_command_it_helps(run: Run) -> None:
    assert "Commands:" in run().out
    assert run("--version").out == f"landmark-batch, version {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rendr"], "no command 'rendr'. Did you mean render?"),
        (["xyzzy"], "Commands: doctor"),
        (["--frobnicate"], "--frobnicate"),
        (["render", "a.toml", "--frmes", "0-3"], "no option --frmes. Did you mean --frames?"),
        (["render", "a.toml", "--render_batchsize", "3"], "Did you mean --render_batch_size?"),
        (["render", "a.toml", "b.toml"], "b.toml"),
        (["render", "--width", "wide"], "wide"),
        (["render"], "no job"),
        (["export", "film", "a.zarr"], "film"),
        (["cameras", "orbit"], "--output"),
        (["evaluate", "a.zarr"], "--dataset"),
    ],
)
def test_wrong_words_are_bad_input(words: list[str], message: str, run: Run) -> None:
    outcome = run(*words)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.startswith("landmark-batch")
    assert outcome.out == ""


def test_underscores_are_taken_for_hyphens(run: Run) -> None:
    outcome = run("render", "none.toml", "--tensor_parallel", "2", "--no_dashboard")
    assert "none.toml: no such job file" in outcome.err


def _raising(error: BaseException) -> click.Command:
    @click.command("doctor")
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ZeroDivisionError("division by zero"), 1, "unexpected ZeroDivisionError at command: division by zero"),
        (GroupError("no worker left", remedy="start it again"), 3, "landmark-batch: no worker left\n  start it again"),
        (RenderInterrupted("stopped", remedy="to go on: x"), 130, "landmark-batch: stopped\n  to go on: x"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.Abort(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_errors_become_exit_codes(error: BaseException, code: int, message: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "command", _raising(error))
    outcome = run("doctor")
    assert outcome.code == code
    assert message in outcome.err


def test_our_fault_shows_its_traceback_with_debug_wherever_that_stands(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "command", _raising(ZeroDivisionError("division by zero")))
    assert "run it again with --debug" in run("doctor").err
    for words in (["--debug", "doctor"], ["doctor", "--debug"]):
        outcome = run(*words)
        assert outcome.code == 1
        assert "Traceback (most recent call last)" in outcome.err
        assert "raise error" in outcome.err


def test_our_fault_is_kept_in_the_log_of_the_job(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = tmp_path / "city.log"
    log.write_text("earlier line\n")

    @click.command("doctor")
    def command() -> None:
        logs.belongs_to(log)
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(doctor, "command", command)
    assert f"the traceback is in {log}" in run("doctor").err
    assert log.read_text().startswith("earlier line\n")
    assert "ZeroDivisionError: division by zero" in log.read_text()
    log.unlink()
    assert "run it again with --debug" in run("doctor").err
    assert not log.exists()


def test_a_reader_that_goes_away_is_no_fault() -> None:
    program = "from landmark_batch.cli import cli; cli.main(['cameras', 'survey', '--help'] , prog_name='landmark-batch')"
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "{program}" | true; exit ${{PIPESTATUS[0]}}'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_commands_are_groups_or_commands_of_their_name() -> None:
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert command.name == name
    assert cli.get_command(click.Context(cli), "none") is None

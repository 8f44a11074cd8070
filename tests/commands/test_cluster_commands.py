"""scheduler and worker: bad input ends with the reason, in one message, before anything listens or joins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from landmark_batch.commands.tls_options import tls_words
from landmark_batch.workflows import host_scheduler
from landmark_batch.workflows.host_scheduler import SchedulerOptions, SchedulerUp
from tests.commands.conftest import Run
from tests.ports import free_port


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["worker"], "no scheduler is named"),
        (["worker", "head", "--scheduler-file", "f.json"], "two schedulers are named"),
        (["worker", "--scheduler-file", "none.json", "--patience", "0"], "none.json: No such file"),
        (["worker", "--scheduler-file", "text.json"], "text.json is no scheduler file"),
        (["worker", "http://head:1"], "'http://head:1' is no scheduler's address"),
        (["worker", "tls://head:1"], "no credentials are given"),
        (["worker", "head", "--gpus", "none"], "--gpus 'none'"),
        (["worker", "head", "--gpus", "0,0"], "distinct GPU numbers"),
        (["worker", "head", "--device", "cpu", "--gpus", "1"], "contradict"),
        (["worker", "head", "--workers", "0"], "--workers"),
        (["worker", "head", "--device", "cpu", "--log", "none/worker.log"], "none/worker.log: cannot write"),
        (["worker", "head", "--tls-cert", "cert.pem"], "--tls-ca-file, --tls-key missing"),
        (["scheduler", "--tls-ca-file", "a", "--tls-cert", "b", "--tls-key", "c"], "a: No such file"),
        (["scheduler", "--port", "99999"], "--port"),
    ],
)
def test_bad_input(words: list[str], message: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("[]")
    outcome = run(*words)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.out == ""


def test_a_job_is_not_sent_where_it_cannot_be_read(park: Path, run: Run) -> None:
    """Before anything is connected to."""
    for address, message in (("tls://127.0.0.1:1", "no credentials are given"), ("http://head", "is no scheduler's address")):
        outcome = run("render", "park.toml", "--scheduler", address)
        assert outcome.code == 2
        assert message in outcome.err


def test_tls_options_as_a_shell_takes_them() -> None:
    flags = {"tls_ca_file": Path("ca.pem"), "tls_cert": Path("my cert.pem"), "tls_key": Path("key.pem")}
    assert tls_words(flags) == " --tls-ca-file ca.pem --tls-cert 'my cert.pem' --tls-key key.pem"
    assert tls_words(dict.fromkeys(flags)) == ""


def test_a_worker_without_scheduler_gives_up(run: Run, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "scheduler.json").write_text(json.dumps({"address": f"tcp://127.0.0.1:{port}"}))
    outcome = run("worker", "--scheduler-file", "scheduler.json", "--device", "cpu", "--patience", "0.3")
    assert outcome.code == 1
    assert f"no scheduler answers at tcp://127.0.0.1:{port}: waiting up to 0 s" in outcome.out
    assert "start `landmark-batch scheduler` there" in outcome.err


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_what_a_scheduler_says(host: str, warned: bool, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving loopback without TLS warns; the dashboard stays on loopback, with the line that brings it home."""
    given: list[SchedulerOptions] = []

    def serve(options: SchedulerOptions, up: object) -> None:
        given.append(options)
        assert callable(up)
        up(SchedulerUp(f"tcp://{host}:8786", "http://127.0.0.1:8787/status"))

    monkeypatch.setattr(host_scheduler, "serve_scheduler", serve)
    outcome = run("scheduler", "--host", host)
    assert outcome.code == 0
    assert ("can run code as this user" in outcome.err) is warned
    assert given[0].dashboard_host == "127.0.0.1"
    assert "ssh -L 8787:127.0.0.1:8787 " in outcome.out
    assert f"landmark-batch worker tcp://{host}:8786" in outcome.out
    assert ("on every worker host" in outcome.out) is warned

"""Ctrl-C: the first asks, the second stops at once, the old handlers come back."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

from landmark_batch.commands.interrupts import Interrupts
from landmark_batch.errors import RenderInterrupted
from tests.commands.conftest import Run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_asks_and_the_second_stops(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with Interrupts("landmark-batch render city.toml") as interrupts:
        os.kill(os.getpid(), number)
        assert interrupts.stop.wait(1)
        said = capsys.readouterr().err
        assert "stopping after the chunks in hand" in said
        assert "landmark-batch render city.toml" in said
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            threading.Event().wait(1)
    assert signal.getsignal(number) is before


def test_after_the_render_the_first_stops_at_once() -> None:
    with Interrupts("x") as interrupts:
        interrupts.graceful = False
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(1)
        assert not interrupts.stop.is_set()


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    handlers = []

    def work() -> None:
        with Interrupts("x"):
            handlers.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [before]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_bench_that_is_ended_leaves_no_folder(number: signal.Signals, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []

    def ended(folder: Path, *_: object, **__: object) -> None:
        folders.append(folder)
        assert folder.is_dir()
        try:
            os.kill(os.getpid(), number)
            threading.Event().wait(60)
        except KeyboardInterrupt:
            raise RenderInterrupted("stopped", remedy="the same command goes on with the rest") from None

    monkeypatch.setattr("landmark_batch.workflows.bench.run_bench", ended)
    monkeypatch.setattr("landmark_batch.commands.bench.warm_workers", lambda _: nullcontext())
    before = signal.getsignal(number)
    outcome = run("bench", "--part", "render")
    assert (outcome.code, outcome.text.strip()) == (130, "landmark-batch: interrupted")
    assert signal.getsignal(number) is before
    assert len(folders) == 1 and not folders[0].exists()

"""Real rank processes for tests: each runs functions of `tests.parallel.tasks` on demand, and tells what came of them."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

PATIENCE = 120.0  # seconds for an answer; far above what any takes


@dataclass(frozen=True)
class Answer:
    """value: what the function returned; or error: the name of what it raised, and text: with its traceback."""

    value: Any = None
    error: str = ""
    text: str = ""

    def get(self) -> Any:
        assert not self.error, self.text
        return self.value


class Ranks:
    """`size` processes. A process that ends is an error of whoever waits for it."""

    def __init__(self, size: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.parallel.tasks"])
        self.pipes: list[Connection] = []
        self.processes = []
        for _ in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def send(self, rank: int, function: Callable[..., Any], *arguments: Any) -> None:
        self.pipes[rank].send((function, arguments))

    def receive(self, rank: int, patience: float = PATIENCE) -> Answer:
        assert self.pipes[rank].poll(patience), f"rank {rank} did not answer in {patience} s"
        answer: Answer = self.pipes[rank].recv()
        return answer

    def call(self, rank: int, function: Callable[..., Any], *arguments: Any) -> Any:
        self.send(rank, function, *arguments)
        return self.receive(rank).get()

    def all(self, ranks: Sequence[int], function: Callable[..., Any], *arguments: Any) -> list[Answer]:
        """function(rank, *arguments) on all of them at once."""
        for rank in ranks:
            self.send(rank, function, rank, *arguments)
        return [self.receive(rank) for rank in ranks]

    def together(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Answer]:
        """function(*arguments[rank]) on all of them at once. A rank that fails ends then, as one of a job does, so that no other waits
        for it for long.
        """
        for rank, own in enumerate(arguments):
            self.send(rank, function, *own)
        answers: dict[int, Answer] = {}
        while len(answers) < len(arguments):
            left = [rank for rank in range(len(arguments)) if rank not in answers]
            ready = wait([self.pipes[rank] for rank in left], PATIENCE)
            assert ready, f"ranks {left} did not answer in {PATIENCE} s; the others: {answers}"
            for rank in left:
                if self.pipes[rank] in ready:
                    answers[rank] = self.pipes[rank].recv()
                    if answers[rank].error:
                        self.processes[rank].kill()
        return [answers[rank] for rank in range(len(arguments))]

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()


def _serve(pipe: Connection) -> None:
    while True:
        try:
            function, arguments = pipe.recv()
        except (EOFError, ConnectionError):
            return
        try:
            answer = Answer(function(*arguments))
        except Exception as error:  # noqa: BLE001
            answer = Answer(error=type(error).__name__, text=f"{error}\n{traceback.format_exc()}")
        with suppress(ConnectionError):  # whoever asked has gone
            pipe.send(answer)

"""Processes of render groups killed, stopped and cut off while jobs go on: every frame is there, and not one byte differs.

The short form stands here unmarked; the long one is marked `chaos` and says what it measured.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from landmark_batch.cameras.formats import flight_of_job
from landmark_batch.chunks import split_frames
from landmark_batch.events import ChunkStarted, JobStarted
from landmark_batch.job import RenderJob
from tests.workflows import faults
from tests.workflows.conftest import pixels
from tests.workflows.fleet import Fleet, command
from tests.workflows.group_runs import FRAMES, Run, calm_pixels, check, group_jobs, ranks_of, shared_fleet, write_job
from tests.workflows.processes import gone, until

SETTLED = 1.0  # seconds after a kill in which words of the old group may still come
MakeJob = Callable[..., RenderJob]
Say = Callable[[str], None]


@pytest.fixture
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    yield from shared_fleet(request.config, tmp_path_factory)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Words for whoever looks on."""

    def write(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{text}\n")

    return write


@pytest.fixture
def group_job(make_job: MakeJob, tmp_path: Path) -> MakeJob:
    return group_jobs(make_job, tmp_path)


@pytest.fixture
def calm(request: pytest.FixtureRequest, fleet: Fleet, group_job: MakeJob) -> dict[str, bytes]:
    return calm_pixels(request.config, fleet, group_job)


class Strike:
    """One fault in the group that began a chunk last, and what followed. seconds: until its ranks began a chunk again."""

    def __init__(self, fleet: Fleet, run: Run, role: str, dice: random.Random, allow: Callable[[int], None]) -> None:
        ranks = ranks_of(run.begun()[-1].worker)
        self.victim = {"leader": ranks[0], "follower": dice.choice(ranks[1:]), "nanny": dice.choice(ranks)}[role]
        address = fleet.rank(self.victim)["address"]
        pid = fleet.nanny(self.victim) if role == "nanny" else fleet.pid(self.victim)
        time.sleep(dice.uniform(0.0, 1.0))
        self.at = time.time()
        os.kill(pid, signal.SIGKILL)
        allow(FRAMES - 20)  # the last ones, more than another group takes in hand, wait for the group that is formed again
        until(lambda: self._is_back(fleet, address), 200, f"{self.victim} is in a group again")
        allow(faults.ALL)
        self.again = run.until(self._again, 180, f"{self.victim} renders again")
        self.seconds = self.again.at - self.at
        self.by_others = [e for e in run.done() if self.at < e.at < self.again.at + 0.5 and self.victim not in ranks_of(e.worker)]

    def _is_back(self, fleet: Fleet, before: str) -> bool:
        found = fleet.workers().get(self.victim, {"address": before})
        return found["address"] != before and found["metrics"].get("state") in ("rendering", "idle", "serving")

    def _again(self, run: Run) -> ChunkStarted | None:
        return next((e for e in run.begun() if e.at > self.at + SETTLED and self.victim in ranks_of(e.worker)), None)


def strike_jobs(
    fleet: Fleet,
    group_job: MakeJob,
    calm: dict[str, bytes],
    *,
    shape: tuple[int, int],
    roles: Sequence[str],
    say: Say,
    folder: Path,
) -> None:
    """Jobs one after another, ranks killed in the first half of each, until there was one kill for each of `roles`."""
    seed = time.time_ns()
    dice, strikes = random.Random(seed), list[Strike]()
    for number in range(len(roles) + 1):
        job = group_job(f"struck-{number}", *shape)
        with faults.allowance(fleet.client, folder, FRAMES // 2) as allow:
            run = Run(fleet, job)
            while len(strikes) < len(roles) and run.frames() < FRAMES * 0.3:
                goal = run.frames() + dice.randint(1, 6)
                run.until(lambda run, goal=goal: run.frames() >= goal)
                strikes.append(Strike(fleet, run, roles[len(strikes)], dice, allow))
        check(job, run.result(), calm, f"seed {seed}")
        assert not any(event.final for event in run.failed()), f"seed {seed}"
        fleet.wait()
        if len(strikes) == len(roles):
            break
    assert len(strikes) == len(roles), f"seed {seed}"
    if shape[1] == 1:
        assert all(strike.by_others for strike in strikes), f"seed {seed}: the other group stood still"
    median = statistics.median(strike.seconds for strike in strikes)
    say(
        f"TP {shape[0]} x DP {shape[1]}, SIGKILL: a chunk of the group that was formed again began after {median:.1f} s (median of"
        f" {', '.join(f'{role} {strike.seconds:.1f}' for role, strike in zip(roles, strikes, strict=True))}), seed {seed}"
    )


@pytest.mark.timeout(600)
def test_a_killed_follower_and_a_killed_leader(fleet: Fleet, group_job: MakeJob, calm: dict[str, bytes], say: Say, tmp_path: Path) -> None:
    strike_jobs(fleet, group_job, calm, shape=(2, 1), roles=("follower", "leader"), say=say, folder=tmp_path)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("role", ["follower", "leader", "nanny"])
@pytest.mark.parametrize("shape", [(2, 1), (2, 2)], ids=["two-groups", "one-group"])
def test_a_killed_rank(
    fleet: Fleet,
    group_job: MakeJob,
    calm: dict[str, bytes],
    shape: tuple[int, int],
    role: str,
    say: Say,
    tmp_path: Path,
) -> None:
    strike_jobs(fleet, group_job, calm, shape=shape, roles=[role] * 5, say=say, folder=tmp_path)


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_ranks_killed_while_groups_form(fleet: Fleet, group_job: MakeJob, calm: dict[str, bytes]) -> None:
    """Around the second in which groups are formed of what is there."""
    seed = time.time_ns()
    dice = random.Random(seed)
    for number in range(3):
        victim = dice.choice(sorted(fleet.names))
        pid = fleet.pid(victim)
        run = Run(fleet, group_job(f"forming-{number}", 2, 1, "cameras.frames=0-11"))
        run.until(lambda run: any(isinstance(event, JobStarted) for event in run.events))
        time.sleep(dice.uniform(0.8, 1.4))
        os.kill(pid, signal.SIGKILL)
        assert run.result().state == "complete", f"seed {seed}"
        found = pixels(run.job.store_path)
        assert len(found) == 12, f"seed {seed}"
        assert found.items() <= calm.items(), f"seed {seed}"
        fleet.wait()


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("place", "timeout"), [(0, 0), (1, 0), (0, 20)], ids=["leader", "follower", "leader-20s"])
def test_a_stopped_rank(fleet: Fleet, group_job: MakeJob, calm: dict[str, bytes], place: int, timeout: int, say: Say) -> None:
    """SIGSTOP: it is noticed within 10 times the slowest chunk, at least 30 s, or when the job says, and replaced."""
    job = group_job("stopped", 2, 1, f"parallel.render_timeout={timeout}")
    run = Run(fleet, job)
    run.until(lambda run: run.frames() >= 6)
    group = run.begun()[-1].worker
    pid = fleet.pid(ranks_of(group)[place])
    stopped_at = time.time()
    os.kill(pid, signal.SIGSTOP)
    failed = run.until(lambda run: [e for e in run.failed() if e.worker == group], 200)
    slowest = max(event.seconds for event in run.done())
    limit = float(timeout) or max(30.0, 10 * slowest)
    noticed = failed[0].at - stopped_at
    assert noticed < limit + 10, failed
    until(lambda: gone([pid]), 120, "the stopped process is ended")
    check(job, run.result(), calm)
    fleet.wait()
    role = "follower" if place else "leader"
    say(f"SIGSTOP {role}: noticed after {noticed:.1f} s (limit {limit:.1f}): {failed[0].error}")


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("how", "rank"), [("raise", 0), ("abort", 1)])
def test_a_chunk_that_ends_three_groups(
    fleet: Fleet, group_job: MakeJob, calm: dict[str, bytes], tmp_path: Path, how: str, rank: int
) -> None:
    """It is set aside, the rest is finished, exit 3 names it; once it is mended the same command renders it."""
    job, frame = group_job("poisoned"), 21
    fleet.client.register_plugin(faults.PoisonedPose(flight_of_job(job).c2w[frame], how, rank))
    try:
        words = ["render", str(write_job(job, tmp_path)), "--scheduler", fleet.address]
        client = command(*words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        told, _ = client.communicate(timeout=600)
    finally:
        fleet.client.unregister_worker_plugin(faults.PoisonedPose.name)
    assert client.returncode == 3, told
    assert f"2 of {FRAMES} frames are missing" in told
    chunk = next(chunk for chunk in split_frames(range(FRAMES), 2) if frame in chunk.frames)
    last = told[told.index("frames are missing") :]
    assert f"chunk {chunk.id}: its worker died: " in last
    assert (faults.INJECTED if how == "raise" else "was killed by SIGABRT") in last
    assert told.count(f"trying again: chunk {chunk.id}") == 2, told
    assert told.count(f"gave up on chunk {chunk.id}") == 1, told
    fleet.wait()
    assert Run(fleet, job).result().state == "complete"
    check(job, None, calm)


@pytest.fixture
def far_host() -> Iterator[tuple[str, str]]:
    """(address of this machine that the far host reaches, name of the far host's network namespace); skips without the right to make
    one.
    """
    number = os.getpid() % 250
    name, near, far = f"lb{os.getpid()}", f"10.213.{number}.1", f"10.213.{number}.2"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    try:
        ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs `ip` and the right to make network namespaces (root): {getattr(error, 'stderr', error)}")
    try:
        ip("link", "add", f"{name}n", "type", "veth", "peer", "name", f"{name}f")
        ip("link", "set", f"{name}f", "netns", name)
        ip("addr", "add", f"{near}/24", "dev", f"{name}n")
        ip("link", "set", f"{name}n", "up")
        ip("-n", name, "addr", "add", f"{far}/24", "dev", f"{name}f")
        ip("-n", name, "link", "set", f"{name}f", "up")
        ip("-n", name, "link", "set", "lo", "up")
        yield near, name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_rank_on_another_host_is_cut_off(
    far_host: tuple[str, str], group_job: MakeJob, calm: dict[str, bytes], tmp_path: Path, say: Say
) -> None:
    """Its link goes down in the middle of the job: no word comes from it, no connection is closed. The job ends without it."""
    near, name = far_host
    with Fleet(tmp_path / "fleet", {"near": 3, "far": 1}, listen=near, prefix={"far": ["ip", "netns", "exec", name]}) as fleet:
        hosts = {rank: info["host"] for rank, info in fleet.workers().items()}
        assert hosts["near-w0"] == near != hosts["far-w0"]
        job = group_job("apart")
        run = Run(fleet, job)
        mixed = run.until(lambda run: [e.worker for e in run.done() if "far-w0" in e.worker])[0]
        assert sorted(ranks_of(mixed)) == ["far-w0", "near-w2"]  # the groups of one host come first
        run.until(lambda run: len({event.worker for event in run.done()}) == 2)
        cut_at = time.time()
        subprocess.run(["ip", "-n", name, "link", "set", f"{name}f", "down"], check=True)
        failed = run.until(lambda run: [event for event in run.failed() if event.worker == mixed], 200)
        check(job, run.result(), calm)
        assert [event for event in run.done() if event.at > cut_at and event.worker != mixed]
        say(f"a host cut off: noticed after {failed[0].at - cut_at:.1f} s: {failed[0].error}")

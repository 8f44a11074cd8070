"""What a scheduler keeps of a long job: the events of a topic that others may ask for, and little else."""

from __future__ import annotations

from distributed import Nanny, Scheduler

from landmark_batch.workflows.cluster import SCHEDULER_SETTINGS, SENT_LAST, start_cluster
from landmark_batch.workflows.machine import Placement

KEPT = SCHEDULER_SETTINGS["distributed.admin.low-level-log-length"]


def kept(count: int, dask_scheduler: Scheduler) -> tuple[int, set[int], float]:
    """Events kept of so many; bounds of what else is kept of the past; milliseconds between its looks at its machine."""
    for number in range(count):
        dask_scheduler.log_event("topic", number)
    streams = [*dask_scheduler.stream_comms.values(), *dask_scheduler.client_comms.values()]
    logs = [dask_scheduler.transition_log, *(stream.recent_message_log for stream in streams)]
    assert len(logs) >= 4, "transitions, two workers, a client"
    pace = dask_scheduler.periodic_callbacks["monitor"].callback_time
    return len(dask_scheduler.get_events("topic")), {log.maxlen for log in logs}, pace


def ticks(dask_worker: Nanny) -> bool:
    return bool(dask_worker.periodic_callbacks["tick"].is_running())


def test_events_are_kept_and_messages_are_not() -> None:
    cluster = start_cluster(Placement("cpu", 1, (), "CPU"), dashboard=False)
    try:
        assert cluster.client.run_on_scheduler(kept, KEPT + 10) == (KEPT, {SENT_LAST}, 5000.0)
        assert list(cluster.client.run(ticks, nanny=True).values()) == [False]
    finally:
        cluster.close()

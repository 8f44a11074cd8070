"""Keys of a job file whose machinery is not in this version: refused before anything is done, with what to do instead."""

from __future__ import annotations

from landmark_batch.errors import ConfigError
from landmark_batch.job import RenderJob


def refuse_unsupported(job: RenderJob) -> None:
    """Raises ConfigError naming the key, its value and the value that works."""
    fetching = job.fetching
    if fetching.mode == "dynamic":
        raise ConfigError(
            'fetching.mode = "dynamic": this version keeps the whole scene in memory; fetching of blocks comes with a later one',
            remedy='leave fetching.mode out, or set it to "resident"',
        )
    for key, value in (("gpu_blocks", fetching.gpu_blocks), ("gpu_memory", fetching.gpu_memory), ("host_memory", fetching.host_memory)):
        if value is not None:
            raise ConfigError(
                f"fetching.{key} = {value}: this version keeps the whole scene in memory; limits come with fetching of blocks",
                remedy=f"leave fetching.{key} out",
            )

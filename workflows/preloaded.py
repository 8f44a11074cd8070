"""What workers have in memory from their first moment: imported once, in the process that they are forked from (`warm`).

Nothing here may start a thread, take a lock that processes would share, or touch a GPU: none of these survives a fork.
"""

from __future__ import annotations

import contextlib
import gc
import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a batch job's reaches every process; without this one its workers would count as ended

with contextlib.suppress(Exception):  # what cannot be imported here fails in the worker, which has a log to say so in
    import distributed.nanny  # noqa: F401

    import landmark_batch.model.fused
    import landmark_batch.model.renderer
    import landmark_batch.scene.checkpoint
    import landmark_batch.workflows.nanny
    import landmark_batch.workflows.worker  # noqa: F401

gc.collect()
gc.freeze()  # a collection in a worker would copy every page of these modules

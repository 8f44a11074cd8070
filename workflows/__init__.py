"""Workflows: what the commands run. The only room that imports Dask.

A render, in the order of things: `request` (the job, checked and resolved) → `plan` (against its store, this machine, its disk) →
`render` (the run) → `snapshot` (what workers read) → `cluster` (worker processes) → `graph` (one task a pose chunk) → `feeder` (which
worker gets which chunk) and `driver` (what follows when one fails), through `pool` → `worker` and `session` (in a worker process:
render, quantise, commit) → `recorder` and `result`. Beside it: `preview`, `export`, `evaluate`, `bench`.
"""

"""plan: what a job will take, without a cluster and without a GPU."""

from __future__ import annotations

from typing import Any

import click

from landmark_batch.commands.common import json_option, say_json
from landmark_batch.commands.job_source import JobCommand, job_options, read_job


@click.command("plan", cls=JobCommand)
@job_options
@click.option("--update", is_flag=True, help="As `render --update`.")
@click.option("--overwrite", is_flag=True, help="As `render --overwrite`.")
@click.option("--scheduler", help="As `render --scheduler`.")
@click.option("--fetching", is_flag=True, help="Blocks that fetching moves, beside on-demand fetching and LandMark's window.")
@json_option
@click.pass_context
def command(ctx: click.Context, /, as_json: bool, **flags: Any) -> None:
    """Frames, chunks, bytes on disk and memory of a job; time only if this machine has rendered the like before.

    Refuses what `render` would refuse, and writes nothing.
    """
    from landmark_batch.workflows.plan import make_plan

    request = read_job(ctx, flags)
    plan = make_plan(request.job, update=flags["update"], overwrite=flags["overwrite"], scheduler=flags["scheduler"])
    report = None
    if flags["fetching"]:
        from landmark_batch.workflows.fetch_plan import fetch_report

        report = fetch_report(plan)
    if as_json:
        say_json(plan.as_dict() | ({"fetching_report": report.as_dict()} if report is not None else {}))
        return
    click.echo(plan.describe())
    if report is not None:
        click.echo(report.describe())

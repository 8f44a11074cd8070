"""plan: what a job will take, without a cluster and without a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from landmark_batch.commands.common import json_option, say_json
from landmark_batch.commands.job_source import JobCommand, job_options, read_job
from landmark_batch.commands.render import order_option, ordered
from landmark_batch.errors import LandmarkError

if TYPE_CHECKING:
    from landmark_batch.workflows.render_plan import RenderPlan

_PLACES = 12  # that a probe looks at


class PlanCommand(JobCommand):
    """Takes --probe without a number too, wherever it stands."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = list(args)
        for place, word in enumerate(words):
            if word == "--":
                break
            if word == "--probe" and not (place + 1 < len(words) and words[place + 1].isdecimal()):
                words[place] = f"--probe={_PLACES}"
        return super().parse_args(ctx, words)


@click.command("plan", cls=PlanCommand)
@job_options
@click.option("--update", is_flag=True, help="As `render --update`.")
@click.option("--overwrite", is_flag=True, help="As `render --overwrite`.")
@order_option
@click.option("--scheduler", help="As `render --scheduler`.")
@click.option("--fetching", is_flag=True, help="Blocks that fetching moves, beside on-demand fetching and LandMark's window.")
@click.option(
    "--probe",
    type=click.IntRange(2, 1000),
    metavar="[N]",
    help=f"Render parts of frames at N places of the flight (default {_PLACES}) and predict time, memory and bytes from them.",
)
@json_option
@click.pass_context
def command(ctx: click.Context, /, as_json: bool, **flags: Any) -> None:
    """Frames, chunks, bytes on disk and memory of a job; time only if this machine has rendered the like before, or probes it now.

    Refuses what `render` would refuse, and writes nothing beside the job (a probe's frames are removed).
    """
    from landmark_batch.workflows.plan import make_plan

    request = ordered(read_job(ctx, flags), flags["order"])
    plan = make_plan(request.job, update=flags["update"], overwrite=flags["overwrite"], scheduler=flags["scheduler"])
    if flags["probe"]:
        plan = _probed(plan, flags["probe"], flags["scheduler"])
    report = None
    if flags["fetching"]:
        from landmark_batch.workflows.fetch_plan import fetch_report

        report = fetch_report(plan)
    _check_film(plan)
    if as_json:
        say_json(plan.as_dict() | ({"fetching_report": report.as_dict()} if report is not None else {}))
        return
    click.echo(plan.describe())
    if report is not None:
        click.echo(report.describe())


def _check_film(plan: RenderPlan) -> None:
    """A note where `render --video` would be refused, for jobs that say what their film is to be."""
    if not plan.job.video.model_fields_set:
        return
    from landmark_batch.workflows.export import check_exports

    try:
        check_exports(plan.job, plan.request.flight, video=True, allow_8bit=True)
    except LandmarkError as error:
        click.echo(f"note: --video would be refused: {error.message}" + (f"; {error.remedy}" if error.remedy else ""), err=True)


def _probed(plan: RenderPlan, places: int, scheduler: str | None) -> RenderPlan:
    """The plan with what a probe of it tells, which the next `render` and `plan` remember."""
    from landmark_batch.workflows.machine import describe_machine
    from landmark_batch.workflows.measured import record_probe
    from landmark_batch.workflows.plan import probe_key
    from landmark_batch.workflows.probe import probe_plan

    machine = describe_machine()
    click.echo(f"probing {places} places of the flight", err=True)
    probe = probe_plan(plan, machine, places=places, scheduler=scheduler)
    if scheduler is None:
        record_probe(probe_key(plan, machine), probe.as_dict())
    return plan.probed(probe)

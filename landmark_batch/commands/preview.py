"""preview: a small film of the whole flight after about a minute."""

from __future__ import annotations

from typing import Any

import click

from landmark_batch.commands import logs
from landmark_batch.commands.common import human_time, say_written
from landmark_batch.commands.export import say_film
from landmark_batch.commands.interrupts import Interrupts
from landmark_batch.commands.job_source import JobCommand, going_on, job_options, read_job
from landmark_batch.commands.progress import ProgressSink
from landmark_batch.errors import RenderInterrupted
from landmark_batch.object_path import StorePath


@click.command("preview", cls=JobCommand)
@job_options
@click.option("--seconds", type=click.FloatRange(5, 3600), default=60.0, show_default=True, help="About how long it may take.")
@click.option("--no-dashboard", is_flag=True, help="Start no Dask dashboard.")
@click.pass_context
def command(ctx: click.Context, /, seconds: float, no_dashboard: bool, **flags: Any) -> None:
    """Every Nth frame of a job at a reduced size, as a film that lasts as long as the flight.

    Size and N follow from a first frame that is measured. Store and film stand beside the job's: NAME.preview.zarr, NAME.preview.mp4;
    an earlier preview is replaced.
    """
    from landmark_batch.workflows.preview import make_preview

    job = read_job(ctx, flags).job
    again = going_on(ctx)
    with Interrupts(again, does="begin anew") as interrupts, ProgressSink() as progress:
        found = make_preview(
            job,
            seconds=seconds,
            sinks=[progress],
            stop=interrupts.stop,
            dashboard=not no_dashboard,
            chosen=lambda choice: click.echo(f"preview: {choice.describe()}", err=True),
        )
    if found.render.log is not None:
        logs.belongs_to(found.render.log)
    written: list[StorePath] = [found.store]
    if found.film is not None:
        say_film(found.film, pace="as long as the flight")
        written.append(found.film.path)
    if found.render.log is not None:
        written.append(found.render.log)
    click.echo(f"took {human_time(found.seconds)}")
    say_written(written)
    error = found.render.error()
    if isinstance(error, RenderInterrupted):
        raise RenderInterrupted(error.message, remedy=f"to begin anew: {again}")
    if error is not None:
        raise error

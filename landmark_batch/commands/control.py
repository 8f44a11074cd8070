"""pause, continue, cancel, attach: act on the job that writes a store, from any host that sees the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from landmark_batch.commands.common import command_line
from landmark_batch.commands.tls_options import read_tls, tls_options
from landmark_batch.errors import RenderInterrupted
from landmark_batch.object_path import StorePath, as_store_path

if TYPE_CHECKING:
    from landmark_batch.workflows.control import RunningJob

_store = click.argument("store", type=as_store_path)


@click.command("pause")
@_store
def pause(store: StorePath) -> None:
    """Pause the job that writes STORE: chunks in hand are finished, then its workers free their memory and wait."""
    from landmark_batch.workflows import control

    _say("pausing", control.pause(store), command_line("continue", store))


@click.command("continue")
@_store
def go_on(store: StorePath) -> None:
    """Let a paused job go on."""
    from landmark_batch.workflows import control

    _say("going on", control.go_on(store), None)


@click.command("cancel")
@_store
def cancel(store: StorePath) -> None:
    """End the job that writes STORE after the chunks in hand. What is rendered stands; `render` goes on with it."""
    from landmark_batch.workflows import control

    _say("ending after the chunks in hand", control.cancel(store), None)


@click.command("attach")
@_store
@tls_options
def attach(store: StorePath, **flags: Any) -> None:
    """Watch the job that writes STORE until it ends. Ctrl-C leaves the job as it is."""
    from landmark_batch.commands.progress import ProgressSink
    from landmark_batch.workflows import control

    credentials = read_tls(flags)
    try:
        with ProgressSink() as progress:
            control.attach(store, [progress], security=credentials.security() if credentials is not None else None)
    except KeyboardInterrupt:
        raise RenderInterrupted(
            "no longer attached; the job goes on", remedy=f"{command_line('attach', store)}, or {command_line('cancel', store)}"
        ) from None
    click.echo(f"the job has ended; {store} is complete")


def _say(what: str, jobs: Sequence[RunningJob], then: str | None) -> None:
    for job in jobs:
        click.echo(f"{what}: {job.name} (run {job.run}, driven on {job.host})")
    if then:
        click.echo(f"to go on: {then}")


COMMANDS = {"pause": pause, "continue": go_on, "cancel": cancel, "attach": attach}

"""verify: every frame of a store against the digest it was written with."""

from __future__ import annotations

import click

from landmark_batch.chunks import format_frame_ranges
from landmark_batch.commands.common import count_of, json_option, say_damaged, say_json
from landmark_batch.commands.progress import counted
from landmark_batch.object_path import StorePath, as_store_path


@click.command("verify")
@click.argument("store", type=as_store_path)
@click.option("--discard-damaged", is_flag=True, help="Make damaged frames missing: the next render renders them again.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Default one a core, at most 8.")
@json_option
@click.pass_context
def command(ctx: click.Context, store: StorePath, discard_damaged: bool, threads: int | None, as_json: bool) -> None:
    """Check every byte of STORE. Exit code 3 if anything is damaged (also when it was discarded just now)."""
    from landmark_batch.frames.verify import verify_store

    with counted("verify", quiet=as_json) as progress:
        report = verify_store(store, discard_damaged=discard_damaged, progress=progress, threads=threads)
    if as_json:
        say_json(report.as_dict())
    else:
        say_damaged([f"{item.output} of frame {item.frame}: {item.reason} ({item.path})" for item in report.damaged])
        for line in report.other:
            click.echo(f"damaged: {line}")
        for line in report.notes:
            click.echo(f"note: {line}")
        state = "all as they were written" if report.ok else f"{len(report.frames)} damaged"
        click.echo(f"{store}: {count_of(report.checked, 'frame')} checked, {state}")
        if report.frames:
            one = len(report.frames) == 1
            what = ("is missing now" if one else "are missing now") if report.discarded else "will be rendered again"
            which = f"frame{'s' * (not one)} {format_frame_ranges(report.frames)}"
            click.echo(f"{which} {what}: the next `landmark-batch render` mends {'it' if one else 'them'}")
    if not report.ok:
        ctx.exit(3)

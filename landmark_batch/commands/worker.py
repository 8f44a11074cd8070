"""worker: the render processes of one host, under their supervisor."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from landmark_batch.commands.common import path_type
from landmark_batch.commands.tls_options import read_tls, tls_options
from landmark_batch.errors import ConfigError


@click.command("worker")
@click.argument("address", required=False)
@click.option("--workers", type=click.IntRange(1, 4096), help="Processes; default one a visible GPU, or one a core.")
@click.option("--gpus", help="How many GPUs (4), or which (0,2).")
@click.option("--device", type=click.Choice(["auto", "cuda", "cpu"]), default="auto", show_default=True)
@click.option("--name", help="What the names of the workers begin with; default the host's name.")
@tls_options
@click.option("--scheduler-file", type=path_type(), help="Read the address from this file of the scheduler's.")
@click.option("--log", type=path_type(), help="File for what the workers print; default this terminal.")
@click.option("--patience", type=click.FloatRange(0), default=600.0, show_default=True, help="Seconds to wait for a scheduler.")
@click.option("--drain-seconds", type=click.FloatRange(0), default=600.0, show_default=True, help="For chunks in hand, on SIGTERM.")
@click.pass_context
def command(ctx: click.Context, /, **flags: Any) -> None:
    """Join the scheduler at ADDRESS with one render process for each GPU of this host (or each core of a CPU machine).

    Processes that die are started again. When the scheduler goes away, they wait and join the next one at the same address.
    SIGTERM or Ctrl-C finishes the chunks in hand, a second one ends at once. Exit codes: 0 the scheduler sent them away,
    1 no scheduler for --patience seconds, 2 bad input, 3 ended by SIGTERM, 130 by Ctrl-C.
    """
    from landmark_batch.commands.job_source import parse_gpus

    tls = read_tls(flags)
    gpus = parse_gpus(flags["gpus"]) if flags["gpus"] is not None else None
    address = _address(flags["address"], flags["scheduler_file"], flags["patience"])

    from landmark_batch.workflows.host_worker import Supervisor
    from landmark_batch.workflows.hosts import host_ranks
    from landmark_batch.workflows.security import scheduler_address

    ranks = host_ranks(
        scheduler_address(address, tls=tls is not None),
        host=flags["name"],
        device=flags["device"],
        gpus=gpus,
        workers=flags["workers"],
        tls=tls,
        log=_writable(flags["log"]),
    )
    supervisor = Supervisor(ranks, tell=click.echo, patience=flags["patience"], drain_seconds=flags["drain_seconds"])
    ctx.exit(supervisor.run())


def _address(address: str | None, file: Path | None, patience: float) -> str:
    if (address is None) == (file is None):
        raise ConfigError(
            "no scheduler is named" if address is None else "two schedulers are named", remedy="give ADDRESS, or --scheduler-file"
        )
    if address is not None or file is None:
        return address or ""
    end = time.monotonic() + patience
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.2)
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["address"])
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}", remedy="start `landmark-batch scheduler --scheduler-file` first") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{file} is no scheduler file", remedy="name the file that `landmark-batch scheduler` writes") from None


def _writable(log: Path | None) -> Path | None:
    if log is None:
        return None
    try:
        with log.open("a", encoding="utf-8"):
            return log.resolve()
    except OSError as error:
        raise ConfigError(f"{log}: cannot write: {error.strerror or error}", remedy="check the folder of --log") from None

"""scheduler: the meeting place of a cluster's workers and jobs."""

from __future__ import annotations

import getpass
import socket
from typing import TYPE_CHECKING, Any

import click

from landmark_batch.commands.common import path_type
from landmark_batch.commands.tls_options import read_tls, tls_options, tls_words

if TYPE_CHECKING:
    from landmark_batch.workflows.host_scheduler import SchedulerUp


@click.command("scheduler")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for every interface.")
@click.option("--port", type=click.IntRange(0, 65535), default=8786, show_default=True, help="0 takes a free one.")
@click.option("--dashboard/--no-dashboard", default=True, help="Dask's page of tasks and workers.")
@click.option("--dashboard-host", default="127.0.0.1", show_default=True, help="Address the page listens on; it asks for no password.")
@click.option("--dashboard-port", type=click.IntRange(0, 65535), default=8787, show_default=True)
@tls_options
@click.option("--scheduler-file", type=path_type(), help="Write the address there, for --scheduler-file of workers.")
@click.option("--log", type=path_type(), help="File for what the jobs' drivers print; default this terminal.")
def command(**flags: Any) -> None:
    """Run a scheduler that render jobs and workers of several hosts meet at, until Ctrl-C.

    \b
    landmark-batch scheduler                                                   this machine alone
    landmark-batch scheduler --host 0.0.0.0 --tls-ca-file ca.pem --tls-cert cert.pem --tls-key key.pem
    landmark-batch worker tls://HEAD:8786 --tls-ca-file ...                    then, on each host
    landmark-batch render job.toml --scheduler tls://HEAD:8786 --tls-ca-file ...

    docs/clusters.md has the whole of it, with the commands that make certificates.
    """
    from landmark_batch.workflows.host_scheduler import SchedulerOptions, serve_scheduler
    from landmark_batch.workflows.security import exposure

    tls = read_tls(flags)
    options = SchedulerOptions(
        host=flags["host"],
        port=flags["port"],
        dashboard_host=flags["dashboard_host"],
        dashboard_port=flags["dashboard_port"] if flags["dashboard"] else None,
        tls=tls,
        scheduler_file=flags["scheduler_file"],
        log=flags["log"],
    )
    warning = exposure(options.host, tls)
    if warning is not None:
        click.echo(f"landmark-batch: warning: {warning}", err=True)
    credentials = tls_words(flags)
    serve_scheduler(options, lambda up: _say(up, options.host, credentials))
    click.echo("the scheduler has ended")


def _say(up: SchedulerUp, host: str, credentials: str) -> None:
    from landmark_batch.workflows.security import is_loopback

    click.echo(f"scheduler  {up.address}")
    if up.dashboard is not None:
        port = up.dashboard.removesuffix("/status").rpartition(":")[2]
        click.echo(f"dashboard  {up.dashboard}")
        click.echo(f"           from elsewhere: ssh -L {port}:127.0.0.1:{port} {getpass.getuser()}@{socket.gethostname()}")
    where = "here" if is_loopback(host) else "on every worker host"
    click.echo(f"workers    {where}: landmark-batch worker {up.address}{credentials}")
    click.echo(f"jobs       landmark-batch render JOB.toml --scheduler {up.address}{credentials}")

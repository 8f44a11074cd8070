"""landmark-batch: the command line. Loads a command when it is called, turns every error into one message and an exit code.

Exit codes: 0 done, 1 our fault, 2 bad input, 3 incomplete, 130 interrupted.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from landmark_batch import __version__
from landmark_batch.errors import LandmarkError

COMMANDS = {
    "doctor": "What this machine has, and what `render` would use.",
    "demo": "Make a procedural city, a flight over it and a job file.",
    "info": "What a checkpoint holds, and what it lacks to be rendered.",
    "convert": "Make a block store of a checkpoint.",
    "new": "Write a commented job file for a checkpoint.",
    "cameras": "Make a flight: interpolate, orbit, survey.",
    "plan": "What a job will take: frames, chunks, bytes, memory.",
    "preview": "A small film of the whole flight after about a minute.",
    "render": "Render a flight into a store; goes on where it stopped.",
    "scheduler": "Run a scheduler that jobs and workers of several hosts meet at.",
    "worker": "Join a scheduler with the GPUs of this host.",
    "status": "How far a store is.",
    "pause": "Pause the job that writes a store; its GPUs are free.",
    "continue": "Let a paused job go on.",
    "cancel": "End the job that writes a store, after the chunks in hand.",
    "attach": "Watch the job that writes a store.",
    "verify": "Check every frame of a store against its digest.",
    "export": "Images and video out of a store.",
    "evaluate": "PSNR and SSIM of a store against photographs.",
    "kernels": "Compiled kernels: build, status, clean.",
    "bench": "Measure rendering, the job around it, writing, exports.",
}


class LandmarkBatch(click.Group):
    """The group of all commands: none is imported before it is called, so that --help is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        if cmd_name in ("pause", "continue", "cancel", "attach"):
            command = importlib.import_module("landmark_batch.commands.control").COMMANDS[cmd_name]
        else:
            command = importlib.import_module(f"landmark_batch.commands.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            ctx.fail(f"no command {args[0]!r}. " + (f"Did you mean {near[0]}?" if near else "Commands: " + ", ".join(COMMANDS)))
        return super().resolve_command(ctx, args)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """As click's, with the exit codes of this program; --debug may stand anywhere."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        words = list(sys.argv[1:] if args is None else args)
        options = words[: words.index("--")] if "--" in words else words
        debug = "--debug" in options
        if debug:
            words.remove("--debug")
        sys.exit(self._run(words, prog_name, complete_var, debug=debug, **extra))

    def _run(self, words: list[str], prog_name: str | None, complete_var: str | None, *, debug: bool, **extra: Any) -> int:
        from landmark_batch.commands import logs

        logs.start(debug=debug)
        os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 prints its settings otherwise, whatever FFmpeg's log level
        try:
            code = super().main(words, prog_name, complete_var, standalone_mode=False, obj={"words": words}, **extra)
            return code if isinstance(code, int) else 0
        except click.ClickException as error:
            if not words or isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
                click.echo(error.format_message(), err=True)
                return error.exit_code
            place = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "landmark-batch"
            click.echo(f"{place}: {error.format_message()}\n  {place} --help says more", err=True)
            return error.exit_code
        except LandmarkError as error:
            click.echo(f"landmark-batch: {error}", err=True)
            logging.getLogger("landmark_batch").debug("raised here", exc_info=True)
            return error.exit_code
        except (KeyboardInterrupt, click.Abort):
            click.echo("landmark-batch: interrupted", err=True)
            return 130
        except PermissionError as error:
            if not error.filename:
                return self._unexpected(error, debug=debug)
            click.echo(f"landmark-batch: {os.fsdecode(error.filename)}: {error.strerror}\n  check its permissions", err=True)
            logging.getLogger("landmark_batch").debug("raised here", exc_info=True)
            return 2
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader is gone (`| head`): Python's last flush must not fail too
            return 1
        except Exception as error:  # noqa: BLE001
            return self._unexpected(error, debug=debug)
        finally:
            logs.stop()

    @staticmethod
    def _unexpected(error: Exception, *, debug: bool) -> int:
        """Says what is our fault, while the error is being handled. Returns the exit code."""
        from landmark_batch.commands import logs

        last = traceback.extract_tb(error.__traceback__)[-1]
        click.echo(f"landmark-batch: unexpected {type(error).__name__} at {last.name}: {error}", err=True)
        log = logs.keep_traceback()
        hint = f"  the traceback is in {log}" if log else "  run it again with --debug for the traceback"
        click.echo(traceback.format_exc() if debug else hint, err=True)
        return 1


@click.group(
    cls=LandmarkBatch, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="landmark-batch")
@click.option("--debug", is_flag=True, help="Print tracebacks and every log line. May stand anywhere.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Render whole flights over city-scale LandMark scenes: offline, exact, parallel, resumable.

    \b
    landmark-batch demo DIR --render                 a city, a flight, a film
    landmark-batch new CKPT.th --cameras path.json   a job file
    landmark-batch render JOB.toml                   rendered, stored, resumable

    Exit codes: 0 done, 1 our fault, 2 bad input, 3 incomplete, 130 interrupted.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """Entry point of the console script."""
    cli.main(prog_name="landmark-batch")


if __name__ == "__main__":
    main()

"""The command line: commands parse, call, print and pick the exit code. Each is imported when it is asked for."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import click

from bridge.cli.output import MEANINGS, Exit, plain, wrapped
from bridge.errors import BridgeError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

COMMANDS: Mapping[str, str] = {
    "export": "Copy runs to MLflow or TensorBoard; run it again at any time.",
    "view": "Show runs in TensorBoard or MLflow until Ctrl-C.",
    "verify": "Read a target back and compare it, point by point, with the run directories.",
    "ls": "List runs, the newest first.",
    "show": "Show one run in full.",
    "best": "List the runs with the best values of a metric.",
    "points": "Print the points of one run as CSV, or write them to a file.",
    "set": "Change a run's name, notes and tags, or archive it.",
    "scan": "Update the cache of runs.",
    "config": "Show the options in effect for `bridge export`, where each comes from, and the caches.",
    "demo": "Train small real runs.",
    "completion": "Print the completion script for a shell.",
}
"""The commands and how their help begins. Each is the function of that name in `bridge.cli.NAME`; `best` is in `ls`."""


class LazyGroup(click.Group):
    """A group that imports its commands one by one, when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, the most used first."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module = "ls" if cmd_name == "best" else cmd_name
        command = getattr(importlib.import_module(f"bridge.cli.{module}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command in `args`; for an unknown one the error names the nearest, as that of a newer click does."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = get_close_matches(args[0], COMMANDS, n=1)
            if not near or "Did you mean" in error.message:
                raise
            raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command. With `standalone_mode` errors are printed and the process exits."""
        run = functools.partial(super().main, args, prog_name, complete_var, standalone_mode=False, **extra)
        return sys.exit(_run(run)) if standalone_mode else run()


def _run(command: Callable[[], Any]) -> int:
    """Run `command` and return its exit code; print its error."""
    try:
        code = command()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return Exit.INTERRUPTED
    except BridgeError as error:
        _print_error(error.message, error.hint)
        return Exit.USAGE if isinstance(error, UsageError) else Exit.NOTHING_DONE
    except OSError as error:
        # An error of the operating system that names a file is the user's; any other one is a bug.
        if error.filename is None:
            raise
        _print_error(f"{os.fsdecode(error.filename)}: {error.strerror}.", None)
        return Exit.NOTHING_DONE
    return code if isinstance(code, int) else Exit.DONE


def _print_error(message: str, hint: str | None) -> None:
    click.echo(wrapped(f"Error: {plain(message, lines=True)}"), err=True)
    if hint:
        click.echo(wrapped(f"Hint: {plain(hint, lines=True)}"), err=True)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nExample:\n  bridge ls .\n\nExit codes: " + " · ".join(f"{code:d} {MEANINGS[code]}" for code in Exit),
)
@click.version_option(package_name="registry-bridge", prog_name="bridge")
def bridge() -> None:
    """Sync training run directories to MLflow and TensorBoard."""

"""The command line: parses, calls, prints, and picks the exit code. Commands load when they are asked for."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from bridge.cli.exits import Exit, exit_of
from bridge.cli.text import plain
from bridge.errors import BridgeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["COMMANDS", "bridge"]


class Lazy(NamedTuple):
    """Where a command lies (`module:attribute`), and its one sentence, which `bridge --help` shows unloaded."""

    target: str
    sentence: str


COMMANDS: Mapping[str, Lazy] = {
    "export": Lazy("bridge.cli.export:export", "Bring runs into MLflow or TensorBoard; again at any time."),
    "verify": Lazy(
        "bridge.cli.verify:verify", "Read a target back and compare it, point by point, with the run directories."
    ),
    "view": Lazy(
        "bridge.cli.view:view", "Export runs into a target of their own, open its page on them, and follow them."
    ),
    "scan": Lazy("bridge.cli.scan:scan", "Bring the cache of runs up to date."),
    "ls": Lazy("bridge.cli.ls:ls", "List runs."),
    "show": Lazy("bridge.cli.show:show", "Show one run in full."),
    "best": Lazy("bridge.cli.best:best", "List the runs that reached the best value of a metric."),
    "demo": Lazy("bridge.cli.demo:demo", "Train small real runs."),
    "config": Lazy("bridge.cli.config:config", "Show the options in effect."),
    "cache": Lazy("bridge.cli.cache:cache", "Show the place and the size of all caches, or empty them."),
    "completion": Lazy("bridge.cli.completion:completion", "Print the completion script for a shell."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported one by one; a module that is not there is not offered."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands that exist, in the order of the table."""
        return [name for name, lazy in COMMANDS.items() if _exists(lazy)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now; None where there is none."""
        lazy = COMMANDS.get(cmd_name)
        if lazy is None or not _exists(lazy):
            return None
        module, _, attribute = lazy.target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table, so that no command's module is imported for it."""
        rows = [(name, COMMANDS[name].sentence) for name in self.list_commands(ctx)]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command; on its own (`standalone_mode`) the process ends with an exit code, chosen in `_run`."""
        if "_BRIDGE_COMPLETE" in os.environ:
            from bridge.cli.shells import register_shells

            register_shells()
        run = functools.partial(super().main, args, prog_name, complete_var, standalone_mode=False, **extra)
        return sys.exit(_run(run)) if standalone_mode else run()


def _run(command: Callable[[], Any]) -> int:
    try:
        code = command()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return Exit.INTERRUPTED
    except BridgeError as error:
        _tell(error.message, error.hint)
        return exit_of(error)
    except OSError as error:
        # An error of the operating system about a named file is for people; any other one is a fault of ours.
        if error.filename is None:
            raise
        _tell(f"{os.fsdecode(error.filename)}: {error.strerror}.", None)
        return Exit.NOTHING_DONE
    return code if isinstance(code, int) else Exit.DONE


def _tell(message: str, hint: str | None) -> None:
    click.echo(f"Error: {plain(message, lines=True)}", err=True)
    if hint:
        click.echo(f"Hint: {plain(hint, lines=True)}", err=True)


def _exists(lazy: Lazy) -> bool:
    return find_spec(lazy.target.partition(":")[0]) is not None


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nExample:\n  bridge ls .\n\nExit codes: " + " · ".join(f"{code:d} {code.meaning}" for code in Exit),
)
@click.version_option(package_name="registry-bridge", prog_name="bridge")
def bridge() -> None:
    """Replay training run directories into MLflow and TensorBoard, exactly, as often as wanted."""

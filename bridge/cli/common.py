"""What commands share: their frame, the options that several of them have, and where text goes."""

from __future__ import annotations

import functools
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bridge.cli.complete import complete_ranking, complete_run_ids, complete_tags
from bridge.cli.configured import ConfiguredCommand
from bridge.cli.exits import Exit
from bridge.cli.text import counted, plain, plain_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rich.console import Console

    from bridge.sync.progress import Progress

__all__ = [
    "Exit",
    "Output",
    "Seconds",
    "coming_runs_argument",
    "command",
    "counted",
    "filter_options",
    "heartbeat_option",
    "interval_option",
    "output_options",
    "plain",
    "runs_argument",
    "selection_options",
]

F = TypeVar("F", bound="Callable[..., Any]")


def command(name: str, *, example: str, exits: tuple[Exit, ...]) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a command of a function whose docstring is its one sentence; its help ends with `example` and `exits`.

    Its parameters have defaults in the environment and in bridge.yaml. The function returns the exit code; None is 0. Errors of the bridge are raised, never printed.
    """
    codes = " · ".join(f"{code:d} {code.meaning}" for code in (*exits, Exit.INTERRUPTED))
    return click.command(
        name,
        cls=ConfiguredCommand,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog=f"\b\nExample:\n  {example}\n\nExit codes: {codes}",
    )


def runs_argument(function: F) -> F:
    """Add the argument `runs: tuple[Path, ...]`: run directories or trees; the current directory if none is given."""
    return _with_runs(function, click.Path(exists=True, path_type=Path))


def coming_runs_argument(function: F) -> F:
    """Add the same argument for paths that need not be there yet: whoever walks them sees to that."""
    return _with_runs(function, click.Path(path_type=Path))


def _with_runs(function: F, kind: click.Path) -> F:
    @functools.wraps(function)
    def collected(*args: Any, runs: tuple[Path, ...], **options: Any) -> Any:
        return function(*args, runs=runs or (Path(),), **options)

    return click.argument("runs", nargs=-1, type=kind)(collected)  # type: ignore[return-value]


_FILTERS = (
    click.option(
        "--run-id",
        "run_ids",
        multiple=True,
        metavar="GLOB",
        shell_complete=complete_run_ids,
        help="Runs of this id; may repeat.",
    ),
    click.option(
        "--tag",
        "tags",
        multiple=True,
        metavar="TAG",
        shell_complete=complete_tags,
        help="Runs with this tag; may repeat, then all of them.",
    ),
    click.option(
        "--status",
        "statuses",
        multiple=True,
        type=click.Choice(["running", "completed", "failed", "interrupted", "killed", "unknown"], case_sensitive=False),
        help="Runs of this status; may repeat.",
    ),
    click.option("--since", metavar="WHEN", help="Runs with a sign of life since: 3d, 12h, 2026-04-10, an ISO time."),
    click.option("--where", metavar="EXPR", help="Runs for which this holds: 'val/acc > 0.7 and hparams.lr < 0.1'."),
)
_FILTER_NAMES = ("run_ids", "tags", "statuses", "since", "where")
_RANKING = (
    click.option(
        "--top",
        nargs=2,
        type=(click.IntRange(min=1), str),
        metavar="N METRIC:max|min",
        shell_complete=complete_ranking,
        help="The N best completed runs by their best value ever.",
    ),
    click.option("--last", is_flag=True, help="With --top: rank by the last value instead."),
)


def filter_options(function: F) -> F:
    """Add the options that select runs, but for --top; the function gets `selection: bridge.sync.select.Selection`."""
    return _selecting(function, _FILTERS, _FILTER_NAMES)


def selection_options(function: F) -> F:
    """Add the options that select runs; the function gets `selection: bridge.sync.select.Selection`."""
    return _selecting(function, (*_FILTERS, *_RANKING), (*_FILTER_NAMES, "top", "last"))


def _selecting(function: F, options: tuple[Callable[[F], F], ...], names: tuple[str, ...]) -> F:
    @functools.wraps(function)
    def collected(*args: Any, **values: Any) -> Any:
        from bridge.sync.select import Selection

        selection = Selection.of(**{name: values.pop(name) for name in names})
        return function(*args, selection=selection, **values)

    for option in reversed(options):
        collected = option(collected)
    return collected  # type: ignore[return-value]


class Seconds(click.FloatRange):
    """A span of time: NaN, which compares with nothing, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number of seconds."""
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return seconds


heartbeat_option = click.option(
    "--heartbeat-timeout",
    type=Seconds(min=0),
    default=180.0,
    show_default=True,
    metavar="SECONDS",
    help="A running run whose heartbeat is older counts as killed.",
)
"""Adds `heartbeat_timeout: float`, in seconds."""


def interval_option(meaning: str) -> Callable[[F], F]:
    """Adds `interval: float`, in seconds; `meaning` is its help."""
    return click.option(
        "--interval",
        type=Seconds(min=0.05),
        default=10.0,
        show_default=True,
        metavar="SECONDS",
        help=meaning,
    )


@dataclass(frozen=True, slots=True)
class Output:
    """Where a command's text goes: results to stdout, messages to stderr, as much of them as was asked for."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False

    def result(self, text: str) -> None:
        """Print a result; control characters in it become visible, newlines stand."""
        click.echo(plain(text, lines=True))

    def lines(self, lines: Iterable[str]) -> None:
        """Print many lines that are plain already."""
        click.echo("\n".join(lines))

    def result_json(self, value: object) -> None:
        """Print a result as strict JSON, in lines for people, letters of any script as they are, control characters escaped."""
        import json

        click.echo(plain_json(json.dumps(value, indent=2, ensure_ascii=not _writes_unicode(), allow_nan=False)))

    def say(self, message: str) -> None:
        """Tell something on stderr, unless --quiet."""
        if not self.quiet:
            click.echo(plain(message, lines=True), err=True)

    def detail(self, message: str) -> None:
        """Tell something on stderr with --verbose only."""
        if self.verbose:
            click.echo(plain(message, lines=True), err=True)

    def warn(self, message: str) -> None:
        """Tell on stderr, even with --quiet, what a person must know."""
        click.echo(plain(message, lines=True), err=True)

    def progress(self, *, after: float = 0.0) -> Progress:
        """What shows on stderr how far an export is, unless --quiet; on a terminal `after` so many seconds."""
        from bridge.sync.progress import progress_on

        return progress_on(sys.stderr, quiet=self.quiet, after=after)

    def console(self, *, err: bool = False) -> Console:
        """A rich console on stdout (`err`: on stderr). Text from users goes through `plain` and rich's `Text`.

        A pipe has no width: there lines stay whole, so that grep and cut find what they look for.
        """
        from rich.console import Console

        console = Console(stderr=err, highlight=False, markup=False, emoji=False)
        if not console.is_terminal:
            console.width = _PIPE_WIDTH
        return console


_PIPE_WIDTH = 100_000


def output_options(function: F) -> F:
    """Add --json, -q and -v; the function gets `out: Output`."""

    @functools.wraps(function)
    def collected(*args: Any, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> Any:
        return function(*args, out=Output(json=as_json, quiet=quiet, verbose=verbose), **options)

    for option in (
        click.option("-v", "--verbose", is_flag=True, help="Say more on stderr."),
        click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors and what was asked for."),
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    ):
        collected = option(collected)
    return collected  # type: ignore[return-value]


def _writes_unicode() -> bool:
    return (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"

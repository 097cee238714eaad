"""What scan, ls, show and best share: the registries of RUNS, tables of records, and how their cells read."""

from __future__ import annotations

import functools
import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bridge.cli.common import counted, heartbeat_option, plain
from bridge.registry.refs import Kind
from bridge.registry.registry import open_registry
from bridge.registry.table import columns, write_csv, write_parquet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rich.table import Table
    from rich.text import Text

    from bridge.cli.common import Output
    from bridge.registry.record import RunRecord
    from bridge.registry.refs import Ref
    from bridge.registry.registry import Registry

__all__ = [
    "RECORDS_VERSION",
    "aligned",
    "cache_options",
    "cell",
    "deliver",
    "describe",
    "duration",
    "open_all",
    "records_of",
]

F = TypeVar("F", bound="Callable[..., Any]")

RECORDS_VERSION = 1
"""The version of what --json prints of records."""

_DRAWN = 1000
"""The most runs that are drawn as a table; rich takes a millisecond for each."""

_WIDEST = 1000
"""Characters of the widest column: one long text must not make every line as long."""

_STATUS_STYLES = {"running": "cyan", "completed": "green", "failed": "red", "interrupted": "yellow", "killed": "red"}


def cache_options(function: F) -> F:
    """Add --db and --heartbeat-timeout; the function gets `opening`, the keyword arguments for `open_all`."""

    @functools.wraps(function)
    def collected(*args: Any, db: Path | None, heartbeat_timeout: float, **options: Any) -> Any:
        return function(*args, opening={"db_path": db, "heartbeat_timeout": heartbeat_timeout}, **options)

    for option in (
        heartbeat_option,
        click.option(
            "--db",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="The SQLite cache. Default: one for each RUNS in the user's cache directory.",
        ),
    ):
        collected = option(collected)
    return collected  # type: ignore[return-value]


def open_all(runs: Sequence[Path], *, out: Output, **opening: Any) -> list[Registry]:
    """The registries of all RUNS, scanned; each directory once. Messages about a cache go to stderr."""
    roots = {os.path.realpath(path): path for path in runs}
    return [open_registry(root, say=out.warn, **opening) for root in roots]


def records_of(registries: Sequence[Registry], *, out: Output) -> list[RunRecord]:
    """The records of several registries, each run directory once; runs that cannot be read are named on stderr."""
    for registry in registries:
        for run_dir, reason in registry.report.problems if registry.report else ():
            out.say(plain(f"! {run_dir}: {reason}"))
    return list({record.run_dir: record for registry in registries for record in registry}.values())


def deliver(
    records: Sequence[RunRecord],
    shown: Sequence[Ref],
    *,
    least: int | None = None,
    out: Output,
    csv: Path | None,
    parquet: Path | None,
) -> None:
    """Hand records over as was asked for: all columns into files, as JSON, or as a table of the columns in `shown`.

    On a terminal too narrow for the table its last columns go, but for the first `least` (all, unless given).
    """
    for path, write in ((csv, write_csv), (parquet, write_parquet)):
        if path is not None:
            write(columns(records), path)
            out.say(f"{counted(len(records), 'run')} written to {path}.")
    if out.json:
        out.result_json({"version": RECORDS_VERSION, "runs": [record.to_dict() for record in records]})
    elif csv is None and parquet is None:
        _print(records, shown, len(shown) if least is None else least, out)


def describe(records: Sequence[RunRecord], shown: Sequence[Ref]) -> Table:
    """A table with a line for each record."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for ref in shown:
        table.add_column(Text(_header(ref)), justify="right" if _is_number(ref) else "left", overflow="fold")
    for record in records:
        table.add_row(*(Text(_short(ref, record), style=_style(ref, record)) for ref in shown))
    return table


def aligned(records: Sequence[RunRecord], shown: Sequence[Ref]) -> Iterator[str]:
    """The same as lines of text: for pipes, and for so many runs that drawing would take long."""
    from rich.cells import cell_len

    columns = [[_header(ref), *(_word(ref, record) for record in records)] for ref in shown]
    padded = []
    for ref, words in zip(shown, columns, strict=True):
        widths = [len(word) if word.isascii() else cell_len(word) for word in words]
        widest = min(max(widths), _WIDEST)
        before = _is_number(ref)
        fills = (" " * (widest - width) for width in widths)
        padded.append([fill + word if before else word + fill for word, fill in zip(words, fills, strict=True)])
    return ("  ".join(line).rstrip() for line in zip(*padded, strict=True))


def cell(ref: Ref, record: RunRecord) -> Text:
    """What the record holds there, for a person: local times, short numbers, control characters visible."""
    from rich.text import Text

    return Text(_word(ref, record), style=_style(ref, record))


def _style(ref: Ref, record: RunRecord) -> str:
    return _STATUS_STYLES.get(record.status, "") if ref.name == "status" else ""


def _short(ref: Ref, record: RunRecord) -> str:
    """A cell on a terminal, which a text of megabytes would fill for minutes; a pipe gets it all."""
    word = _word(ref, record)
    return word if len(word) <= _WIDEST else f"{word[: _WIDEST - 1]}…"


def _header(ref: Ref) -> str:
    return plain(ref).removesuffix("_at")


def _is_number(ref: Ref) -> bool:
    return ref.kind in (Kind.METRIC, Kind.HPARAM, Kind.NUMBER, Kind.DURATION)


def _word(ref: Ref, record: RunRecord) -> str:
    value = ref.of(record)
    if value is ...:
        return ""
    write = _WRITERS.get(ref.kind)
    if write is not None:
        return plain(write(value))
    return f"{value:.4g}" if isinstance(value, float) else plain(value)


def duration(seconds: float) -> str:
    """A span of time in its two greatest units: `45s`, `12m 05s`, `3h 20m`, `2d 4h`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"


def _local(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):
        return str(seconds)


_WRITERS: Mapping[Kind, Callable[[Any], str]] = {
    Kind.TIME: _local,
    Kind.DURATION: duration,
    Kind.TAGS: ", ".join,
}


def _print(records: Sequence[RunRecord], shown: Sequence[Ref], least: int, out: Output) -> None:
    console = out.console()
    if not console.is_terminal or len(records) > _DRAWN:
        out.lines(aligned(records, shown))
        return
    table = describe(records, shown)
    unbounded = console.options.update(max_width=1_000_000)
    while len(shown) > least and console.measure(table, options=unbounded).maximum > console.width:
        shown = shown[:-1]
        table = describe(records, shown)
    console.print(table)

"""The runs of ls, show, best and scan: read through the registry, and drawn as tables."""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from bridge.cli.output import Output, plain
from bridge.registry import open_registry
from bridge.registry.where import Kind, Ref

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from rich.table import Table

    from bridge.options import CacheOptions
    from bridge.registry import Registry, RunRecord

RECORDS_VERSION = 1
"""The version of what --json prints of records."""

_WIDEST = 1000
"""The widest column in characters. A terminal shows no more of a text, a pipe gets the whole of it."""

_STATUS_STYLES = {"running": "bold", "failed": "red", "interrupted": "magenta", "killed": "red"}
"""Of the terminal's colours only these two can be read on black and on white."""


def open_registries(runs: Sequence[Path], cache: CacheOptions, out: Output, *, full: bool = False) -> list[Registry]:
    """Scan RUNS and return a registry for each, each directory once. Messages about a cache go to stderr."""
    return [
        open_registry(
            root,
            say=out.warn,
            db_path=cache.db,
            heartbeat_timeout=cache.heartbeat_timeout,
            full=full,
            statistics=False,  # the commands complete those that are needed
        )
        for root in dict.fromkeys(map(os.path.realpath, runs))
    ]


def read_records(runs: Sequence[Path], cache: CacheOptions, out: Output) -> list[RunRecord]:
    """Scan RUNS and return a record for each run directory; print what cannot be read or is skipped."""
    registries = open_registries(runs, cache, out)
    for registry in registries:
        for run_dir, reason in registry.report.problems if registry.report else ():
            out.say(plain(f"! {run_dir}: {reason}"))
        out.say_skipped(registry.report.skipped if registry.report else ())
    return list({record.run_dir: record for registry in registries for record in registry}.values())


# ------------------------------------------------------------------------------------------------- which columns


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table of runs: its header, and a word for each run.

    Where the terminal is too narrow, columns with a greater `rank` are left out first, and those of rank 0 never.
    """

    header: str
    words: Sequence[str]
    is_number: bool = False
    rank: int = 0


def value_column(ref: Ref, records: Sequence[RunRecord], *, header: str = "", rank: int = 0) -> Column:
    """Return the column of what `ref` names."""
    words = [word_of(ref, record) for record in records]
    is_number = ref.kind in (Kind.METRIC, Kind.HPARAM, Kind.NUMBER, Kind.DURATION)
    return Column(header or plain(ref).removesuffix("_at"), words, is_number, rank)


def name_column(records: Sequence[RunRecord]) -> Column:
    """Return the column of the names.

    A beginning that all names share is left out; names that two runs have get a path.
    """
    names = [record.name for record in records]
    folders = [name.split("/")[:-1] for name in names]
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))
    start = sum(len(parts[0]) + 1 for parts in shared) if len(records) > 1 else 0
    counts = Counter(names)
    words = [
        name[start:] if counts[name] == 1 else f"{name[start:]} ({os.path.relpath(record.run_dir)})"
        for name, record in zip(names, records, strict=True)
    ]
    return Column("name", [plain(word) for word in words])


def time_column(records: Sequence[RunRecord], *, rank: int) -> Column:
    """Return the column of the starts: their ages for a terminal, times for a pipe."""
    if Output().console().is_terminal:
        return Column("age", [age(record.start) for record in records], rank=rank)
    words = ["unknown" if record.duration is None else _local_time(record.start) for record in records]
    return Column("start", words, rank=rank)


def tags_column(records: Sequence[RunRecord], *, rank: int) -> list[Column]:
    """Return the column of the tags that not all runs share; none if there are no such tags."""
    shared: frozenset[str] = frozenset()
    if len(records) > 1:
        shared = frozenset(records[0].tags).intersection(*(record.tags for record in records))
    words = [plain(", ".join(tag for tag in record.tags if tag not in shared)) for record in records]
    return [Column("tags", words, rank=rank)] if any(words) else []


def hparam_columns(records: Sequence[RunRecord], taken: Sequence[Column], ranks: Sequence[int]) -> list[Column]:
    """Return the hyperparameters in which the records differ, one for each of `ranks`; those of the most records first.

    A key whose name is the header of another column is written with `hparams.` in front.
    """
    counts = Counter(key for record in records for key in record.hparams)
    differing = [key for key in counts if len({repr(record.hparams.get(key)) for record in records}) > 1]
    differing.sort(key=lambda key: (-counts[key], key.count("."), key))
    headers = {column.header for column in taken}
    return [
        value_column(ref, records, header=plain(ref if key in headers else key), rank=rank)
        for key, rank in zip(differing, ranks, strict=False)
        for ref in [Ref(Kind.HPARAM, key)]
    ]


# ------------------------------------------------------------------------------------------------- how they are drawn


def print_columns(shown: Sequence[Column], out: Output) -> None:
    """Draw columns on a terminal, as many as fit, or write all of them as aligned lines."""
    console = out.console()
    if console.is_terminal:
        console.print(_draw(fitting(shown, console.width), console.width))
    else:
        click.echo("\n".join(_aligned(shown)))


def fitting(shown: Sequence[Column], width: int) -> list[Column]:
    """Return the columns that fit into `width` characters, in the order given: those of rank 0, then by rank.

    A column that is empty, or that does not fit and takes half of the width, leaves its room to the next.
    """
    chosen: set[int] = set()
    used = -2
    for number, each in sorted(enumerate(shown), key=lambda pair: pair[1].rank):
        size = _width(each) + 2
        if each.rank and used + size > width and size <= width // 2:
            break
        if each.rank and (used + size > width or not any(each.words)):
            continue
        chosen.add(number)
        used += size
    return [each for number, each in enumerate(shown) if number in chosen]


def _width(shown: Column) -> int:
    from rich.cells import cell_len

    return min(max(map(cell_len, (shown.header, *shown.words))), _WIDEST)


def _draw(shown: Sequence[Column], width: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for each in shown:
        table.add_column(
            Text(each.header),
            justify="right" if each.is_number else "left",
            overflow="fold",
            no_wrap=_width(each) < width // 2,
        )
    for words in zip(*(each.words for each in shown), strict=True):
        cells: list[Text] = []
        for each, word in zip(shown, words, strict=True):
            style = _STATUS_STYLES.get(word, "") if each.header == "status" else ""
            cells.append(Text(word if len(word) <= _WIDEST else f"{word[: _WIDEST - 1]}…", style=style))
        table.add_row(*cells)
    return table


def _aligned(shown: Sequence[Column]) -> Iterator[str]:
    """Yield the table as lines for a pipe: rich would take seconds for thousands of runs."""
    from rich.cells import cell_len

    padded = []
    for each in shown:
        words, widest = [each.header, *each.words], _width(each)
        fills = [" " * (widest - cell_len(word)) for word in words]
        pairs = zip(words, fills, strict=True)
        padded.append([fill + word if each.is_number else word + fill for word, fill in pairs])
    return ("  ".join(line).rstrip() for line in zip(*padded, strict=True))


# ------------------------------------------------------------------------------------------------------ single words


def word_of(ref: Ref, record: RunRecord) -> str:
    """Return what a record holds, for a person: local times, short numbers, control characters visible."""
    value = ref.of(record)
    if value is ...:
        return ""
    write = _WRITERS.get(ref.kind)
    if write is not None:
        return plain(write(value))
    return f"{value:.4g}" if isinstance(value, float) else plain(value)


def age(then: float) -> str:
    """Return how long ago `then` was: `45 s`, `3 min`, `5 h`, or within a year `28 Nov 09:16`, else `28 Nov 2025`."""
    seconds = time.time() - then
    for unit, size, most in (("s", 1, 60), ("min", 60, 3600), ("h", 3600, 86400)):
        if 0 <= seconds < most:
            return f"{int(seconds / size)} {unit}"
    local = _local(then)
    if local is None:
        return str(then)
    return f"{local.day} {local:%b %H:%M}" if abs(seconds) < 300 * 86400 else f"{local.day} {local:%b %Y}"


def duration(seconds: float) -> str:
    """Return a span of time in its two greatest units: `45s`, `12m 05s`, `3h 20m`, `2d 4h`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"


def _local_time(seconds: float) -> str:
    local = _local(seconds)
    return str(seconds) if local is None else f"{local:%Y-%m-%d %H:%M}"


def _local(seconds: float) -> datetime | None:
    """Return a time in the local zone; None for one outside of the calendar."""
    try:
        return datetime.fromtimestamp(seconds).astimezone()
    except (OverflowError, ValueError, OSError):
        return None


_WRITERS: Mapping[Kind, Callable[[Any], str]] = {
    Kind.TIME: _local_time,
    Kind.DURATION: duration,
    Kind.TAGS: ", ".join,
}

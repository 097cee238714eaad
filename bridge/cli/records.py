"""The runs of ls, show, best and scan: read through the registry, drawn as tables, written to files."""

from __future__ import annotations

import os
from collections import Counter
from datetime import datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import click

from bridge.cli.output import Output, counted, new_table, plain
from bridge.registry import open_registry
from bridge.registry.query import columns, write_csv, write_parquet
from bridge.registry.statistics import with_statistics
from bridge.registry.where import FIELDS, Kind, Ref, column

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from rich.table import Table
    from rich.text import Text

    from bridge.options import CacheOptions, TableOptions
    from bridge.registry import Registry, RunRecord

RECORDS_VERSION = 1
"""The version of what --json prints of records."""

_WIDEST = 1000
"""The widest column in characters. A terminal shows no more of a text, a pipe gets the whole of it."""

_STATUS_STYLES = {"running": "cyan", "completed": "green", "failed": "red", "interrupted": "yellow", "killed": "red"}


def open_registries(runs: Sequence[Path], cache: CacheOptions, out: Output, *, full: bool = False) -> list[Registry]:
    """Scan RUNS and return a registry for each, each directory once. Messages about a cache go to stderr."""
    roots = {os.path.realpath(path): path for path in runs}
    return [
        open_registry(
            root,
            say=out.warn,
            db_path=cache.db,
            heartbeat_timeout=cache.heartbeat_timeout,
            full=full,
            statistics=False,  # `select` and `deliver` complete those that are needed
        )
        for root in roots
    ]


def records_of(registries: Sequence[Registry], out: Output) -> list[RunRecord]:
    """Return the records of several registries, each run directory once; print which runs cannot be read."""
    for registry in registries:
        for run_dir, reason in registry.report.problems if registry.report else ():
            out.say(plain(f"! {run_dir}: {reason}"))
    return list({record.run_dir: record for registry in registries for record in registry}.values())


def parse_columns(text: str | None) -> list[Ref]:
    """Return the columns of a list with commas. Raises UsageError for one that names nothing."""
    return [column(name.strip()) for name in (text or "").split(",") if name.strip()]


def warn_of_unknown(refs: Sequence[Ref], records: Sequence[RunRecord], out: Output) -> None:
    """Print which of these metrics and hyperparameters no run has, with the nearest name that exists."""
    for ref in refs:
        if ref.kind not in (Kind.METRIC, Kind.HPARAM) or not records or any(ref.of(run) is not ... for run in records):
            continue
        if ref.kind is Kind.METRIC:
            names = {name for run in records for name in (*run.stats, *run.summary)} | set(FIELDS)
        else:
            names = {name for run in records for name in run.hparams}
        near = get_close_matches(ref.name, names, n=1)
        out.say(f"No run has {ref}" + (f"; did you mean {near[0]}?" if near else "."))


def differing_hparams(records: Sequence[RunRecord], most: int) -> list[Ref]:
    """Return at most `most` hyperparameters in which the records differ; those of the most records come first."""
    counts = Counter(key for record in records for key in record.hparams)
    differing = [key for key in counts if len({repr(record.hparams.get(key)) for record in records}) > 1]
    differing.sort(key=lambda key: (-counts[key], key.count("."), key))
    return [Ref(Kind.HPARAM, key) for key in differing[:most]]


def deliver(
    records: Sequence[RunRecord], shown: Sequence[Ref], *, least: int, table: TableOptions, out: Output
) -> None:
    """Write records to the files that were asked for, else print them as JSON or as a table of the columns `shown`.

    On a terminal too narrow for the table the last columns are left out, but never the first `least`.
    """
    if out.json or table.csv or table.parquet or any(ref.kind is Kind.METRIC for ref in shown):
        records = with_statistics(records)
    for path, write in ((table.csv, write_csv), (table.parquet, write_parquet)):
        if path is not None:
            write(columns(records), path)
            out.say(f"{counted(len(records), 'run')} written to {path}.")
    if out.json:
        out.result_json({"version": RECORDS_VERSION, "runs": [record.to_dict() for record in records]})
    elif table.csv is None and table.parquet is None:
        _print(records, shown, least, out)


def _print(records: Sequence[RunRecord], shown: Sequence[Ref], least: int, out: Output) -> None:
    console = out.console()
    if not console.is_terminal:
        click.echo("\n".join(_aligned(records, shown)))
        return
    table = _draw(records, shown)
    unbounded = console.options.update(max_width=1_000_000)
    while len(shown) > least and console.measure(table, options=unbounded).maximum > console.width:
        shown = shown[:-1]
        table = _draw(records, shown)
    console.print(table)


def _draw(records: Sequence[RunRecord], shown: Sequence[Ref]) -> Table:
    table = new_table(*(_header(ref) for ref in shown), numbers=[_is_number(ref) for ref in shown])
    for record in records:
        table.add_row(*(cell(ref, record) for ref in shown))
    return table


def _aligned(records: Sequence[RunRecord], shown: Sequence[Ref]) -> Iterator[str]:
    """Yield the table as lines for a pipe: rich would take seconds for thousands of runs."""
    from rich.cells import cell_len

    padded = []
    for ref in shown:
        words = [_header(ref), *(_word(ref, record) for record in records)]
        widths = [cell_len(word) for word in words]
        widest = min(max(widths), _WIDEST)
        fills = (" " * (widest - width) for width in widths)
        pairs = zip(words, fills, strict=True)
        padded.append([fill + word if _is_number(ref) else word + fill for word, fill in pairs])
    return ("  ".join(line).rstrip() for line in zip(*padded, strict=True))


def cell(ref: Ref, record: RunRecord) -> Text:
    """Return what a record holds, for a person: local times, short numbers, control characters visible."""
    from rich.text import Text

    word = _word(ref, record)
    word = word if len(word) <= _WIDEST else f"{word[: _WIDEST - 1]}…"
    return Text(word, style=_STATUS_STYLES.get(record.status, "") if ref.name == "status" else "")


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
    try:
        return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):
        return str(seconds)


_WRITERS: Mapping[Kind, Callable[[Any], str]] = {
    Kind.TIME: _local_time,
    Kind.DURATION: duration,
    Kind.TAGS: ", ".join,
}

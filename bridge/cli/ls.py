"""`bridge ls`: the runs in a table; and `bridge best`: those with the best values of a metric."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec.structs import replace

from bridge.cli.command import command, complete_metrics
from bridge.cli.output import Exit, Output
from bridge.cli.records import (
    RECORDS_VERSION,
    Column,
    hparam_columns,
    name_column,
    print_columns,
    read_records,
    tags_column,
    time_column,
    value_column,
)
from bridge.errors import counted
from bridge.model import Status
from bridge.options import CacheOptions, FilterOptions, SelectionOptions, TableOptions
from bridge.registry.query import csv_table, ordered, parquet_table, unknown_refs
from bridge.registry.store import with_statistics
from bridge.registry.where import Kind, Ref, column
from bridge.sync.select import Selection, Top, describe_left_out, explain_none, select, sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridge.registry import RunRecord


@command(
    "ls", example="bridge ls demo-runs --where 'hparams.lr < 0.1'", exits=(Exit.DONE, Exit.NOTHING_DONE, Exit.USAGE)
)
@click.option("--alive", "liveness", flag_value="running", help="Only runs that are running.")
@click.option(
    "--dead", "liveness", flag_value="killed", help="Only runs whose heartbeat stopped while they were running."
)
@click.option("-n", "limit", type=click.IntRange(min=1), metavar="N", help="At most N runs.")
@click.option(
    "--sort",
    metavar="NAME",
    shell_complete=complete_metrics,
    help="Order by a metric (greatest first), or by a field or hparams.x (smallest first). Default: newest first.",
)
@click.option("--reverse", is_flag=True, help="Reverse the order.")
def ls(
    runs: tuple[Path, ...],
    selection: SelectionOptions,
    table: TableOptions,
    cache: CacheOptions,
    liveness: str | None,
    limit: int | None,
    sort: str | None,
    reverse: bool,
    out: Output,
) -> int:
    """List runs, the newest first."""
    selected_by = Selection.of(selection)
    if liveness:
        selected_by = replace(selected_by, statuses=(Status(liveness),))
    return _list(runs, selected_by, table, cache, out, sort=sort, reverse=reverse, limit=limit)


@command("best", example="bridge best val/acc demo-runs -n 3", exits=(Exit.DONE, Exit.NOTHING_DONE, Exit.USAGE))
@click.argument("metric", shell_complete=complete_metrics)
@click.option("--min", "smallest", is_flag=True, help="The smallest value is the best.")
@click.option("--last", is_flag=True, help="Rank by the last value, not by the best one ever.")
@click.option("-n", "limit", type=click.IntRange(min=1), default=10, show_default=True, metavar="N", help="N runs.")
def best(
    metric: str,
    runs: tuple[Path, ...],
    selection: FilterOptions,
    table: TableOptions,
    cache: CacheOptions,
    smallest: bool,
    last: bool,
    limit: int,
    out: Output,
) -> int:
    """List the runs with the best values of a metric.

    Only runs that completed, or whose status is unknown, take part, unless --status asks for others.
    """
    if Path(metric).is_dir() and not all(path.exists() for path in runs):
        raise click.UsageError(f"The metric comes first: bridge best {runs[-1]} {metric}")
    name, _, mode = metric.rpartition(":")
    if name and mode in ("max", "min"):  # as --top and --best take it
        metric, smallest = name, smallest or mode == "min"
    top = Top(count=limit, metric=metric, mode="min" if smallest else "max", last=last)
    return _list(runs, replace(Selection.of(selection), top=top), table, cache, out)


def _list(
    runs: tuple[Path, ...],
    selection: Selection,
    table: TableOptions,
    cache: CacheOptions,
    out: Output,
    *,
    sort: str | None = None,
    reverse: bool = False,
    limit: int | None = None,
) -> int:
    """Print the selected runs and return the exit code, which is 1 if no run has what is asked for."""
    by = column(sort) if sort else None
    shown = [column(name.strip()) for name in (table.columns or "").split(",") if name.strip()]
    records = read_records(runs, cache, out)
    records.sort(key=lambda record: (-record.start, record.run_dir))
    selected = select(records, selection)
    unknown = unknown_refs(records, [*([by] if by else []), *shown]) if records else []
    for text in unknown:
        out.warn(sentence(text))
    chosen = list(selected)
    if by:
        is_metric = by.kind is Kind.METRIC
        chosen = ordered(with_statistics(chosen) if is_metric else chosen, by, descending=is_metric is not reverse)
    elif reverse:
        chosen.reverse()
    chosen = chosen[:limit]
    if chosen or out.json or table.csv or table.parquet:
        _print(chosen, shown, selection.top, table, out)
    if not selected:
        no_match = explain_none(records, selection, runs)
        return out.say_no_match(no_match.text, Exit.NOTHING_DONE if no_match.unknown else Exit.DONE)
    of = f"{len(chosen):,} of " if len(chosen) != len(records) else ""
    out.say(f"{of}{counted(len(records), 'run')}.")
    if left_out := describe_left_out(records, selection):
        out.say(left_out)
    return Exit.NOTHING_DONE if unknown else Exit.DONE


def _print(records: list[RunRecord], refs: Sequence[Ref], top: Top | None, table: TableOptions, out: Output) -> None:
    """Write records to the files that were asked for, else print them as JSON, or as a table of what `refs` name."""
    if not refs or out.json or table.csv or table.parquet or any(ref.kind is Kind.METRIC for ref in refs):
        records = with_statistics(records)
    files = [(table.csv, lambda: csv_table(records)), (table.parquet, lambda: parquet_table(records))]
    out.save(counted(len(records), "run"), files)
    if out.json:
        out.result_json({"version": RECORDS_VERSION, "runs": [record.to_dict() for record in records]})
    elif not (table.csv or table.parquet):
        print_columns([value_column(ref, records) for ref in refs] or _columns(records, top), out)


def _columns(records: Sequence[RunRecord], top: Top | None) -> list[Column]:
    """Return the columns shown where none are asked for.

    A wide terminal shows all of them, a narrow one those of low rank. Of ranked runs the value comes first, then its
    step and the hyperparameters that differ.
    """
    if top:
        values = [value_column(top.ref, records)]
        if not top.last:
            step = Ref(Kind.METRIC, top.metric, f"{top.mode}_step")
            values.append(value_column(step, records, header="at step", rank=3))
            values.append(value_column(Ref(Kind.METRIC, top.metric), records, header="last", rank=5))
        status = value_column(column("status"), records, rank=4)
        return [
            name_column(records),
            *values,
            *hparam_columns(records, values, ranks=(1, 2, 6, 7)),
            *([status] if len({record.status for record in records}) > 1 else []),
            time_column(records, rank=8),
            value_column(column("duration"), records, rank=9),
        ]
    ranked = zip(_telling(records, most=3), (1, 4, 6), strict=False)
    values = [value_column(ref, records, rank=rank) for ref, rank in ranked]
    return [
        name_column(records),
        value_column(column("status"), records),
        *([value_column(column("kind"), records, rank=2)] if len({record.kind for record in records}) > 1 else []),
        time_column(records, rank=1),
        value_column(column("duration"), records, rank=3),
        *values,
        *hparam_columns(records, values, ranks=(2, 5, 7)),
        *tags_column(records, rank=8),
    ]


def _telling(records: Sequence[RunRecord], most: int) -> list[Ref]:
    """Return the most telling metrics: validation before training, those of many runs before those of few."""
    counts = Counter(name for record in records for name in {*record.summary, *record.stats})
    names = [name for name in counts if name not in ("epoch", "step", "lr") and not name.startswith("lr-")]
    names.sort(key=lambda name: (not name.startswith("val"), -counts[name], name))
    return [Ref(Kind.METRIC, name) for name in names[:most]]

"""`bridge ls`: the runs in a table."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bridge.cli.command import command, complete_metrics
from bridge.cli.export import print_no_match
from bridge.cli.output import Exit, Output
from bridge.cli.records import (
    Column,
    deliver,
    hparam_columns,
    name_column,
    parse_columns,
    read_records,
    tags_column,
    time_column,
    value_column,
    warn_of_unknown,
)
from bridge.errors import counted
from bridge.model import Status
from bridge.options import CacheOptions, SelectionOptions, TableOptions
from bridge.registry.query import ordered
from bridge.registry.store import with_statistics
from bridge.registry.where import Kind, Ref, column
from bridge.sync.report import NoMatch
from bridge.sync.select import Selection, describe_left_out, explain_none, select

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
    by = column(sort) if sort else None
    shown = parse_columns(table.columns)
    chosen_by = Selection.of(selection)
    if liveness:
        chosen_by = replace(chosen_by, statuses=(Status(liveness),))
    records = read_records(runs, cache, out)
    records.sort(key=lambda record: (-record.start, record.run_dir))
    chosen = select(records, chosen_by)
    no_match = NoMatch() if chosen else explain_none(records, chosen_by, runs)
    unknown = warn_of_unknown([by] if by else [], records, out)
    if by:
        is_metric = by.kind is Kind.METRIC
        chosen = ordered(with_statistics(chosen) if is_metric else chosen, by, descending=is_metric is not reverse)
    elif reverse:
        chosen.reverse()
    chosen = chosen[:limit]
    unknown = warn_of_unknown(shown, records, out) or unknown
    if chosen or out.json or table.csv or table.parquet:
        deliver(chosen, shown, lambda found: _columns(found, chosen_by), table=table, out=out)
    if no_match.text:
        print_no_match(no_match, out)
        return Exit.NOTHING_DONE if no_match.unknown else Exit.DONE
    out.say(
        f"{len(chosen):,} of {counted(len(records), 'run')}."
        if len(chosen) != len(records)
        else f"{counted(len(records), 'run')}."
    )
    if left_out := describe_left_out(records, chosen_by):
        out.say(left_out)
    return Exit.NOTHING_DONE if unknown else Exit.DONE


def _columns(records: Sequence[RunRecord], selection: Selection) -> list[Column]:
    """Return the columns shown where none are asked for.

    A wide terminal shows all of them, a narrow one those of low rank.
    """
    if not records:
        return []
    top = selection.top
    metrics = [Ref(Kind.METRIC, top.metric, "last" if top.last else top.mode)] if top else _telling(records, most=3)
    values = [value_column(ref, records, rank=rank) for ref, rank in zip(metrics, (1, 4, 6), strict=False)]
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

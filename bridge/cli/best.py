"""`bridge best`: the runs with the best values of a metric."""

from __future__ import annotations

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
    time_column,
    value_column,
    warn_of_unknown,
)
from bridge.options import CacheOptions, FilterOptions, TableOptions
from bridge.registry.where import Kind, Ref, column
from bridge.sync.select import Selection, Top, describe_left_out, explain_none, select

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridge.registry import RunRecord


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
    shown = parse_columns(table.columns)
    filters = Selection.of(selection)
    records = read_records(runs, cache, out)
    chosen = select(records, replace(filters, top=top))
    if not chosen:
        no_match = explain_none(records, replace(filters, top=top), runs)
        print_no_match(no_match, out)
        if out.json:
            deliver(chosen, shown, lambda _: [], table=table, out=out)
        return Exit.NOTHING_DONE if no_match.unknown else Exit.DONE
    unknown = warn_of_unknown(shown, records, out)
    left_out = describe_left_out(records, replace(filters, top=top))
    deliver(chosen, shown, lambda found: _columns(top, found), table=table, out=out)
    if left_out:
        out.say(left_out)
    return Exit.NOTHING_DONE if unknown else Exit.DONE


def _columns(top: Top, records: Sequence[RunRecord]) -> list[Column]:
    """Return the columns: the ranked value first, then its step, the hyperparameters that differ, and the rest."""
    ranked = value_column(Ref(Kind.METRIC, top.metric, "last" if top.last else top.mode), records)
    beside = [
        value_column(Ref(Kind.METRIC, top.metric, f"{top.mode}_step"), records, header="at step", rank=3),
        value_column(Ref(Kind.METRIC, top.metric), records, header="last", rank=5),
    ]
    hparams = hparam_columns(records, [ranked, *beside], ranks=(1, 2, 6, 7))
    differ = len({record.status for record in records}) > 1
    return [
        name_column(records),
        ranked,
        *([] if top.last else beside),
        *hparams,
        *([value_column(column("status"), records, rank=4)] if differ else []),
        time_column(records, rank=8),
        value_column(column("duration"), records, rank=9),
    ]

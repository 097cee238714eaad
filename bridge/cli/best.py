"""`bridge best`: the runs that reached the best value of a metric."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from bridge.cli.columns import file_options, parse_columns, varying, warn_of_unknown
from bridge.cli.common import Exit, Output, command, filter_options, output_options, runs_argument
from bridge.cli.complete import complete_metrics
from bridge.cli.records import cache_options, deliver, open_all, records_of
from bridge.model import Status
from bridge.registry.refs import Kind, Ref, column
from bridge.sync.select import Top, select

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bridge.registry.record import RunRecord
    from bridge.sync.select import Selection

__all__ = ["best"]


@command("best", example="bridge best val/acc . -n 3", exits=(Exit.DONE, Exit.NOTHING_DONE, Exit.USAGE))
@click.argument("metric", shell_complete=complete_metrics)
@runs_argument
@click.option("--min", "smallest", is_flag=True, help="The smallest value is the best.")
@click.option("--last", is_flag=True, help="Rank by the last value, not by the best one ever.")
@click.option("-n", "limit", type=click.IntRange(min=1), default=10, show_default=True, metavar="N", help="N runs.")
@filter_options
@file_options
@cache_options
@output_options
def best(
    metric: str,
    runs: tuple[Path, ...],
    smallest: bool,
    last: bool,
    limit: int,
    selection: Selection,
    columns: str | None,
    csv: Path | None,
    parquet: Path | None,
    opening: dict[str, Any],
    out: Output,
) -> int:
    """List the runs that reached the best value of a metric; completed ones, unless --status asks for others."""
    top = Top(count=limit, metric=metric, mode="min" if smallest else "max", last=last)
    shown = parse_columns(columns) if columns else None
    records = records_of(open_all(runs, out=out, **opening), out=out)
    chosen = select(records, replace(selection, top=top))
    if not chosen:
        _tell_why_not(top, selection, records, out)
        if not out.json:
            return Exit.NOTHING_DONE
    least = len(shown) if shown else 2
    deliver(chosen, shown or [*_columns(top), *varying(chosen, most=4)], least=least, out=out, csv=csv, parquet=parquet)
    return Exit.DONE if chosen else Exit.NOTHING_DONE


def _columns(top: Top) -> list[Ref]:
    ranked = Ref(Kind.METRIC, top.metric, "last" if top.last else top.mode)
    beside = [] if top.last else [Ref(Kind.METRIC, top.metric, f"{top.mode}_step"), Ref(Kind.METRIC, top.metric)]
    return [column("run_id"), ranked, *beside, column("status"), column("created_at"), column("duration")]


def _tell_why_not(top: Top, selection: Selection, records: Sequence[RunRecord], out: Output) -> None:
    warn_of_unknown([Ref(Kind.METRIC, top.metric, "last" if top.last else top.mode)], records, out)
    any_status = replace(selection, statuses=tuple(Status), top=replace(top, count=max(1, len(records))))
    others = len(select(records, any_status))
    more = f"; {others} of another status do, see --status" if others and not selection.statuses else ""
    out.say(f"None of {len(records)} runs that were asked for has a value of {top.metric}{more}.")

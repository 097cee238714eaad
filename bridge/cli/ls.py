"""`bridge ls`: the runs in a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from bridge.cli.columns import default_columns, file_options, parse_columns, warn_of_unknown
from bridge.cli.common import Exit, Output, command, counted, output_options, runs_argument, selection_options
from bridge.cli.complete import complete_metrics
from bridge.cli.records import cache_options, deliver, open_all, records_of
from bridge.registry.order import ordered
from bridge.registry.refs import column
from bridge.sync.select import select

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bridge.sync.select import Selection

__all__ = ["ls"]


@command("ls", example="bridge ls . --where 'hparams.lr < 0.1' -n 10", exits=(Exit.DONE, Exit.NOTHING_DONE, Exit.USAGE))
@runs_argument
@selection_options
@click.option("--alive", "liveness", flag_value="running", help="Runs that are running.")
@click.option("--dead", "liveness", flag_value="killed", help="Runs that say they are running, without sign of life.")
@click.option("-n", "limit", type=click.IntRange(min=1), metavar="N", help="At most N runs.")
@click.option(
    "--sort",
    metavar="NAME",
    shell_complete=complete_metrics,
    help="Order by a field, metric or hparams.x; default: newest first.",
)
@click.option("--reverse", is_flag=True, help="Turn the order round.")
@file_options
@cache_options
@output_options
def ls(
    runs: tuple[Path, ...],
    selection: Selection,
    liveness: str | None,
    limit: int | None,
    sort: str | None,
    reverse: bool,
    columns: str | None,
    csv: Path | None,
    parquet: Path | None,
    opening: dict[str, Any],
    out: Output,
) -> None:
    """List runs."""
    by = column(sort) if sort else None
    shown = parse_columns(columns) if columns else None
    records = records_of(open_all(runs, out=out, **opening), out=out)
    records.sort(key=lambda record: (-record.start, record.run_dir))
    chosen = [record for record in select(records, selection) if liveness in (None, str(record.status))]
    if by:
        warn_of_unknown([by], records, out)
        chosen = ordered(chosen, by, descending=reverse)
    elif reverse:
        chosen.reverse()
    chosen = chosen[:limit]
    if shown:
        warn_of_unknown(shown, records, out)
    least = len(shown) if shown else 4
    deliver(chosen, shown or default_columns(chosen, selection), least=least, out=out, csv=csv, parquet=parquet)
    out.say(_count(len(chosen), len(records), runs))


def _count(chosen: int, found: int, runs: Sequence[Path]) -> str:
    if not found:
        return f"No runs in {', '.join(map(str, runs))}."
    return f"{chosen:,} of {counted(found, 'run')}." if chosen != found else f"{counted(found, 'run')}."

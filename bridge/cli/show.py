"""`bridge show`: one run in full."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bridge.cli.common import Exit, Output, command, output_options, plain, runs_argument
from bridge.cli.complete import complete_run_ids
from bridge.cli.records import RECORDS_VERSION, cache_options, cell, open_all, records_of
from bridge.errors import RunDirectoryError, UsageError
from bridge.registry.refs import Kind, Ref, column

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from bridge.registry.record import RunRecord

__all__ = ["show"]

_FACTS = (
    "run_id", "name", "status", "created_at", "ended_at", "duration", "heartbeat", "tags", "notes", "parent",
    "archived", "sessions", "checkpoint_path", "run_dir", "identity",
)  # fmt: skip
_MOST_NAMED = 10
_STATISTICS = ("last", "max", "max_step", "min", "min_step", "count", "nan_count")


@command("show", example="bridge show demo-runs/lr-0.1", exits=(Exit.DONE, Exit.NOTHING_DONE, Exit.USAGE))
@click.argument("run", shell_complete=complete_run_ids)
@runs_argument
@cache_options
@output_options
def show(run: str, runs: tuple[Path, ...], opening: dict[str, Any], out: Output) -> None:
    """Show one run in full: RUN is a run directory, or the id of a run found in RUNS."""
    record = _find(run, runs, opening, out)
    if out.json:
        out.result_json({"version": RECORDS_VERSION, "run": record.to_dict()})
        return
    tables = [table for table in (_facts(record), _hparams(record), _metrics(record)) if table.row_count]
    console = out.console()
    if console.is_terminal:
        console.print(*tables, sep="")
        return
    with console.capture() as drawn:
        console.print(*tables, sep="")
    out.lines(line.rstrip() for line in drawn.get().splitlines())


def _find(run: str, runs: Sequence[Path], opening: dict[str, Any], out: Output) -> RunRecord:
    """The one run that is meant. Raises UsageError where there is none, or several."""
    if os.path.isdir(run):  # noqa: PTH112 - also of what is no path at all
        (registry,) = open_all([Path(run)], out=out, **opening)
        return _only(run, list(registry), registry.report.problems if registry.report else ())
    registries = open_all(runs, out=out, **opening)
    records = records_of(registries, out=out)
    for fits in (_is, _ends_so, _begins_so):
        found = [record for record in records if fits(record, run)]
        if found:
            return _only(run, found, ())
    raise UsageError(f"No run {run!r} in {', '.join(map(str, runs))}.", hint="bridge ls lists what there is.")


def _only(run: str, found: Sequence[RunRecord], problems: Sequence[tuple[str, str]]) -> RunRecord:
    if len(found) == 1:
        return found[0]
    if not found and problems:
        raise RunDirectoryError(problems[0][1])
    if not found:
        raise UsageError(f"{run} holds no run.", hint="bridge ls lists what there is.")
    shown = "\n".join(f"  {record.run_dir}" for record in found[:_MOST_NAMED])
    more = f"\n  and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    raise UsageError(f"{run!r} can mean {len(found)} runs:\n{shown}{more}", hint="Give the run's directory.")


def _is(record: RunRecord, run: str) -> bool:
    return run in (record.run_id, record.identity)


def _ends_so(record: RunRecord, run: str) -> bool:
    return f"/{record.run_id}".endswith(f"/{run}") or record.name == run


def _begins_so(record: RunRecord, run: str) -> bool:
    return record.run_id.startswith(run)


def _facts(record: RunRecord) -> Table:
    table = _table()
    for name in _FACTS:
        ref = column(name)
        if ref.of(record) not in (..., "", (), False):
            table.add_row(name, cell(ref, record))
    return table


def _hparams(record: RunRecord) -> Table:
    table = _table("hparam", "value")
    for key in sorted(record.hparams):
        table.add_row(plain(key), cell(Ref(Kind.HPARAM, key), record))
    return table


def _metrics(record: RunRecord) -> Table:
    table = _table("metric", *_STATISTICS)
    for name in sorted({*record.summary, *record.stats}):
        table.add_row(plain(name), *(cell(Ref(Kind.METRIC, name, statistic), record) for statistic in _STATISTICS))
    return table


def _table(*headers: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(*headers, box=box.SIMPLE_HEAD, pad_edge=False, show_header=bool(headers))
    if not headers:
        table.add_column(style="bold")
        table.add_column(overflow="fold")
    for each in table.columns[1:] if len(headers) > 2 else ():
        each.justify = "right"
    return table

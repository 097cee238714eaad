"""`bridge show`: one run in full."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bridge.cli.command import command, complete_run_ids
from bridge.cli.output import Exit, Output, new_table, plain
from bridge.cli.records import RECORDS_VERSION, cell, open_registries, records_of
from bridge.errors import RunDirectoryError, UsageError
from bridge.options import CacheOptions
from bridge.registry.statistics import with_statistics
from bridge.registry.where import Kind, Ref, column

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from bridge.registry import RunRecord

_FACTS = (
    "run_id", "name", "status", "created_at", "ended_at", "duration", "heartbeat", "tags", "notes", "parent",
    "archived", "sessions", "checkpoint_path", "run_dir", "identity",
)  # fmt: skip
_MOST_NAMED = 10
_STATISTICS = ("last", "max", "max_step", "min", "min_step", "count", "nan_count")


@command("show", example="bridge show demo-runs/lr-0.1", exits=(Exit.DONE, Exit.NOTHING_DONE, Exit.USAGE))
@click.argument("run", shell_complete=complete_run_ids)
def show(run: str, runs: tuple[Path, ...], cache: CacheOptions, out: Output) -> None:
    """Show one run in full: RUN is a run directory, or the id of a run found in RUNS."""
    (record,) = with_statistics([find_run(run, runs, cache, out)])
    if out.json:
        out.result_json({"version": RECORDS_VERSION, "run": record.to_dict()})
        return
    out.tables(table for table in (_facts(record), _hparams(record), _metrics(record)) if table.row_count)


def find_run(run: str, runs: Sequence[Path], cache: CacheOptions, out: Output) -> RunRecord:
    """Return the one run that `run` names. Raises UsageError where there is none, or several."""
    if os.path.isdir(run):  # noqa: PTH112 - Path refuses what is no path at all
        (registry,) = open_registries([Path(run)], cache, out)
        return _only(run, list(registry), registry.report.problems if registry.report else ())
    records = records_of(open_registries(runs, cache, out), out)
    for fits in (_is, _ends_so, _begins_so):
        found = [record for record in records if fits(record, run)]
        if found:
            return _only(run, found, ())
    raise UsageError(f"No run {run!r} in {', '.join(map(str, runs))}.", hint="bridge ls lists the runs.")


def _only(run: str, found: Sequence[RunRecord], problems: Sequence[tuple[str, str]]) -> RunRecord:
    if len(found) == 1:
        return found[0]
    if not found and problems:
        raise RunDirectoryError(problems[0][1])
    if not found:
        raise UsageError(f"{run} holds no run.", hint="bridge ls lists the runs.")
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
    table = new_table()
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name in _FACTS:
        ref = column(name)
        if ref.of(record) not in (..., "", (), False):
            table.add_row(name, cell(ref, record))
    return table


def _hparams(record: RunRecord) -> Table:
    table = new_table("hparam", "value")
    for key in sorted(record.hparams):
        table.add_row(plain(key), cell(Ref(Kind.HPARAM, key), record))
    return table


def _metrics(record: RunRecord) -> Table:
    table = new_table("metric", *_STATISTICS, numbers=(False, *(True for _ in _STATISTICS)))
    for name in sorted({*record.summary, *record.stats}):
        table.add_row(plain(name), *(cell(Ref(Kind.METRIC, name, statistic), record) for statistic in _STATISTICS))
    return table

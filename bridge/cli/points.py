"""`bridge points`: the points of one run, for plots and scripts."""

from __future__ import annotations

from pathlib import Path

import click

from bridge.cli.command import File, command, complete_metrics, complete_run_ids
from bridge.cli.output import STDOUT, Exit, Output
from bridge.cli.show import find_run
from bridge.errors import counted
from bridge.options import CacheOptions


@command(
    "points",
    example="bridge points preempted demo-runs --csv points.csv",
    exits=(Exit.DONE, Exit.NOTHING_DONE, Exit.USAGE),
)
@click.argument("run", shell_complete=complete_run_ids)
@click.option(
    "--metrics", multiple=True, metavar="GLOB", shell_complete=complete_metrics, help="Only these metrics; may repeat."
)
@click.option("--csv", type=File(), metavar="FILE", help="Write FILE as CSV.")
@click.option("--parquet", type=File(), metavar="FILE", help="Write FILE as Parquet.")
def points(
    run: str,
    runs: tuple[Path, ...],
    cache: CacheOptions,
    metrics: tuple[str, ...],
    csv: Path | None,
    parquet: Path | None,
    out: Output,
) -> int:
    """Print the points of one run as CSV, or write them to a file.

    If a requeued job logged a step twice, the second value is printed, as in every target. RUN is a run directory, or
    the id of a run found in RUNS. The columns are metric, step, time and value.
    """
    from bridge.api import read_points
    from bridge.rundir.points import csv_points, json_columns, parquet_points

    record = find_run(run, runs, cache, out)
    table = read_points(record, metrics or None, arrow=True)
    if out.json:
        out.result_json({"version": 1, "points": json_columns(table)})
    elif not (csv or parquet):
        csv = STDOUT
    files = [(csv, lambda: csv_points(table)), (parquet, lambda: parquet_points(table))]
    out.save(counted(table.num_rows, "point"), files)
    if table.num_rows:
        return Exit.DONE
    matching = f" of metrics that match {' or '.join(metrics)}" if metrics else ""
    out.warn(f"{record.run_id} has no points{matching}.")
    return Exit.NOTHING_DONE

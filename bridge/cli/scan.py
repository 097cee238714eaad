"""`bridge scan`: bring the cache of runs up to date."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from bridge.cli.common import Exit, Output, command, counted, output_options, plain, runs_argument
from bridge.cli.records import RECORDS_VERSION, cache_options, open_all

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.registry.scanner import ScanReport

__all__ = ["scan"]


@command("scan", example="bridge scan .", exits=(Exit.DONE, Exit.NOTHING_DONE, Exit.USAGE, Exit.SOME_FAILED))
@runs_argument
@click.option("--full", is_flag=True, help="Read every run again and forget what is gone.")
@cache_options
@output_options
def scan(runs: tuple[Path, ...], full: bool, opening: dict[str, Any], out: Output) -> int:
    """Bring the cache of runs up to date."""
    reports = [registry.report for registry in open_all(runs, out=out, full=full, **opening) if registry.report]
    for report in reports:
        for run_dir, reason in report.problems:
            out.warn(plain(f"! {run_dir}: {reason}"))
    if out.json:
        out.result_json({"version": RECORDS_VERSION, "scans": [report.to_dict() for report in reports]})
    else:
        for report in reports:
            out.result(plain(_line(report)))
    if not any(report.invalid for report in reports):
        return Exit.DONE
    return Exit.SOME_FAILED if any(report.total > report.invalid for report in reports) else Exit.NOTHING_DONE


def _line(report: ScanReport) -> str:
    return (
        f"{report.root}: {counted(report.total, 'run')}, {report.upserted} read, {report.unchanged} unchanged, "
        f"{report.invalid} invalid, {report.orphaned} orphaned, {report.seconds:.2f} s"
    )

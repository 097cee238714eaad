"""`bridge scan`: update the cache of runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bridge.cli.command import command
from bridge.cli.output import Exit, Output, plain
from bridge.cli.records import RECORDS_VERSION, open_registries
from bridge.errors import counted
from bridge.options import CacheOptions

if TYPE_CHECKING:
    from bridge.registry import ScanReport


@command("scan", example="bridge scan demo-runs", exits=(Exit.DONE, Exit.NOTHING_DONE, Exit.USAGE, Exit.SOME_FAILED))
@click.option("--full", is_flag=True, help="Read every run again and forget what is gone.")
def scan(runs: tuple[Path, ...], cache: CacheOptions, full: bool, out: Output) -> int:
    """Update the cache of runs."""
    registries = open_registries(runs, cache, out, full=full)
    reports = [registry.report for registry in registries if registry.report]
    for report in reports:
        for run_dir, reason in report.problems:
            out.warn(plain(f"! {run_dir}: {reason}"))
        out.say_skipped(report.skipped)
    if out.json:
        out.result_json({"version": RECORDS_VERSION, "scans": [report.to_dict() for report in reports]})
    else:
        for report in reports:
            out.result(plain(_line(report)))
    if not any(report.invalid for report in reports):
        return Exit.DONE
    return Exit.SOME_FAILED if any(report.total > report.invalid for report in reports) else Exit.NOTHING_DONE


def _line(report: ScanReport) -> str:
    counts = [
        (report.upserted, "read"),
        (report.unchanged, "unchanged"),
        (report.invalid, "unreadable"),
        (report.orphaned, "gone"),
    ]
    said = ", ".join(f"{count:,} {word}" for count, word in counts if count)
    return f"{counted(report.total, 'run')} in {report.root}{f' ({said})' if said else ''}, {report.seconds:.2f} s"

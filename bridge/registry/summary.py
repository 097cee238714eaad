"""Statistics for runs whose logger wrote none: computed from their metrics.csv."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bridge.model import Run

__all__ = ["with_summary"]


def with_summary(run: Run) -> Run:
    """`run`, where it has neither a sidecar nor statistics with those that its metrics.csv gives.

    Raises RunDirectoryError where that cannot be read.
    """
    if run.summary_stats or "sidecar.json" in run.files or "metrics.csv" not in run.files:
        return run
    from bridge.rundir import read_summary

    stats = read_summary(run)
    return replace(run, summary_stats=stats, summary={name: entry["last"] for name, entry in stats.items()})

"""The design's status table, MLflow's column, and times in MLflow's milliseconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.model import Status

if TYPE_CHECKING:
    from bridge.model import Run

__all__ = ["STATUSES", "end_of", "millis", "start_of"]

STATUSES = {
    Status.RUNNING: "RUNNING",
    Status.COMPLETED: "FINISHED",
    Status.FAILED: "FAILED",
    Status.INTERRUPTED: "KILLED",
    Status.KILLED: "KILLED",
    Status.UNKNOWN: "FINISHED",
}
"""MLflow's word for each status."""


def millis(seconds: float) -> int:
    """Seconds since the epoch as MLflow's whole milliseconds, to the nearest; a tie goes to the even one, as numpy's."""
    return round(seconds * 1000.0)


def start_of(run: Run) -> int:
    """When the run began."""
    return millis(run.start)


def end_of(run: Run) -> int | None:
    """When the run ended; None while it is running."""
    return None if run.end is None else millis(run.end)

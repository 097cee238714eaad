"""What summary.json says of a metric, as far as it can be read: numbers that a float holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.model import Notice, NoticeKind
from bridge.rundir.fields import number

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["readable", "unreadable"]

_MOST_NAMED = 100
"""Values that are named one by one; more are counted."""


def readable(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The statistics in `entry` that are numbers, as they stand there, or None; the others are left out.

    A whole number that no float holds is none of them: whoever ranks, draws or stores it needs a float.
    """
    return {key: value for key, value in entry.items() if value is None or number(value) is not None}


def unreadable(metrics: Mapping[str, Mapping[str, Any]]) -> list[Notice]:
    """A notice for each of the values in `metrics` that `readable` leaves out."""
    found = [
        Notice(NoticeKind.LEFT_OUT, f"summary.json: {metric}.{key}", _reason(value))
        for metric, entry in metrics.items()
        for key, value in entry.items()
        if value is not None and number(value) is None
    ]
    more = len(found) - _MOST_NAMED
    if more <= 0:
        return found
    return [*found[:_MOST_NAMED], Notice(NoticeKind.LEFT_OUT, "summary.json", "further unreadable values", more)]


def _reason(value: object) -> str:
    return "is too large for a number" if isinstance(value, int) else f"is a {type(value).__name__}, not a number"

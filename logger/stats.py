"""Running statistics of metrics, as `summary.json` holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from logger.values import restore_number

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MetricStats"]


class MetricStats:
    """What is known of one metric: all values that were ever logged count, whatever process logged them.

    `last` is the last value, also where it is NaN; `min` and `max` are those of the values that are numbers, `min_step`
    and `max_step` the steps where they were first reached. `count` counts all values, `nan_count` those that are NaN.
    """

    __slots__ = ("count", "first_nan_step", "last", "max", "max_step", "min", "min_step", "nan_count")

    def __init__(self) -> None:
        self.last: float | None = None
        self.min: float | None = None
        self.max: float | None = None
        self.count = 0
        self.min_step: int | None = None
        self.max_step: int | None = None
        self.nan_count = 0
        self.first_nan_step: int | None = None

    def add(self, value: float, step: int) -> None:
        """Take in one more value. NaN moves neither `min` nor `max`; infinities do."""
        self.last = value
        self.count += 1
        if value != value:  # noqa: PLR0124 - NaN; this runs for every point, math.isnan is twice as slow and fails for huge ints
            self.nan_count += 1
            if self.first_nan_step is None:
                self.first_nan_step = step
            return
        if self.min is None or value < self.min:
            self.min, self.min_step = value, step
        if self.max is None or value > self.max:
            self.max, self.max_step = value, step

    def as_dict(self) -> dict[str, Any]:
        """The statistics as `summary.json` holds them."""
        return {
            "last": self.last,
            "min": self.min,
            "max": self.max,
            "count": self.count,
            "min_step": self.min_step,
            "max_step": self.max_step,
            "nan_count": self.nan_count,
            "first_nan_step": self.first_nan_step,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The statistics in `data`; what is missing or of a wrong type is unknown."""
        stats = cls()
        for name in ("last", "min", "max"):
            value = restore_number(data.get(name))
            setattr(stats, name, value if _is_number(value) else None)
        for name in ("min_step", "max_step", "first_nan_step"):
            value = data.get(name)
            setattr(stats, name, value if isinstance(value, int) else None)
        for name in ("count", "nan_count"):
            value = data.get(name)
            setattr(stats, name, value if isinstance(value, int) else 0)
        if stats.min is not None and stats.min != stats.min:  # NaN, as other writers left it
            stats.min = stats.max = None
        return stats


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

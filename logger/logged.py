"""What one log call gives: the cells of its row, and its part of the statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from logger.sidecar import MetricStats
from logger.values import cell_number, cell_text, number

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Logged", "taken"]


class Logged(NamedTuple):
    """Names and cells side by side: numbers, texts, and None for an empty one; `epoch` where that was logged."""

    names: tuple[str, ...]
    cells: list[float | str | None]
    epoch: float | None


def taken(metrics: Mapping[str, Any], step: int, stats: dict[str, MetricStats]) -> Logged:
    """`metrics` of any kind as cells; what is a number, to readers of the cell too, is added to `stats`.

    What is no scalar becomes its text at once: an array may be changed before the row is written.
    """
    names: list[str] = []
    cells: list[float | str | None] = []
    epoch = None
    for key, value in metrics.items():
        name = key if type(key) is str else str(key)
        if name == "step":  # Lightning's column of that name is the row's own step
            continue
        cell: float | str | None
        scalar = value if type(value) is float else number(value)
        if scalar is None:
            cell = None if value is None else cell_text(value)
            scalar = None if cell is None else cell_number(cell)
        else:
            cell = scalar = int(scalar) if type(scalar) is bool else scalar
        if scalar is not None:
            known = stats.get(name)
            if known is None:
                known = stats[name] = MetricStats()
            known.add(scalar, step)
            if name == "epoch":
                epoch = scalar
        names.append(name)
        cells.append(cell)
    return Logged(tuple(names), cells, epoch)

"""Turn one log call into a row of metrics.csv and a part of the statistics."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from logger.sidecar import MetricStats
from logger.values import cell_number, cell_text, number

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Warn = Callable[[str, str], None]

STEP_LIMIT = 2**63
"""Steps are whole numbers from -STEP_LIMIT to STEP_LIMIT - 1; readers and targets hold no others."""


class Row(NamedTuple):
    """One row: `names` and `values` of its metrics, of one length, its step, its time in seconds since the epoch."""

    names: tuple[str, ...]
    values: Sequence[object]
    step: int
    time: float


def to_row(
    metrics: Mapping[str, Any],
    step: int,
    time: float,
    *,
    stats: dict[str, MetricStats],
    time_column: str | None,
    warn: Warn,
) -> Row:
    """Return `metrics` as a row at `step` and `time`, and add the numbers among them to `stats`.

    A value that is no scalar becomes its text at once, because an array may change before the row is written. Text that
    readers take for a number counts in `stats` too. A metric called like the time column gets a `_` behind its name.
    """
    names: list[str] = []
    cells: list[float | str | None] = []
    for key, value in metrics.items():
        name = key if type(key) is str else str(key)
        if name == "step":  # the row's own step is written in the column of this name
            continue
        if name == time_column:
            name = f"{name}_"
            warn(
                "time column",
                f"A metric is called {time_column!r}, like the column of times; it is stored as {name!r}.",
            )
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
        names.append(name)
        cells.append(cell)
    return Row(tuple(names), cells, step, time)


def step_of(step: Any, last: int | None, *, warn: Warn) -> int:
    """Return the step to write for `step` in a run whose last step is `last`. Without `step` it is `last` plus 1.

    A fraction is cut off. A value that is no step, or does not fit into 64 bits, is replaced by `last` plus 1: a row
    with a wrong step is of some use, while readers ignore a row without one. Both cause a warning.
    """
    if type(step) is int and -STEP_LIMIT <= step < STEP_LIMIT:
        return step
    following = 0 if last is None else min(last + 1, STEP_LIMIT - 1)
    if step is None:
        return following
    value = number(step)
    if value is None or not math.isfinite(value) or not -STEP_LIMIT <= value < STEP_LIMIT:
        what = "A number beyond 64 bits" if isinstance(step, int) else f"{step!r:.80}"
        warn("step", f"{what} is not a step; {following} is written instead.")
        return following
    if value != int(value):
        warn("step", f"The step {step!r} is not a whole number; {int(value)} is written instead.")
    return int(value)

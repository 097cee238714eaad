"""What `--max-points` leaves of a series, worked out a second time in plain Python."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np

from bridge.sync.truth import TruthSeries

__all__ = ["thinned"]


def thinned(series: TruthSeries, bits: int, *, ordered: bool) -> TruthSeries:
    """Of each bucket of 2^`bits` rows, counted from row 0, the least, the greatest, the last point and the first NaN.

    In an `ordered` target a point stands at its own row or, where a lower step was written later, at that later row.
    Of equal values the first counts, and points that stand at one row stay together.
    """
    if bits == 0 or not len(series):
        return series
    standing = np.maximum.accumulate(series.row) if ordered else series.row
    buckets: dict[int, list[tuple[int, int, float]]] = defaultdict(list)
    for row, step, value in zip(standing.tolist(), series.step.tolist(), series.value.tolist(), strict=True):
        buckets[row >> bits].append((row, step, value))
    kept: set[int] = set()
    for points in buckets.values():
        numbers = [(row, value) for row, _, value in points if not math.isnan(value)]
        if numbers:
            kept.add(min(numbers, key=lambda point: (point[1], point[0]))[0])
            kept.add(min(numbers, key=lambda point: (-point[1], point[0]))[0])
        if len(numbers) < len(points):
            kept.add(min(row for row, _, value in points if math.isnan(value)))
        kept.add(max(points, key=lambda point: (point[1], -point[0]))[0])
    places = np.array([row in kept for row in standing.tolist()])
    return TruthSeries(
        step=series.step[places], time=series.time[places], value=series.value[places], row=series.row[places]
    )

"""The running best of a series, worked out a second time in plain Python."""

from __future__ import annotations

import math

import numpy as np

from bridge.sync.truth import TruthSeries

__all__ = ["running_bests"]


def running_bests(series: TruthSeries, sign: int) -> tuple[TruthSeries, TruthSeries]:
    """Each number that is better than all in rows before it, and the steps of these numbers; `sign` 1: greater is better.

    Both stand at the same steps: at the number's own, or at that of the best before it where that is higher.
    """
    places: list[int] = []
    stands: list[int] = []
    best = stand = None
    for place in np.argsort(series.row, kind="stable").tolist():
        value, step = float(series.value[place]), int(series.step[place])
        if math.isnan(value) or (best is not None and sign * value <= sign * best):
            continue
        best, stand = value, step if stand is None else max(stand, step)
        places.append(place)
        stands.append(stand)
    at, step_of = np.array(places, dtype=np.intp), np.array(stands, dtype=np.int64)
    time, row, reached = series.time[at], series.row[at], series.step[at].astype(np.float64)
    return TruthSeries(step_of, time, series.value[at], row), TruthSeries(step_of, time, reached, row)

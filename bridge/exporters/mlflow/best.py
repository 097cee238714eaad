"""The running best of a metric as metrics of its own, so that a table of runs can be sorted by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.model import Block, Points

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from bridge.cursor import Shape
    from bridge.model import Delta, Series

__all__ = ["Best", "best_names", "running_best"]


@dataclass(frozen=True, slots=True)
class Best:
    """What a delta adds to the running bests: points to send, superseded ones to remove, and the state after it."""

    blocks: tuple[Block, ...]
    removed: Points | None
    state: dict[str, Any]


def best_names(shape: Shape) -> tuple[str, ...]:
    """The names of the metrics that are made here."""
    return tuple(name for metric, _ in _wanted(shape) for name in (f"best/{metric}", f"best_step/{metric}"))


def running_best(delta: Delta, shape: Shape, state: Mapping[str, Any], held: Callable[[str], Series | None]) -> Best:
    """The running bests of `shape.best` after `delta`: a point each time a metric improves, in the order logged.

    `state` is what the delta before left: for each metric its best value, as float.hex. Where `delta` takes points of
    a metric away its bests are made anew: `held` gives a series that the target holds, ours too.
    """
    blocks: list[Block] = []
    removed: list[Series] = []
    after = dict(state)
    for metric, sign in _wanted(shape):
        row, step, time, value = _new_points(delta.blocks, metric)
        taken = None if delta.removed is None else _taken(delta.removed, metric)
        best = float.fromhex(after[metric]) if metric in after else -sign * np.inf
        if taken is not None and len(taken[0]):
            step, time, value = _all_points(held(metric), taken, (step, time, value))
            row = np.arange(len(step), dtype=np.int64)
            best = -sign * np.inf
            removed += [series for name in (f"best/{metric}", f"best_step/{metric}") if (series := held(name))]
            after.pop(metric, None)
        better = _improves(value, sign, best, first=metric not in after)
        if better.any():
            after[metric] = float(value[better][-1]).hex()
            blocks.append(_block(metric, row[better], step[better], time[better], value[better]))
    return Best(tuple(blocks), _points(removed), after)


def _wanted(shape: Shape) -> Iterable[tuple[str, float]]:
    for text in shape.best:
        metric, _, direction = text.rpartition(":")
        yield (metric, 1.0) if direction == "max" else (metric, -1.0)


def _improves(value: NDArray[np.float64], sign: float, best: float, *, first: bool) -> NDArray[np.bool_]:
    """Where a value is better than all before it and than `best`; NaN never is. The `first` number always is."""
    signed = np.where(np.isnan(value), -np.inf, sign * value)
    before = np.maximum.accumulate(np.concatenate([[sign * best], signed]))[:-1]
    better: NDArray[np.bool_] = signed > before
    if first and not better.any():
        numbers = np.flatnonzero(~np.isnan(value))
        better[numbers[:1]] = True
    return better


def _new_points(
    blocks: Sequence[Block], metric: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    rows: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    steps: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    times: list[NDArray[np.float64]] = [np.zeros(0)]
    values: list[NDArray[np.float64]] = [np.zeros(0)]
    for block in blocks:
        if metric in block.names:
            at = block.names.index(metric)
            there = block.present[at]
            rows.append(block.row[there])
            steps.append(block.step[there])
            times.append(block.time[there])
            values.append(block.values[at][there])
    return np.concatenate(rows), np.concatenate(steps), np.concatenate(times), np.concatenate(values)


def _taken(points: Points, metric: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    if metric not in points.names:
        return np.zeros(0, np.int64), np.zeros(0)
    which = points.name == points.names.index(metric)
    return points.step[which], points.time[which]


def _all_points(
    held: Series | None,
    taken: tuple[NDArray[np.int64], NDArray[np.float64]],
    new: tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """What the target will hold, in the order logged, which is that of the times."""
    if held is None:
        return new
    gone = set(zip(taken[0].tolist(), np.rint(taken[1] * 1000.0).tolist(), strict=True))
    places = zip(held.step.tolist(), np.rint(held.time * 1000.0).tolist(), strict=True)
    stays = np.array([place not in gone for place in places], dtype=np.bool_)
    step = np.concatenate([held.step[stays], new[0]])
    time = np.concatenate([held.time[stays], new[1]])
    value = np.concatenate([held.value[stays], new[2]])
    order = np.lexsort((step, np.rint(time * 1000.0)))
    return step[order], time[order], value[order]


def _block(
    metric: str,
    row: NDArray[np.int64],
    step: NDArray[np.int64],
    time: NDArray[np.float64],
    value: NDArray[np.float64],
) -> Block:
    values = np.stack([value, step.astype(np.float64)])
    names = (f"best/{metric}", f"best_step/{metric}")
    return Block(names, row, step, time, values, np.ones(values.shape, dtype=np.bool_))


def _points(series: Sequence[Series]) -> Points | None:
    if not series:
        return None
    return Points(
        names=tuple(one.name for one in series),
        name=np.repeat(np.arange(len(series), dtype=np.int32), [len(one.step) for one in series]),
        step=np.concatenate([one.step for one in series]),
        time=np.concatenate([one.time for one in series]),
        value=np.concatenate([one.value for one in series]),
    )

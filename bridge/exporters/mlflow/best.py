"""The running best of a metric as metrics of its own, so that a table of runs can be sorted by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import RebuildNeededError, TargetRefusedError
from bridge.model import Block, Points

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from bridge.cursor import ContentOptions
    from bridge.model import Delta, Series

__all__ = ["Best", "best_names", "names_of", "running_best"]


@dataclass(frozen=True, slots=True)
class Best:
    """What a delta adds to the running bests: points to send, superseded ones to remove, and the state after it."""

    blocks: tuple[Block, ...]
    removed: Points | None
    state: dict[str, Any]


def best_names(content: ContentOptions) -> tuple[str, ...]:
    """The names of the metrics that are made here."""
    return tuple(name for metric in content.bests for name in names_of(metric))


def check_bests(delta: Delta, content: ContentOptions) -> None:
    """Raise TargetRefusedError where a metric of the run's own has the name of a running best: one key cannot be both."""
    both = sorted(set(best_names(content)) & set(delta.metrics))
    if both:
        raise TargetRefusedError(
            f"The run logs a metric named {both[0]} itself, the name that --best gives.",
            hint=f"Leave out --best {both[0].partition('/')[2]}:...",
        )


def running_best(
    delta: Delta, content: ContentOptions, state: Mapping[str, Any], held: Callable[[str], Series | None]
) -> Best:
    """The running bests of `shape.best` after `delta`: a point each time a metric improves, in the order of the rows.

    The first number is the first best; NaN is none. A best stands at its own step, or at that of the best before it
    where that is higher: so the last one is what MLflow calls the latest. `state` is what the delta before left: for each
    metric its best value as float.hex, and the step that stands at. Where `delta` takes points of a metric away its
    bests are made anew of `delta.bests`; `held` gives a series that was made here, as the target holds it. Raises
    RebuildNeededError where `delta` lacks them.
    """
    blocks: list[Block] = []
    removed: list[Series] = []
    after = dict(state)
    losing = _losing(delta.removed)
    for metric, sign in content.bests.items():
        points = _points_of(delta.bests if metric in losing else delta.blocks, metric)
        if metric in losing:
            if not len(points):
                raise RebuildNeededError(f"the best of {metric} has to be found anew")
            after.pop(metric, None)
            removed += [series for name in names_of(metric) if (series := held(name))]
        before = (float.fromhex(after[metric][0]), int(after[metric][1])) if metric in after else None
        better = points.take(_improves(points.value, sign, before))
        if len(better):
            stands = np.maximum.accumulate(better.step)
            if before is not None:
                stands = np.maximum(stands, before[1])
            after[metric] = [float(better.value[-1]).hex(), int(stands[-1])]
            blocks.append(_block(metric, better, stands))
    return Best(tuple(blocks), _together(removed), after)


@dataclass(frozen=True, slots=True, eq=False)
class _Columns:
    """Points of one metric by row."""

    row: NDArray[np.int64]
    step: NDArray[np.int64]
    time: NDArray[np.float64]
    value: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.row)

    def take(self, which: NDArray[np.intp]) -> _Columns:
        return _Columns(self.row[which], self.step[which], self.time[which], self.value[which])


def names_of(metric: str) -> tuple[str, str]:
    """The names of what is made of one metric: its best values, and the steps at which they were reached."""
    return f"best/{metric}", f"best_step/{metric}"


def _losing(removed: Points | None) -> set[str]:
    """The metrics that lose points."""
    return set() if removed is None else {removed.names[place] for place in np.unique(removed.name).tolist()}


def _points_of(blocks: Sequence[Block], metric: str) -> _Columns:
    found = [_Columns(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0))]
    for block in blocks:
        if metric in block.names:
            at = block.names.index(metric)
            there = block.present[at]
            found.append(_Columns(block.row[there], block.step[there], block.time[there], block.values[at][there]))
    row, step, time, value = (
        np.concatenate([getattr(part, name) for part in found]) for name in ("row", "step", "time", "value")
    )
    return _Columns(row, step, time, value).take(np.argsort(row, kind="stable"))


def _improves(value: NDArray[np.float64], sign: int, before: tuple[float, int] | None) -> NDArray[np.intp]:
    """The places of the values that are better than all before them, and than the best `before` them, if there is one."""
    places = np.flatnonzero(~np.isnan(value))
    signed = sign * value[places]
    start = -np.inf if before is None else sign * before[0]
    better = signed > np.maximum.accumulate(np.concatenate([[start], signed]))[:-1]
    if before is None:
        better[:1] = True
    return places[better]


def _block(metric: str, best: _Columns, stands: NDArray[np.int64]) -> Block:
    values = np.stack([best.value, best.step.astype(np.float64)])
    return Block(names_of(metric), best.row, stands, best.time, values, np.ones(values.shape, dtype=np.bool_))


def _together(series: Sequence[Series]) -> Points | None:
    if not series:
        return None
    return Points(
        names=tuple(one.name for one in series),
        name=np.repeat(np.arange(len(series), dtype=np.int32), [len(one.step) for one in series]),
        step=np.concatenate([one.step for one in series]),
        time=np.concatenate([one.time for one in series]),
        value=np.concatenate([one.value for one in series]),
    )

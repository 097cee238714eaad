"""Apply the overlap rule: which point of a metric counts if there are several at one step.

The last value at a step counts. If it was logged several times in a row, the row in which this sequence began counts:
of 1, 2, 2 the first 2. NaN equals NaN. Most files need no rule, since each step of a metric comes once and steps rise.
`LastPoints` notices where that is not so. Then `resolve` sends the points step by step: it collects the rows of as many
of the lowest steps as fit into memory, applies the rule, and goes on with the steps after them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from bridge.model import Block

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

BUDGET = 96 << 20
"""Bytes of rows that are held in memory at once, about; sorting and handing them on takes as much again."""

_LEAST = np.iinfo(np.int64).min
_PART_CELLS = 1 << 20


@dataclass(frozen=True, slots=True)
class LatePoints:
    """Points of one metric that come at or before its last step and do not just repeat its last point.

    `low` is the least of their steps; `row` and `step` are those of the first one.
    """

    low: int
    row: int
    step: int

    def __add__(self, later: LatePoints) -> LatePoints:
        return LatePoints(min(self.low, later.low), self.row, self.step)


class LastPoints:
    """The last point of each metric: its greatest step, and the value that counts there (the last one at that step).

    The metrics are in the order in which they first appear (by row, then by name). Of some only the name may be known.
    """

    def __init__(self, points: Mapping[str, tuple[int, float]] | None = None, names: Iterable[str] = ()) -> None:
        """Begin with the last `points` that are known; the further `names` are known to have appeared."""
        self._points: dict[str, tuple[int, float] | None] = dict.fromkeys(names) | dict(points or {})

    def __len__(self) -> int:
        return len(self._points)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the metrics in the order of their first appearance."""
        return tuple(self._points)

    def points(self) -> dict[str, tuple[int, float]]:
        """Return the step and value of each metric's last point. A zero has no sign here: 0 and -0 are equal values."""
        return {name: (last[0], last[1] + 0.0) for name, last in self._points.items() if last is not None}

    def take(self, block: Block) -> dict[str, LatePoints]:
        """Advance by `block` and return its late points by metric.

        Points that just repeat the last point of their metric are cleared in `block.present`.
        """
        new = [metric for metric, name in enumerate(block.names) if name not in self._points]
        if new:
            rows = block.present[new].argmax(axis=1).tolist()
            self._points |= dict.fromkeys(block.names[metric] for _, metric in sorted(zip(rows, new, strict=True)))
        late = {}
        for metric in self._suspects(block):
            found = self._check(block, metric)
            if found is not None:
                late[block.names[metric]] = found
        self._advance(block, late)
        return late

    def _suspects(self, block: Block) -> Sequence[int]:
        """Return the metrics of `block` that may have a step at or before their last one."""
        step = block.step
        rises = step[1:] > step[:-1]
        highest = max((last[0] for last in self._points.values() if last is not None), default=None)
        after = highest is None or int(step[0]) > highest
        if after and rises.all():
            return ()
        if after and not (step[1:] < step[:-1]).any():
            # Steps never fall, so only rows of one step can meet. Rows of one step form a group; `shared` are the rows
            # of groups of more than one. A metric with two points in one of these groups is suspect.
            sizes = np.diff(np.flatnonzero(np.concatenate([[True], rises, [True]])))
            groups = sizes[sizes > 1]
            shared = np.concatenate([[False], ~rises]) | np.concatenate([~rises, [False]])
            starts = np.concatenate([[0], np.cumsum(groups)[:-1]])
            counts = np.add.reduceat(block.present[:, shared].view(np.int8), starts, axis=1, dtype=np.int64)
            return np.flatnonzero((counts > 1).any(axis=1)).tolist()
        return range(len(block.names))

    def _check(self, block: Block, metric: int) -> LatePoints | None:
        """Return the late points of the metric at the place `metric` of `block`, None without any.

        Clear the points that repeat the point before them.
        """
        known = self._points[block.names[metric]]
        at = np.flatnonzero(block.present[metric])
        step, value = block.step[at], block.values[metric, at]
        # The metric's points with its last point so far in front of them: point i comes after steps[i] and values[i].
        before = known or (0, 0.0)
        steps, values = np.concatenate([[before[0]], step]), np.concatenate([[before[1]], value])
        repeated = (step == steps[:-1]) & same_values(value, values[:-1])
        # `late` compares neighbours only. It finds the first and the lowest of all points at or before an earlier step.
        late = step <= steps[:-1]
        if known is None:
            repeated[0] = late[0] = False
        late &= ~repeated
        if repeated.any():
            block.present[metric, at[repeated]] = False
        if not late.any():
            return None
        first = int(late.argmax())
        return LatePoints(int(step[late].min()), int(block.row[at[first]]), int(step[first]))

    def _advance(self, block: Block, late: Collection[str]) -> None:
        """Update the last points from `block`. The points of the metrics `late` may come in any order."""
        metrics = np.flatnonzero(block.present.any(axis=1))
        # The place of each metric's last point in the block: the first one from behind.
        last = len(block.step) - 1 - block.present[metrics, ::-1].argmax(axis=1)
        for place, metric in enumerate(metrics.tolist()):
            if late and block.names[metric] in late:  # the last one of those with the greatest step
                at = np.flatnonzero(block.present[metric])
                last[place] = at[block.step[at] == block.step[at].max()][-1]
        points = zip(metrics.tolist(), block.step[last].tolist(), block.values[metrics, last].tolist(), strict=True)
        for metric, step, value in points:
            known = self._points[block.names[metric]]
            if known is None or step >= known[0]:
                self._points[block.names[metric]] = step, value


def same_values(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return where two values are equal for the overlap rule: NaN equals NaN."""
    same: NDArray[np.bool_] = (one == other) | (np.isnan(one) & np.isnan(other))
    return same


@dataclass(slots=True)
class Replaced:
    """The points that a value in the row `first` or later, at the same step, replaced.

    `gone` is the number of those in rows before `first`, and `low` the least of their steps. `superseded` is the number
    of those that were replaced within their session: `starts` int64 are the rows with which sessions begin, sorted;
    None if nobody knows, then none is counted. A value that replaces one of an earlier session is no loss: the run went
    back to a checkpoint, and the overlap rule is made for that.
    """

    starts: NDArray[np.int64] | None
    first: int = 0
    gone: int = 0
    low: int | None = None
    superseded: int = 0
    _found: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=list)

    def add(self, rows: NDArray[np.int64], steps: NDArray[np.int64], replaced: NDArray[np.bool_]) -> None:
        """Add sequences of equal values of one metric, with the first row of each and its step.

        `replaced` says which of them the next sequence replaces at the same step. `close` counts them.
        """
        at = np.flatnonzero(replaced)
        at = at[rows[at + 1] >= self.first]
        old, new, superseded = rows[at], rows[at + 1], steps[:0]
        if self.starts is not None:
            session = np.searchsorted(self.starts, [old, new], side="right")
            superseded = steps[at[session[0] == session[1]]]
        self._found.append((steps[at[old < self.first]], superseded))

    def close(self, high: int | None = None) -> None:
        """Count what was added below step `high`, and forget the rest, which will be added again."""
        last = np.iinfo(np.int64).max if high is None else high - 1
        for found in self._found:
            gone, superseded = (steps[steps <= last] for steps in found)
            self.gone += len(gone)
            self.superseded += len(superseded)
            if len(gone) and (self.low is None or gone.min() < self.low):
                self.low = int(gone.min())
        self._found.clear()


def counting(block: Block, replaced: Replaced | None = None) -> NDArray[np.bool_]:
    """Return which points of `block`, whose rows are in row order, count (k, n)."""
    counts = np.zeros_like(block.present)
    order = np.argsort(block.step, kind="stable")
    for metric in range(len(block.names)):
        # The metric's points by step, and by row within a step.
        at = order[block.present[metric, order]]
        if not len(at):
            continue
        step, value = block.step[at], block.values[metric, at]
        # A sequence of equal values begins where the step or the value changes. `firsts` are the first points of all
        # sequences. A sequence counts if the next one has another step.
        begins = np.concatenate([[True], (step[1:] != step[:-1]) | ~same_values(value[1:], value[:-1])])
        firsts = at[begins]
        steps = block.step[firsts]
        is_last = np.concatenate([steps[1:] != steps[:-1], [True]])
        counts[metric, firsts[is_last]] = True
        if replaced is not None:
            replaced.add(block.row[firsts], steps, ~is_last)
    return counts


def _merge(blocks: Sequence[Block]) -> Block:
    """Return `blocks`, at least one and in row order, as one."""
    if len(blocks) == 1:
        return blocks[0]
    names = blocks[0].names
    if any(block.names != names for block in blocks):
        names = tuple(sorted({name for block in blocks for name in block.names}))
    places = {name: place for place, name in enumerate(names)}
    count = sum(len(block.row) for block in blocks)
    values, present = np.zeros((len(names), count)), np.zeros((len(names), count), dtype=bool)
    begin = 0
    for block in blocks:
        end = begin + len(block.row)
        mine = slice(None) if block.names == names else [places[name] for name in block.names]
        values[mine, begin:end], present[mine, begin:end] = block.values, block.present
        begin = end
    return Block(
        names=names,
        row=np.concatenate([block.row for block in blocks]),
        step=np.concatenate([block.step for block in blocks]),
        time=np.concatenate([block.time for block in blocks]),
        values=values,
        present=present,
    )


@dataclass(slots=True)
class StepRange:
    """The steps from `low` up to, not including, `high` (None: all later ones)."""

    low: int
    high: int | None = None

    def may_hold(self, least: int, greatest: int) -> bool:
        """Return whether rows with steps from `least` to `greatest` may have a step of this range."""
        return greatest >= self.low and (self.high is None or least < self.high)

    def of(self, block: Block) -> Block | None:
        """Return the rows of `block` in this range; None if there are none."""
        inside = block.step >= self.low
        if self.high is not None:
            inside &= block.step < self.high
        if inside.all():
            return block
        return block.rows(inside) if inside.any() else None


def resolve(
    read: Callable[[StepRange], Iterator[Block]],
    replaced: Replaced,
    low: int = _LEAST,
    *,
    budget: int,
    most: int = _PART_CELLS,
) -> Iterator[tuple[Iterator[Block], int | None]]:
    """Yield the points that count at step `low` and later, by step, in groups of blocks of about `budget` bytes.

    `read(steps)` yields all blocks, in row order, that may have points in a range of steps. Where they do not fit,
    `steps.high` is lowered while they are read, and `read` may leave out blocks that lie beyond it. With each group
    comes the lowest step that may be left, None with the last. A group has to be consumed before the next one is asked
    for. A block has at most `most` points, unless it has one row. Replaced points are added to `replaced`.
    """
    begin: int | None = low
    while begin is not None:
        steps = StepRange(begin)
        held: list[Block] = []
        size = 0
        for block in read(steps):
            mine = steps.of(block)
            if mine is None:
                continue
            held.append(mine)
            size += mine.nbytes
            if size > budget:
                held = [_shrunk(held, steps, budget, replaced)]
                size = held[0].nbytes
        group = _by_step(_counting_so_far(held, replaced), most) if held else iter(())
        replaced.close(steps.high)
        yield group, steps.high
        begin = steps.high


def _shrunk(held: list[Block], steps: StepRange, budget: int, replaced: Replaced) -> Block:
    """Return what of `held` still has to be held: points that count so far, and of the lowest steps if it is too much.

    A point that does not count by now will not count with later ones either. Only the points of too many different
    steps are too much; then the range ends in the middle of them.
    """
    kept = _counting_so_far(held, replaced).filled()
    assert kept is not None  # one point counts at each step
    middle = int(np.partition(kept.step, len(kept.step) // 2)[len(kept.step) // 2])
    if kept.nbytes > budget // 2 and middle > int(kept.step.min()):
        steps.high = middle
        kept = kept.rows(kept.step < middle)
    return kept


def _counting_so_far(held: list[Block], replaced: Replaced) -> Block:
    """Return `held`, blocks in row order, as one in which the points that count among these are present.

    `held` is emptied: counting takes memory too.
    """
    whole = _merge(held)
    held.clear()
    return replace(whole, present=counting(whole, replaced))


def _by_step(block: Block, most: int) -> Iterator[Block]:
    """Yield the points of `block` sorted by step, in parts that fit into the processor's cache.

    A part has at most `most` points, unless it has one row.
    """
    order = np.argsort(block.step, kind="stable")
    size = max(1, min(_PART_CELLS, most) // len(block.names))
    for first in range(0, len(order), size):
        part = block.rows(order[first : first + size]).filled()
        if part is not None:
            yield part

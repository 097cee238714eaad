"""What is known of all series after some rows: their tails, in the order in which they first appeared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bridge.rundir.rows import TEXT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from bridge.cursor import Tails

__all__ = ["Flagged", "SeriesState", "metrics_of"]

_LEAST = np.iinfo(np.int64).min


@dataclass(frozen=True, slots=True)
class Flagged:
    """Points of one series that come at or before its last step and are no repetition of it.

    `low` is the least of their steps, `count` how many they are, `row` the first's row and `step` its step.
    """

    low: int
    count: int
    row: int
    step: int

    def merged(self, later: Flagged) -> Flagged:
        """The sum of both."""
        return Flagged(min(self.low, later.low), self.count + later.count, self.row, self.step)


class SeriesState:
    """The tail of each series: its greatest step and the value that counts there (the last one at that step)."""

    def __init__(self, tails: Tails | None = None, names: Iterable[str] = ()) -> None:
        self._places: dict[str, int] = {}
        self._has = np.zeros(64, dtype=bool)
        self._step = np.full(64, _LEAST, dtype=np.int64)
        self._value = np.zeros(64)
        self.highest: int | None = None
        for name in names:
            self._place(name)
        for name, (step, value) in (tails or {}).items():
            place = self._place(name)
            self._has[place], self._step[place], self._value[place] = True, step, value
            self.highest = step if self.highest is None else max(self.highest, step)
        self._layouts: dict[tuple[str, ...], NDArray[np.intp]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def copy(self) -> SeriesState:
        """A state of its own that knows the same."""
        other = SeriesState()
        other._places = dict(self._places)
        other._has, other._step, other._value = self._has.copy(), self._step.copy(), self._value.copy()
        other.highest = self.highest
        return other

    @property
    def names(self) -> tuple[str, ...]:
        """The series by their first appearance (row, then name)."""
        return tuple(self._places)

    def tails(self) -> dict[str, tuple[int, float]]:
        """The tail of each series that has points. A zero has no sign: it repeats one of either, whichever came last."""
        steps, values, has = self._step.tolist(), (self._value + 0.0).tolist(), self._has.tolist()
        return {name: (steps[place], values[place]) for name, place in self._places.items() if has[place]}

    def tail_step(self, name: str) -> int | None:
        """The greatest step of the series `name`."""
        place = self._places.get(name)
        return int(self._step[place]) if place is not None and self._has[place] else None

    def take(
        self,
        names: tuple[str, ...],
        step: NDArray[np.int64],
        values: NDArray[np.float64],
        present: NDArray[np.bool_],
        *,
        first: int,
        drop: bool = True,
    ) -> dict[str, Flagged]:
        """Go on by the rows from number `first`: the points of `values` (k, n) where `present` at `step` (n,).

        Repetitions of a series' last point are cleared in `present` (unless `drop` is false). Says which series have
        points that come at or before their last step otherwise.
        """
        any_point: NDArray[np.bool_] = np.any(present, axis=1)
        if not len(step) or not any_point.any():
            return {}
        places = self._appear(names, present, any_point)
        flagged: dict[int, Flagged] = {}
        for line in self._suspects(step, present, any_point):
            found = self._check(int(places[line]), step, values[line], present[line], first=first, drop=drop)
            if found is not None:
                flagged[line] = found
        self._advance(places, step, values, present, any_point, flagged)
        return {names[line]: found for line, found in flagged.items()}

    def _place(self, name: str) -> int:
        place = self._places.setdefault(name, len(self._places))
        if place == len(self._has):
            self._has = np.concatenate([self._has, np.zeros(place, dtype=bool)])
            self._step = np.concatenate([self._step, np.full(place, _LEAST, dtype=np.int64)])
            self._value = np.concatenate([self._value, np.zeros(place)])
        return place

    def _appear(
        self, names: tuple[str, ...], present: NDArray[np.bool_], any_point: NDArray[np.bool_]
    ) -> NDArray[np.intp]:
        """The places of the series; new ones get theirs by first row, then name."""
        known = self._layouts.get(names)
        if known is not None and not (any_point & (known < 0)).any():
            return known
        new = [line for line in np.flatnonzero(any_point).tolist() if names[line] not in self._places]
        rows = present[new].argmax(axis=1).tolist() if new else []
        for _, name in sorted(zip(rows, (names[line] for line in new), strict=True)):
            self._place(name)
        known = np.array([self._places.get(name, -1) for name in names], dtype=np.intp)
        self._layouts[names] = known
        return known

    def _suspects(
        self, step: NDArray[np.int64], present: NDArray[np.bool_], any_point: NDArray[np.bool_]
    ) -> Sequence[int]:
        """The lines that may hold a step at or before the last one of their series."""
        change = step[1:] > step[:-1]
        after = self.highest is None or int(step[0]) > self.highest
        if change.all() and after:
            return ()
        if after and not (step[1:] < step[:-1]).any():
            # Steps never go down, so only rows of one step can meet: count each series' points among them.
            starts = np.flatnonzero(np.concatenate([[True], change]))
            sizes = np.diff(starts, append=len(step))
            several = np.flatnonzero(sizes > 1)
            rows = np.concatenate([[False], ~change]) | np.concatenate([~change, [False]])
            bounds = np.concatenate([[0], np.cumsum(sizes[several])[:-1]])
            counts = np.add.reduceat(present[:, rows].view(np.int8), bounds, axis=1, dtype=np.int64)
            return np.flatnonzero((counts > 1).any(axis=1)).tolist()
        return np.flatnonzero(any_point).tolist()

    def _check(
        self,
        place: int,
        step: NDArray[np.int64],
        values: NDArray[np.float64],
        present: NDArray[np.bool_],
        *,
        first: int,
        drop: bool,
    ) -> Flagged | None:
        """Check one series, which has points here."""
        at = np.flatnonzero(present)
        steps, series = step[at], values[at]
        before = np.empty_like(steps)
        before[0], before[1:] = self._step[place], steps[:-1]
        had = bool(self._has[place])
        if (steps[1:] > before[1:]).all() and (not had or steps[0] > before[0]):
            return None
        last = np.empty_like(series)
        last[0], last[1:] = self._value[place], series[:-1]
        repeated = (steps == before) & ((series == last) | (np.isnan(series) & np.isnan(last)))
        late = steps <= np.maximum.accumulate(before)
        if not had:
            repeated[0] = late[0] = False
            late[1:] = steps[1:] <= np.maximum.accumulate(steps)[:-1]
        late &= ~repeated
        if drop:
            present[at[repeated]] = False
        if not late.any():
            return None
        where = int(late.argmax())
        return Flagged(int(steps[late].min()), int(late.sum()), first + int(at[where]), int(steps[where]))

    def _advance(
        self,
        places: NDArray[np.intp],
        step: NDArray[np.int64],
        values: NDArray[np.float64],
        present: NDArray[np.bool_],
        any_point: NDArray[np.bool_],
        flagged: Iterable[int],
    ) -> None:
        """Move the tails on by these points."""
        lines = np.flatnonzero(present.any(axis=1))
        last = len(step) - 1 - present[lines, ::-1].argmax(axis=1) if len(lines) else lines
        mine = places[lines]
        better = ~self._has[mine] | (step[last] >= self._step[mine])
        lines, last, mine = lines[better], last[better], mine[better]
        self._has[mine] = True
        self._step[mine], self._value[mine] = step[last], values[lines, last]
        for line in flagged:
            self._advance_far(int(places[line]), step, values[line], present[line])
        top = int(self._step[places[any_point]].max())
        self.highest = top if self.highest is None else max(self.highest, top)

    def _advance_far(
        self, place: int, step: NDArray[np.int64], values: NDArray[np.float64], present: NDArray[np.bool_]
    ) -> None:
        """The same where the last point need not have the greatest step."""
        at = np.flatnonzero(present)
        if not len(at):
            return
        steps = step[at]
        top = steps.max()
        if top >= self._step[place]:
            where = at[len(steps) - 1 - steps[::-1].argmax()]
            self._step[place], self._value[place] = top, values[where]


def metrics_of(names: Iterable[str]) -> tuple[str, ...]:
    """The metrics that the series `names` belong to."""
    return tuple(dict.fromkeys(name.removesuffix(TEXT) for name in names))

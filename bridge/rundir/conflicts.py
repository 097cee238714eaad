"""New rows that come at or before the last step of a series whose earlier rows are in the target already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bridge.model import Block, Points
from bridge.rundir.reading import Reading, block_of
from bridge.rundir.resolve import resolved
from bridge.rundir.rows import TEXT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from bridge.rundir.csv_rows import Table
    from bridge.rundir.rows import Rows
    from bridge.rundir.series_state import SeriesState

__all__ = ["Settled", "replacement", "settle"]

MOST_EARLIER = 4_000_000
"""Earlier points at the steps in question that are held in memory; where there are more the target is made anew."""


@dataclass(frozen=True, slots=True)
class Settled:
    """The new points in their order. `reason` is empty where they only add to what is there.

    `removed` are earlier points that no longer count, None where there were too many to name them; `bests` is as in
    a delta. `low` is the least step whose points changed.
    """

    blocks: Sequence[Block]
    reason: str = ""
    removed: Points | None = None
    bests: tuple[Block, ...] = ()
    low: int | None = None


def settle(
    table: Table,
    reading: Reading,
    before: SeriesState,
    portion: Sequence[Rows],
    blocks: Sequence[Block],
    *,
    ordered: bool,
) -> Settled:
    """Apply the overlap rule to `blocks`, made of the rows `portion` that `reading` took last.

    `before` is what was known of the series before.
    """
    lows = {name: flag.low for name, flag in reading.flagged.items()}
    first = portion[0].first if portion else reading.rows
    touched = {name: step for name, low in lows.items() if (step := before.tail_step(name)) is not None and low <= step}
    if not touched:
        return Settled(list(resolved(lambda: iter(blocks), lows, ordered=ordered)))
    steps = {name: _steps(blocks, name, last) for name, last in touched.items()}
    earlier = _earlier(table, reading, first, steps)
    if earlier is None:
        return Settled((), reason=_reason(table, reading, touched, portion, 0))
    every = list(resolved(lambda: iter((*earlier, *blocks)), lows, ordered=ordered))
    then = list(resolved(lambda: iter(earlier), dict.fromkeys(touched, np.iinfo(np.int64).min), ordered=False))
    removed = _difference(then, every, tuple(touched))
    new = [made for block in every if (made := _from(block, first)) is not None]
    changed = len(removed) or (ordered and _reaches(new, touched))
    if not changed:
        return Settled(new)
    numbers = _numbers(removed)
    losing = {numbers.names[place] for place in np.unique(numbers.name).tolist()} & set(reading.content.bests)
    bests = () if ordered or not losing else _whole(table, reading, first, blocks, sorted(losing))
    if bests is None:
        return Settled((), reason=_reason(table, reading, touched, portion, 0))
    steps_new = [
        block.step[block.present[line] & (block.step <= touched[name])]
        for block in new
        for line, name in enumerate(block.names)
        if name in touched
    ]
    low = int(np.concatenate([numbers.step, *steps_new]).min()) if len(numbers) or steps_new else None
    return Settled(new, _reason(table, reading, touched, portion, len(removed)), numbers, bests, low)


def replacement(table: Table, reading: Reading, low: int) -> list[Block]:
    """Return all points of the rows that `reading` has taken which count at step `low` or later."""
    found: list[Block] = []
    again = Reading.begin(reading.run, reading.content)
    again.estimate = reading.estimate
    layout = table.layout()
    assert layout is not None
    for piece in table.rows(layout[0], layout[0].end, 0):
        taken = again.take(piece.head(min(len(piece), reading.rows - piece.first)), drop=False)
        taken.present &= taken.step >= low
        block = again.block(taken)
        if block is not None:
            found.append(block)
        if again.rows >= reading.rows:
            break
    lows = dict.fromkeys((name for block in found for name in block.names), low)
    return list(resolved(lambda: iter(found), lows, ordered=False))


def _steps(blocks: Sequence[Block], name: str, last: int) -> NDArray[np.int64]:
    """The steps up to `last` at which `blocks` have points of the series `name`."""
    found = [block.step[block.present[block.names.index(name)]] for block in blocks if name in block.names]
    every = np.unique(np.concatenate(found))
    return every[every <= last]


def _whole(
    table: Table, reading: Reading, first: int, blocks: Sequence[Block], names: Sequence[str]
) -> tuple[Block, ...] | None:
    """All points that count of the series `names`, in row order; None where they are too many."""
    earlier = _earlier(table, reading, first, dict.fromkeys(names))
    if earlier is None:
        return None
    every = (*earlier, *(made for block in blocks if (made := _only(block, names)) is not None))
    return tuple(resolved(lambda: iter(every), dict.fromkeys(names, np.iinfo(np.int64).min), ordered=False))


def _only(block: Block, names: Sequence[str]) -> Block | None:
    """The series `names` of `block`."""
    chosen = np.isin(block.names, names)[:, None]
    return block_of(block.names, block.row, block.step, block.time, block.values, block.present & chosen)


def _earlier(
    table: Table, reading: Reading, rows: int, steps: Mapping[str, NDArray[np.int64] | None]
) -> list[Block] | None:
    """The points of some series at some steps (None: at all), of the first `rows` rows; None where they are too many."""
    found: list[Block] = []
    points = 0
    again = Reading.begin(reading.run, reading.content)
    again.estimate = reading.estimate
    layout = table.layout()
    assert layout is not None
    for piece in table.rows(layout[0], layout[0].end, 0):
        taken = again.take(piece.head(min(len(piece), rows - piece.first)), drop=False)
        for line, name in enumerate(taken.names):
            wanted = steps.get(name)
            if wanted is not None:
                taken.present[line] &= np.isin(taken.step, wanted)
            elif name not in steps:
                taken.present[line] = False
        block = again.block(taken)
        if block is not None:
            found.append(block)
            points += block.points
        if points > MOST_EARLIER:
            return None
        if again.rows >= rows:
            break
    return found


def _from(block: Block, first: int) -> Block | None:
    """The rows of `block` from number `first` on."""
    new = block.row >= first
    if new.all():
        return block
    if not new.any():
        return None
    return Block(
        block.names, block.row[new], block.step[new], block.time[new], block.values[:, new], block.present[:, new]
    )


def _reaches(blocks: Sequence[Block], last: Mapping[str, int]) -> bool:
    """Whether any point comes at or before the `last` step of its series."""
    return any(
        bool((block.step[block.present[line]] <= last[name]).any())
        for block in blocks
        for line, name in enumerate(block.names)
        if name in last
    )


def _difference(then: Sequence[Block], now: Sequence[Block], names: tuple[str, ...]) -> Points:
    """The points of some series that are in `then` and not in `now`, where a row has one point of a series."""
    parts: list[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]] = []
    index: list[NDArray[np.int32]] = []
    for place, name in enumerate(names):
        rows = [block.row[block.present[block.names.index(name)]] for block in now if name in block.names]
        kept = np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
        for block in then:
            if name in block.names:
                line = block.names.index(name)
                gone = block.present[line] & ~np.isin(block.row, kept)
                parts.append((block.step[gone], block.time[gone], block.values[line, gone]))
                index.append(np.full(int(gone.sum()), place, dtype=np.int32))
    return Points(
        names=names,
        name=np.concatenate(index) if index else np.empty(0, dtype=np.int32),
        step=np.concatenate([part[0] for part in parts]) if parts else np.empty(0, dtype=np.int64),
        time=np.concatenate([part[1] for part in parts]) if parts else np.empty(0),
        value=np.concatenate([part[2] for part in parts]) if parts else np.empty(0),
    )


def _numbers(points: Points) -> Points:
    """Without the series that stand for texts."""
    names = np.array([not name.endswith(TEXT) for name in points.names], dtype=bool)
    chosen = names[points.name] if len(points) else np.empty(0, dtype=bool)
    return Points(points.names, points.name[chosen], points.step[chosen], points.time[chosen], points.value[chosen])


def _reason(table: Table, reading: Reading, touched: Mapping[str, int], portion: Sequence[Rows], removed: int) -> str:
    name, flag = min(((name, reading.flagged[name]) for name in touched), key=lambda item: (item[1].row, item[0]))
    place = ""
    for rows in portion:
        if rows.first <= flag.row < rows.first + len(rows):
            place = f":{table.lines_before(rows.offset(flag.row - rows.first)) + 1}"
    low = min(reading.flagged[name].low for name in touched)
    words = [f"metrics.csv{place}: {name.removesuffix(TEXT)} goes back from step {touched[name]} to step {flag.step}"]
    if low < flag.step:
        words.append(f", then as far as step {low}")
    if len(touched) > 1:
        words.append(
            f", and so do {len(touched) - 1} more metrics" if len(touched) > 2 else ", and so does another metric"
        )
    if removed:
        words.append(f"; {removed} points no longer count" if removed > 1 else "; 1 point no longer counts")
    return "".join(words)

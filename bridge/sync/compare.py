"""Compare what a target holds of a run with the truth, as exactly as the target declares that it can hold it."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from bridge.sync.truth_media import is_broken
from bridge.sync.verdicts import Difference, Findings, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from bridge.exporters.contract import Capabilities, TargetMedia
    from bridge.model import Series
    from bridge.sync.truth import TruthMedia, TruthSeries

__all__ = ["compare_kept", "compare_last", "compare_media", "compare_shown", "time_tolerance"]

Columns: TypeAlias = "tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]"
"""Step, time and stored value."""

CSV = "metrics.csv"
MEDIA = "media.jsonl"
CLOCK_GRAIN = 1e-6
"""Seconds; float64 times since the epoch are no finer than a quarter of this, so sums and roundings stay below it."""


def time_tolerance(capabilities: Capabilities) -> float:
    """How far a time read back may be from the source's: the target's resolution; nothing if it is exact."""
    return capabilities.time_step + CLOCK_GRAIN if capabilities.time_step else 0.0


def compare_last(name: str, truth: TruthSeries, held: Series | None, capabilities: Capabilities, out: Findings) -> None:
    """Compare a series that has one point a step: each step is there once, with its value and its time."""
    found = _columns(held, capabilities)
    expected = _truth_columns(truth, capabilities)
    if not len(found[0]):
        out.add(Difference(Verdict.SOURCE_ONLY, CSV, name, None, f"{len(truth):,} points"), count=len(truth))
        return
    if np.array_equal(found[0], expected[0]):
        here = there = np.arange(len(truth))
    else:
        _, there, here = np.intersect1d(expected[0], found[0], return_indices=True)
        _list(Verdict.SOURCE_ONLY, name, expected, _others(expected, there), out)
        _list(Verdict.TARGET_ONLY, name, found, _others(found, here), out)
    _compare_points(name, _take(expected, there), _take(found, here), capabilities, out)


def compare_kept(name: str, truth: TruthSeries, held: Series | None, capabilities: Capabilities, out: Findings) -> None:
    """Compare a series of which every point is kept: the same points, where equal ones of one instant may be one."""
    expected = _sorted(_truth_columns(truth, capabilities))
    found = _sorted(_columns(held, capabilities))
    tolerance = time_tolerance(capabilities)
    if len(expected[0]) == len(found[0]):
        same = (expected[0] == found[0]) & _same_value(expected[2], found[2])
        if (same & _same_time(expected[1], found[1], tolerance)).all():
            return
    _list(Verdict.SOURCE_ONLY, name, expected, _without_partner(expected, found, tolerance), out)
    _list(Verdict.TARGET_ONLY, name, found, _without_partner(found, expected, tolerance), out)


def compare_shown(name: str, truth: TruthSeries, shown: float, capabilities: Capabilities, out: Findings) -> None:
    """Compare what the target shows as the last value of a series: that at the greatest step, of several the latest."""
    step, time, value = _truth_columns(truth, capabilities)
    last = step == step.max()
    if not np.isnan(time[last]).any():
        last &= time >= time[last].max() - time_tolerance(capabilities)
    if not _same_value(value[last], np.float64(_stored(np.array([shown]), capabilities)[0])).any():
        found = repr(float(shown))
        out.add(
            Difference(Verdict.DIFFERENT, CSV, f"{name} (last)", int(step.max()), repr(float(value[last][-1])), found)
        )


def is_beginning(held: str, wanted: str) -> bool:
    """Whether `held` is `wanted` cut short, with or without a mark of omission at its end."""
    kept = held.rstrip(".\u2026 ")
    return bool(kept) and len(held) < len(wanted) and wanted.startswith(kept)


def compare_media(
    truth: Iterable[TruthMedia],
    held: Iterable[TargetMedia],
    unsupported: frozenset[str],
    capabilities: Capabilities,
    out: Findings,
) -> int:
    """Compare media by tag, step and place, by the digests of their files; returns how many were expected.

    A format that the target holds in another encoding is only counted; one that it cannot hold is not asked for. Of the
    tags that it `lacks` something of, what is held must be right, and may be less.
    """
    expected: dict[tuple[str, int], list[TruthMedia]] = defaultdict(list)
    found: dict[tuple[str, int], list[TargetMedia]] = defaultdict(list)
    for event in truth:
        if _is_kept(event, capabilities) or _is_converted(event, capabilities):
            expected[event.tag, event.step].append(event)
    for item in held:
        found[item.tag, item.step].append(item)
    for tag, step in sorted({*expected, *found}):
        items = sorted(found.get((tag, step), ()), key=lambda item: item.index)
        for event in _compare_step(expected.get((tag, step), []), items, capabilities, out):
            if f"media.{tag}" not in unsupported and not is_broken(event):
                file, what = f"{MEDIA}:{event.line + 1}", f"media {tag} ({event.path})"
                out.add(Difference(Verdict.SOURCE_ONLY, file, what, step, event.digest))
    return sum(len(events) for events in expected.values())


def _compare_step(
    events: list[TruthMedia], items: list[TargetMedia], capabilities: Capabilities, out: Findings
) -> list[TruthMedia]:
    """Compare the media of one tag and step, in order where there are as many as expected; returns what is not held."""
    if len(events) == len(items):
        for event, item in zip(events, items, strict=True):
            where = f"media {event.tag} ({event.path})"
            file = f"{MEDIA}:{event.line + 1}"
            if _is_kept(event, capabilities) and event.digest != item.digest:
                out.add(Difference(Verdict.DIFFERENT, file, where, event.step, event.digest, item.digest))
            elif item.caption is not None and item.caption != (event.caption or ""):
                out.add(Difference(Verdict.DIFFERENT, file, where, event.step, event.caption, item.caption))
        return []
    missing = []
    spare = [item.digest for item in items]
    # Those that are held in another encoding have other digests: any that is left stands for one of them.
    for event in sorted(events, key=lambda event: not _is_kept(event, capabilities)):
        if event.digest in spare:
            spare.remove(event.digest)
        elif spare and not _is_kept(event, capabilities):
            spare.pop()
        else:
            missing.append(event)
    for item in items:
        if item.digest in spare:
            spare.remove(item.digest)
            out.add(Difference(Verdict.TARGET_ONLY, MEDIA, f"media {item.tag}", item.step, None, item.digest))
    return missing


def _is_kept(event: TruthMedia, capabilities: Capabilities) -> bool:
    if event.format in capabilities.media_converted:
        return False
    return capabilities.media_kept is None or event.format in capabilities.media_kept


def _is_converted(event: TruthMedia, capabilities: Capabilities) -> bool:
    return event.format in capabilities.media_converted


def _stored(value: NDArray[np.float64], capabilities: Capabilities) -> NDArray[np.float64]:
    """`value` as the target declares to hold it."""
    if capabilities.value_bits == 32:
        with np.errstate(over="ignore"):
            value = value.astype(np.float32).astype(np.float64)
    if not capabilities.infinities:
        largest = np.finfo(np.float64).max
        value = np.clip(value, -largest, largest)
    return value


def _truth_columns(truth: TruthSeries, capabilities: Capabilities) -> Columns:
    return truth.step, truth.time, _stored(truth.value, capabilities)


def _columns(held: Series | None, capabilities: Capabilities) -> Columns:
    """What is held, by step; in the order held where several points have one step."""
    if held is None:
        return np.zeros(0, np.int64), np.zeros(0), np.zeros(0)
    step = np.asarray(held.step, np.int64)
    order = np.argsort(step, kind="stable")
    value = _stored(np.asarray(held.value, np.float64), capabilities)
    return step[order], np.asarray(held.time, np.float64)[order], value[order]


def _sorted(columns: Columns) -> Columns:
    """By step, value (NaN last) and time."""
    return _take(columns, np.lexsort((columns[1], columns[2], columns[0])))


def _take(columns: Columns, places: NDArray[np.int64]) -> Columns:
    return columns[0][places], columns[1][places], columns[2][places]


def _others(columns: Columns, places: NDArray[np.int64]) -> NDArray[np.int64]:
    left = np.ones(len(columns[0]), dtype=bool)
    left[places] = False
    return np.flatnonzero(left)


def _same_value(one: NDArray[np.float64], other: NDArray[np.float64] | np.float64) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = (one == other) | (np.isnan(one) & np.isnan(other))
    return same


def _same_time(expected: NDArray[np.float64], found: NDArray[np.float64], tolerance: float) -> NDArray[np.bool_]:
    """Where times agree; an estimated one (NaN in the truth) agrees with any."""
    same: NDArray[np.bool_] = (np.abs(expected - found) <= tolerance) | np.isnan(expected)
    return same


def _compare_points(name: str, expected: Columns, found: Columns, capabilities: Capabilities, out: Findings) -> None:
    """Compare points of the same steps, value by value and time by time."""
    values = np.flatnonzero(~_same_value(expected[2], found[2]))
    _pairs(name, expected[0], expected[2], found[2], values, out)
    times = np.flatnonzero(~_same_time(expected[1], found[1], time_tolerance(capabilities)))
    _pairs(f"{name} (time)", expected[0], expected[1], found[1], times, out)


def _pairs(
    name: str,
    step: NDArray[np.int64],
    expected: NDArray[np.float64],
    found: NDArray[np.float64],
    places: NDArray[np.int64],
    out: Findings,
) -> None:
    shown = places[: out.room].tolist()
    for place in shown:
        both = repr(float(expected[place])), repr(float(found[place]))
        out.add(Difference(Verdict.DIFFERENT, CSV, name, int(step[place]), *both))
    out.more(Verdict.DIFFERENT, len(places) - len(shown))


def _list(verdict: Verdict, name: str, columns: Columns, places: NDArray[np.int64], out: Findings) -> None:
    """Note points that stand on one side only."""
    shown = places[: out.room].tolist()
    for place in shown:
        value = repr(float(columns[2][place]))
        both = (value, None) if verdict is Verdict.SOURCE_ONLY else (None, value)
        out.add(Difference(verdict, CSV, name, int(columns[0][place]), *both))
    out.more(verdict, len(places) - len(shown))


def _without_partner(points: Columns, others: Columns, tolerance: float) -> NDArray[np.int64]:
    """The places of those points of which there is none of the same step, value and time among the others."""
    times: dict[tuple[int, float | None], list[float]] = defaultdict(list)
    for step, time, value in zip(*(column.tolist() for column in others), strict=True):
        times[step, _key(value)].append(time)
    lonely = []
    for place, (step, time, value) in enumerate(zip(*(column.tolist() for column in points), strict=True)):
        partners = times.get((step, _key(value)), ())
        # A comparison with NaN (an estimated time) is false, so it agrees with any time.
        if all(abs(time - partner) > tolerance for partner in partners):
            lonely.append(place)
    return np.array(lonely, dtype=np.int64)


def _key(value: float) -> float | None:
    return None if math.isnan(value) else value

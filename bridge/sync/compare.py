"""Compare what one run directory says with what its target holds: points, media and facts.

`expected` is always the run directory's side. Values and times are compared as exactly as the target declares that it
can hold them (`Capabilities`). Every difference goes into a `Findings`.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections import defaultdict
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace as with_fields

from bridge.errors import counted
from bridge.files import BROKEN_PICTURE, MOST_DECODED_PIXELS, open_file
from bridge.model import Status
from bridge.secrets import Redaction
from bridge.sync.report import Difference, Verdict

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from numpy.typing import NDArray

    from bridge.exporters.contract import Capabilities, TargetContent, TargetMedia
    from bridge.model import MediaEvent, Run, Scalar, Series
    from bridge.options import ContentOptions

CSV = "metrics.csv"
MEDIA = "media.jsonl"
SIDECAR = "sidecar.json"

FIRST = 10
"""How many differences of a run are shown; all of them are counted."""

ROUNDING = 1e-6
"""Seconds. A float64 time since the epoch has steps of 0.24 microseconds, so sums and roundings stay below this."""


@dataclass(slots=True)
class Findings:
    """The differences of one run as they are found: all are counted, the first FIRST are kept.

    `deleted` rows were in event files that are deleted by now. The target keeps them, so what only it has is no
    difference then. `has_event_files`: the points and pictures are in event files.
    """

    first: list[Difference] = field(default_factory=list)
    count: int = 0
    deleted: int = 0
    has_event_files: bool = False

    def add(self, difference: Difference, *, count: int = 1) -> None:
        """Note a difference that stands for `count` of its kind."""
        if self.deleted and difference.verdict is Verdict.TARGET_ONLY:
            return
        self.count += count
        if self.has_event_files and difference.file in (CSV, MEDIA):
            difference = with_fields(difference, file="event files")
        if len(self.first) < FIRST:
            self.first.append(difference)

    def add_points(
        self,
        what: str,
        step: NDArray[np.int64],
        expected: NDArray[np.float64] | None,
        found: NDArray[np.float64] | None,
    ) -> None:
        """Note a difference at each `step` (n,) between the values `expected` (n,) and `found` (n,), None for none."""
        verdict = Verdict.DIFFERENT
        if expected is None or found is None:
            verdict = Verdict.TARGET_ONLY if expected is None else Verdict.SOURCE_ONLY
        for place in range(min(len(step), FIRST)):
            both = [None if side is None else repr(float(side[place])) for side in (expected, found)]
            self.add(Difference(verdict, CSV, what, int(step[place]), *both))
        if len(step) > FIRST and not (self.deleted and verdict is Verdict.TARGET_ONLY):
            self.count += len(step) - FIRST


# Points.


def time_tolerance(capabilities: Capabilities) -> float:
    """Return how far a time may be from the source's, in seconds: the target's resolution, nothing if it is exact."""
    return capabilities.time_step + ROUNDING if capabilities.time_step else 0.0


def compare_metric(
    expected: Series,
    own: Collection[str],
    held: TargetContent,
    content: ContentOptions,
    capabilities: Capabilities,
    out: Findings,
) -> int:
    """Compare one metric: its points, the latest one, and its best. `own` are all metrics of the run.

    Return how many points were expected.
    """
    name = expected.name
    if f"series.{name}" in held.unsupported:
        return 0
    compare_series(name, expected, held.series.get(name), capabilities, out)
    if name in held.last:
        _compare_latest(name, expected, held.last[name], capabilities, out)
    # A metric of the run's own that has the name of the best wins.
    if held.bests is not None and not out.deleted and name in content.bests and f"{name}.best" not in own:
        _compare_best(name, expected, content.bests[name], held.last.get(f"{name}.best"), capabilities, out)
    return len(expected.step)


def compare_series(name: str, expected: Series, held: Series | None, capabilities: Capabilities, out: Findings) -> None:
    """Compare a series point by point: each step is there once, with its value and its time.

    `expected` has one point per step, sorted by step. A time that is NaN there was estimated and is not compared.
    """
    if held is None or not len(held.step):
        count = len(expected.step)
        out.add(Difference(Verdict.SOURCE_ONLY, CSV, name, None, counted(count, "point")), count=count)
        return
    order = np.argsort(held.step, kind="stable")
    step, time, value = expected.step, expected.time, _stored(expected.value, capabilities)
    held_step, held_time, held_value = held.step[order], held.time[order], _stored(held.value, capabilities)[order]
    if not np.array_equal(step, held_step):
        # Pair the points of equal steps. `here` and `there` index the pairs; all other points are on one side only.
        # A step that the target holds twice pairs with the first of its points.
        _, here, there = np.intersect1d(step, held_step, return_indices=True)
        out.add_points(name, np.delete(step, here), np.delete(value, here), None)
        out.add_points(name, np.delete(held_step, there), None, np.delete(held_value, there))
        step, time, value = step[here], time[here], value[here]
        held_time, held_value = held_time[there], held_value[there]
    wrong = ~_same_value(value, held_value)
    out.add_points(name, step[wrong], value[wrong], held_value[wrong])
    # NaN compares false with everything, so an estimated time is never further away than the tolerance.
    wrong = np.abs(time - held_time) > time_tolerance(capabilities)
    out.add_points(f"{name} (time)", step[wrong], time[wrong], held_time[wrong])


def _compare_latest(name: str, expected: Series, shown: Series, capabilities: Capabilities, out: Findings) -> None:
    """Compare the point that the target shows as the latest of a series with the one at the greatest step."""
    step, values = int(expected.step[-1]), [_stored(one.value[-1:], capabilities) for one in (expected, shown)]
    times = float(expected.time[-1]), float(shown.time[0])

    def note(what: str, wanted: object, found: object) -> None:
        out.add(Difference(Verdict.DIFFERENT, CSV, f"{name} ({what})", step, repr(wanted), repr(found)))

    if not _same_value(*values).all():
        note("last", float(values[0][0]), float(values[1][0]))
    if int(shown.step[0]) != step:
        note("last, step", step, int(shown.step[0]))
    # An estimated time is NaN, which compares false with everything.
    if abs(times[0] - times[1]) > time_tolerance(capabilities):
        note("last, time", *times)


def _compare_best(
    name: str, expected: Series, sign: int, shown: Series | None, capabilities: Capabilities, out: Findings
) -> None:
    """Compare the value of `NAME.best`, made for `--best`; `sign` is 1 if greater is better, else -1."""
    value = sign * expected.value
    if np.isnan(value).all():
        return
    place = int(np.nanargmax(value))
    best = _stored(expected.value[[place]], capabilities)
    if shown is None or not _same_value(best, shown.value).all():
        both = repr(float(best[0])), None if shown is None else repr(float(shown.value[0]))
        out.add(Difference(Verdict.DIFFERENT, CSV, f"{name}.best (last)", int(expected.step[place]), *both))


def _stored(value: NDArray[np.float64], capabilities: Capabilities) -> NDArray[np.float64]:
    """Return `value` as the target declares to hold it."""
    if capabilities.value_bits == 32:
        with np.errstate(over="ignore"):
            value = value.astype(np.float32).astype(np.float64)
    if not capabilities.infinities:
        largest = np.finfo(np.float64).max
        value = np.clip(value, -largest, largest)
    return value


def _same_value(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = (one == other) | (np.isnan(one) & np.isnan(other))
    return same


# Media.


def compare_media(
    events: Iterable[MediaEvent],
    held: Iterable[TargetMedia],
    unsupported: frozenset[str],
    capabilities: Capabilities,
    out: Findings,
) -> int:
    """Compare media by tag, step and index, by the digests of their files. Return how many were compared.

    Files of a format that the target converts must be there, whatever their digests; those of a format that it cannot
    hold are not expected. Of a tag in `unsupported` the target may hold less. A picture that nobody can decode may be
    missing. What may be missing, and is, does not count.
    """
    kept, converted = capabilities.media_kept, capabilities.media_converted
    expected: dict[tuple[str, int], list[tuple[MediaEvent, str]]] = defaultdict(list)
    found: dict[tuple[str, int], list[TargetMedia]] = defaultdict(list)
    for event in events:
        if event.format in converted or kept is None or event.format in kept:
            digest = _digest(event)
            if digest is not None:
                expected[event.tag, event.step].append((event, digest))
    for item in held:
        found[item.tag, item.step].append(item)
    count = sum(map(len, expected.values()))
    for tag, step in sorted({*expected, *found}):
        files = expected.get((tag, step), [])
        items = sorted(found.get((tag, step), ()), key=lambda item: item.index)
        if len(files) == len(items):
            for (event, digest), item in zip(files, items, strict=True):
                _compare_item(event, None if event.format in converted else digest, item, capabilities, out)
            continue
        for event, digest in _compare_unpaired(files, items, converted, out):
            if f"media.{tag}" in unsupported or _is_broken(event):
                count -= 1
            else:
                out.add(Difference(Verdict.SOURCE_ONLY, event.where, _title(event), step, digest))
    return count


def _title(event: MediaEvent) -> str:
    return f"media {event.tag} ({event.path})"


def _compare_item(
    event: MediaEvent, digest: str | None, item: TargetMedia, capabilities: Capabilities, out: Findings
) -> None:
    """Compare a media event with its item; `digest` is None if the target converts it.

    A time that the run does not say is not compared.
    """
    caption = event.caption or ""
    what = _title(event)
    if digest is not None and digest != item.digest:
        both = digest, item.digest
    elif item.caption is not None and item.caption != caption:
        both = caption, item.caption
    elif (
        item.time is not None
        and event.is_time_known
        and not _is_close(item.time, event.time, time_tolerance(capabilities))
    ):
        what, both = f"time of {what}", (repr(event.time), repr(item.time))
    else:
        return
    out.add(Difference(Verdict.DIFFERENT, event.where, what, event.step, *both))


def _compare_unpaired(
    files: list[tuple[MediaEvent, str]], items: list[TargetMedia], converted: frozenset[str], out: Findings
) -> list[tuple[MediaEvent, str]]:
    """Note which `items` of one tag and step belong to no file. Return the files that the target does not hold."""
    missing = []
    spare = [item.digest for item in items]
    # Converted files have other digests in the target, so any item that is left can be one of them: they come last.
    for event, digest in sorted(files, key=lambda file: file[0].format in converted):
        if digest in spare:
            spare.remove(digest)
        elif spare and event.format in converted:
            spare.pop()
        else:
            missing.append((event, digest))
    for item in items:
        if item.digest in spare:
            spare.remove(item.digest)
            out.add(Difference(Verdict.TARGET_ONLY, MEDIA, f"media {item.tag}", item.step, None, item.digest))
    return missing


def _digest(event: MediaEvent) -> str | None:
    """Return the sha256 of an event's file in hex, None if the file cannot be read (any more)."""
    try:
        with open_file(event.file) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


_PICTURES = ("png", "jpeg", "gif", "bmp", "webp")


def _is_broken(event: MediaEvent) -> bool:
    """Return whether the event's file only begins like a picture. One that is too large to decode counts as whole."""
    if event.format not in _PICTURES:
        return False
    from PIL import Image

    broken: tuple[type[Exception], ...] = (Image.DecompressionBombError, *BROKEN_PICTURE)
    try:
        with warnings.catch_warnings(), open_file(event.file) as file:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as picture:
                if picture.width * picture.height <= MOST_DECODED_PIXELS:
                    picture.load()
    except broken:
        return True
    return False


# The run's own facts: params, tags, notes, name, status, start and end.


def facts_behind(run: Run, stale: Iterable[str], sent: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of the facts that the run directory has changed since they were last sent.

    `stale` are those that the exporter finds changed. Status and times are compared here too, so that an exporter that
    misses a change is found.
    """
    behind = set(stale)
    if run.status != sent.get("status", run.status):
        behind.add("status")
    for name, now in (("start", run.start), ("end", run.end)):
        if name in sent and not _is_close(now, _seconds(sent[name]), 0.001):
            behind.add(name)
    return tuple(sorted(behind))


@dataclass(frozen=True, slots=True)
class FactsComparison:
    """The facts of one run beside what its target holds.

    `skip` names those that are not compared: people edited them, or the run directory changed since the last export.
    """

    run: Run
    held: TargetContent
    content: ContentOptions
    capabilities: Capabilities
    skip: frozenset[str]
    out: Findings

    def compare(self, sent: Mapping[str, str]) -> int:
        """Compare all facts, status and times as they were last `sent`. Return how many params were expected."""
        for name, expected, found in (
            ("name", self.run.name, self.held.name),
            ("notes", self.run.notes, self.held.notes),
        ):
            is_cut = found is not None and name in self.held.truncated and _is_beginning(found, expected)
            if not (found is None or found == expected or is_cut or self._is_skipped(name)):
                self._add(name, expected, found)
        self._compare_tags()
        status = Status(sent.get("status", self.run.status))
        word = self.capabilities.statuses.get(status)
        if word is not None and not self._is_skipped("status") and word != (self.held.status or ""):
            self._add("status", f"{word or 'nothing'} ({status})", self.held.status or "nothing")
        if self.held.start is not None:
            self._compare_time("start", _seconds(sent["start"]) if "start" in sent else self.run.start, self.held.start)
        end = _seconds(sent["end"]) if "end" in sent else self.run.end
        # A target without a word for the status (not even that there is none) need not say when it ended.
        is_silent = not word and self.held.end is None
        if (end is not None or self.capabilities.clears_end) and not is_silent:
            self._compare_time("end", end, self.held.end)
        return self._compare_params()

    def _is_skipped(self, name: str) -> bool:
        return name in self.skip or name in self.held.unsupported

    def _add(self, what: str, expected: object, found: object) -> None:
        both = [None if one is None else str(one) for one in (expected, found)]
        verdict = Verdict.DIFFERENT
        if expected is None or found is None:
            verdict = Verdict.TARGET_ONLY if expected is None else Verdict.SOURCE_ONLY
        self.out.add(Difference(verdict, SIDECAR, what, None, *both))

    def _compare_tags(self) -> None:
        if self.held.tags is None or self._is_skipped("tags"):
            return
        redaction = Redaction(self.content.redact)
        expected, found = ({redaction.tag(tag) for tag in tags} for tags in (self.run.tags, self.held.tags))
        if expected != found:
            self._add("tags", ", ".join(sorted(expected)), ", ".join(sorted(found)))
        if any(redaction.tag(tag) != tag for tag in self.held.tags):
            self._add("tags", "(masked)", "a secret, in clear")

    def _compare_time(self, name: str, expected: float | None, found: float | None) -> None:
        if not self._is_skipped(name) and not _is_close(expected, found, time_tolerance(self.capabilities)):
            self._add(name, expected, found)

    def _compare_params(self) -> int:
        """Compare the params. A secret must be masked; one that is `volatile` may be older, or gone from the run."""
        held, said = self.held.params, self.run.params
        if held is None or self._is_skipped("params"):
            return 0
        compared = 0
        for key in sorted({*said, *held}):
            if self._is_skipped(f"params.{key}"):
                continue
            compared += key in said
            if key in said and key in held:
                self._compare_param(key, said[key], held[key])
            elif key in held and not _matches(key, self.content.volatile):
                self._add(f"param {key}", None, held[key])
            elif key in said and said[key] is not None:
                self._add(f"param {key}", said[key], None)
        return compared

    def _compare_param(self, key: str, said: Scalar, found: Scalar) -> None:
        redaction = Redaction(self.content.redact)
        expected = redaction.value(key, said)
        is_cut = f"params.{key}" in self.held.truncated and _is_beginning(str(found), str(expected))
        if is_cut or _is_same(expected, found):
            return
        if redaction.value(key, found) != found:
            # A secret in clear must not be shown here either.
            self._add(f"param {key}", "(masked)", "the secret, in clear" if _is_same(said, found) else "something else")
        elif not _matches(key, self.content.volatile):
            self._add(f"param {key}", expected, found)


def _is_same(expected: Scalar, found: Scalar) -> bool:
    """Return whether a target that holds typed values, floats for all numbers, or only text, holds `expected`."""
    if isinstance(expected, bool) or isinstance(found, bool):
        return expected is found or found == str(expected)
    if isinstance(expected, int | float) and isinstance(found, int | float):
        one, other = float(expected), float(found)
        return one == other or (math.isnan(one) and math.isnan(other))
    return found == expected or found == str(expected)


def _is_beginning(held: str, whole: str) -> bool:
    """Return whether `held` is `whole` truncated, with or without an ellipsis at its end."""
    kept = held.rstrip(".\u2026 ")
    return bool(kept) and len(held) < len(whole) and whole.startswith(kept)


def _matches(key: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(key.lower(), glob.lower()) for glob in globs)


def _seconds(text: str) -> float | None:
    return float(text) if text else None


def _is_close(one: float | None, other: float | None, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= tolerance

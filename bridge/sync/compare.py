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

from bridge.errors import counted
from bridge.files import BROKEN_PICTURE, MOST_DECODED_PIXELS, open_file
from bridge.model import Status
from bridge.rundir.overlap import same_values
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
    """The differences between one run and its target as they are found: all are counted, the first FIRST are kept.

    `deleted` rows were in event files that are deleted by now. The target keeps them, so what only it has is no
    difference then. `has_event_files`: the points and pictures are in event files.
    """

    capabilities: Capabilities
    first: list[Difference] = field(default_factory=list)
    count: int = 0
    deleted: int = 0
    has_event_files: bool = False

    @property
    def time_tolerance(self) -> float:
        """Return how far a time may be from the source's, in seconds: the target's resolution, 0 if it is exact."""
        return self.capabilities.time_step + ROUNDING if self.capabilities.time_step else 0.0

    def add(
        self,
        file: str,
        what: str,
        expected: str | None,
        found: str | None,
        step: int | None = None,
        *,
        count: int = 1,
        verdict: Verdict | None = None,
    ) -> None:
        """Note a difference that stands for `count` of its kind. A side that is None lacks the thing."""
        if verdict is None:
            one_side = Verdict.TARGET_ONLY if expected is None else Verdict.SOURCE_ONLY
            verdict = one_side if expected is None or found is None else Verdict.DIFFERENT
        if self.deleted and verdict is Verdict.TARGET_ONLY:
            return
        self.count += count
        if len(self.first) < FIRST:
            place = "event files" if self.has_event_files and file in (CSV, MEDIA) else file
            self.first.append(Difference(verdict, place, what, step, expected, found))

    def add_points(
        self,
        what: str,
        step: NDArray[np.int64],
        expected: NDArray[np.float64] | None,
        found: NDArray[np.float64] | None,
    ) -> None:
        """Note a difference at each `step` (n,) between the values `expected` (n,) and `found` (n,), None for none."""
        for place in range(min(len(step), FIRST)):
            one, other = (None if side is None else repr(float(side[place])) for side in (expected, found))
            # The last one that is listed stands for all that follow.
            count = len(step) - place if place == FIRST - 1 else 1
            self.add(CSV, what, one, other, int(step[place]), count=count)


# Points.


def compare_metric(
    expected: Series, own: Collection[str], held: TargetContent, content: ContentOptions, out: Findings
) -> int:
    """Compare one metric: its points, the latest one, and its best. `own` are all metrics of the run.

    Return how many points were expected.
    """
    name = expected.name
    if f"series.{name}" in held.unsupported:
        return 0
    compare_series(expected, held.series.get(name), out)
    if name in held.last:
        _compare_latest(expected, held.last[name], out)
    # A metric of the run's own that has the name of the best wins.
    if held.bests is not None and not out.deleted and name in content.bests and f"{name}.best" not in own:
        _compare_best(expected, content.bests[name], held.last.get(f"{name}.best"), out)
    return len(expected.step)


def compare_series(expected: Series, held: Series | None, out: Findings) -> None:
    """Compare a series point by point: each step is there once, with its value and its time.

    `expected` has one point per step, sorted by step. A time that is NaN there was estimated and is not compared.
    """
    name = expected.name
    if held is None or not len(held.step):
        count = len(expected.step)
        out.add(CSV, name, counted(count, "point"), None, count=count)
        return
    order = np.argsort(held.step, kind="stable")
    step, time, value = expected.step, expected.time, _stored(expected.value, out)
    held_step, held_time, held_value = held.step[order], held.time[order], _stored(held.value, out)[order]
    if not np.array_equal(step, held_step):
        # Pair the points of equal steps. `here` and `there` index the pairs; all other points are on one side only.
        # A step that the target holds twice pairs with the first of its points.
        _, here, there = np.intersect1d(step, held_step, return_indices=True)
        out.add_points(name, np.delete(step, here), np.delete(value, here), None)
        out.add_points(name, np.delete(held_step, there), None, np.delete(held_value, there))
        step, time, value = step[here], time[here], value[here]
        held_time, held_value = held_time[there], held_value[there]
    wrong = ~same_values(value, held_value)
    out.add_points(name, step[wrong], value[wrong], held_value[wrong])
    # NaN compares false with everything, so an estimated time is never further away than the tolerance.
    wrong = np.abs(time - held_time) > out.time_tolerance
    out.add_points(f"{name} (time)", step[wrong], time[wrong], held_time[wrong])


def _compare_latest(expected: Series, shown: Series, out: Findings) -> None:
    """Compare the point that the target shows as the latest of a series with the one at the greatest step."""
    step, time = int(expected.step[-1]), float(expected.time[-1])
    if out.deleted and int(shown.step[0]) > step:
        return  # that point was in an event file that is deleted by now
    value, shown_value = _stored(expected.value[-1:], out), _stored(shown.value, out)
    # An estimated time is NaN, which compares false with everything.
    is_late = abs(time - float(shown.time[0])) > out.time_tolerance
    for what, is_wrong, wanted, found in (
        ("last", not same_values(value, shown_value).all(), float(value[0]), float(shown_value[0])),
        ("last, step", int(shown.step[0]) != step, step, int(shown.step[0])),
        ("last, time", is_late, time, float(shown.time[0])),
    ):
        if is_wrong:
            out.add(CSV, f"{expected.name} ({what})", repr(wanted), repr(found), step)


def _compare_best(expected: Series, sign: int, shown: Series | None, out: Findings) -> None:
    """Compare the value of `NAME.best`, made for `--best`; `sign` is 1 if greater is better, else -1."""
    value = sign * expected.value
    if np.isnan(value).all():
        return
    place = int(np.nanargmax(value))
    best = _stored(expected.value[[place]], out)
    if shown is None or not same_values(best, shown.value).all():
        found = None if shown is None else repr(float(shown.value[0]))
        out.add(CSV, f"{expected.name}.best (last)", repr(float(best[0])), found, int(expected.step[place]))


def _stored(value: NDArray[np.float64], out: Findings) -> NDArray[np.float64]:
    """Return `value` as the target declares to hold it."""
    if out.capabilities.value_bits == 32:
        with np.errstate(over="ignore"):
            value = value.astype(np.float32).astype(np.float64)
    if not out.capabilities.infinities:
        largest = np.finfo(np.float64).max
        value = np.clip(value, -largest, largest)
    return value


# Media.


def compare_media(
    events: Iterable[MediaEvent], held: Iterable[TargetMedia], unsupported: frozenset[str], out: Findings
) -> int:
    """Compare media by tag, step and index, by the digests of their files. Return how many were compared.

    Files of a format that the target converts must be there, whatever their digests; those of a format that it cannot
    hold are not expected. Of a tag in `unsupported` the target may hold less. A picture that nobody can decode may be
    missing. What may be missing, and is, does not count.
    """
    kept, converted = out.capabilities.media_kept, out.capabilities.media_converted
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
                _compare_item(event, None if event.format in converted else digest, item, out)
            continue
        for event, digest in _compare_unpaired(files, items, converted, out):
            if f"media.{tag}" in unsupported or _is_broken(event):
                count -= 1
            else:
                out.add(event.where, _title(event), digest, None, step)
    return count


def _title(event: MediaEvent) -> str:
    return f"media {event.tag} ({event.path})"


def _compare_item(event: MediaEvent, digest: str | None, item: TargetMedia, out: Findings) -> None:
    """Compare a media event with its item; `digest` is None if the target converts it.

    A time that the run does not say is not compared.
    """
    title, caption = _title(event), event.caption or ""
    if digest is not None and digest != item.digest:
        out.add(event.where, title, digest, item.digest, event.step)
    elif item.caption is not None and item.caption != caption:
        out.add(event.where, title, caption, item.caption, event.step)
    elif item.time is not None and event.is_time_known and not _is_close(item.time, event.time, out.time_tolerance):
        out.add(event.where, f"time of {title}", repr(event.time), repr(item.time), event.step)


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
            out.add(MEDIA, f"media {item.tag}", None, item.digest, item.step)
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


def compare_facts(
    run: Run, held: TargetContent, content: ContentOptions, skip: frozenset[str], sent: Mapping[str, str], out: Findings
) -> int:
    """Compare all facts, status and times as they were last `sent`. Return how many params were expected.

    `skip` names those that are not compared: people edited them, or the run directory changed since the last export.
    """
    skip |= held.unsupported
    for name, text, held_text in (("name", run.name, held.name), ("notes", run.notes, held.notes)):
        is_cut = held_text is not None and name in held.truncated and _is_beginning(held_text, text)
        if not (held_text is None or held_text == text or is_cut or name in skip):
            out.add(SIDECAR, name, text, held_text)
    if held.tags is not None and "tags" not in skip:
        _compare_tags(run.tags, held.tags, Redaction(content.redact), out)
    status = Status(sent.get("status", run.status))
    word = out.capabilities.statuses.get(status)
    if word is not None and "status" not in skip and word != (held.status or ""):
        out.add(SIDECAR, "status", f"{word or 'nothing'} ({status})", held.status or "nothing")
    start, end = (_seconds(sent[name]) if name in sent else getattr(run, name) for name in ("start", "end"))
    times: list[tuple[str, float | None, float | None]] = []
    if held.start is not None:
        times.append(("start", start, held.start))
    # A target without a word for the status (not even that there is none) need not say when it ended.
    if (word or held.end is not None) and (end is not None or out.capabilities.clears_end):
        times.append(("end", end, held.end))
    for name, expected, found in times:
        if name not in skip and not _is_close(expected, found, out.time_tolerance):
            out.add(SIDECAR, name, _text(expected), _text(found))
    return 0 if held.params is None or "params" in skip else _compare_params(run.params, held, content, skip, out)


def _compare_tags(tags: Iterable[str], held: Iterable[str], redaction: Redaction, out: Findings) -> None:
    expected, found = ({redaction.tag(tag) for tag in each} for each in (tags, held))
    if expected != found:
        out.add(SIDECAR, "tags", ", ".join(sorted(expected)), ", ".join(sorted(found)))
    if any(redaction.tag(tag) != tag for tag in held):
        out.add(SIDECAR, "tags", "(masked)", "a secret, in clear")


def _compare_params(
    params: Mapping[str, Scalar], held: TargetContent, content: ContentOptions, skip: frozenset[str], out: Findings
) -> int:
    """Compare the params. A secret must be masked; one that is `volatile` may be older, or gone from the run."""
    found = held.params or {}
    redaction = Redaction(content.redact)
    compared = 0
    for key in sorted({*params, *found}):
        if f"params.{key}" in skip:
            continue
        compared += key in params
        what, said = f"param {key}", params.get(key)
        is_volatile = any(fnmatchcase(key.lower(), glob.lower()) for glob in content.volatile)
        if key not in found:
            if said is not None:
                out.add(SIDECAR, what, str(redaction.value(key, said)), None)
            continue
        there = found[key]
        if key not in params:
            if not is_volatile:
                out.add(SIDECAR, what, None, _text(redaction.value(key, there)))
            continue
        expected = redaction.value(key, said)
        is_cut = f"params.{key}" in held.truncated and _is_beginning(str(there), str(expected))
        if is_cut or _is_same(expected, there):
            continue
        if redaction.value(key, there) != there:
            # A secret in clear must not be shown here either.
            out.add(SIDECAR, what, "(masked)", "the secret, in clear" if _is_same(said, there) else "something else")
        elif not is_volatile:
            out.add(SIDECAR, what, str(expected), str(there))
    return compared


def _text(value: object) -> str | None:
    return None if value is None else str(value)


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
    return 0 < len(held) < len(whole) and whole.startswith(kept or held)


def _seconds(text: str) -> float | None:
    return float(text) if text else None


def _is_close(one: float | None, other: float | None, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= tolerance

"""The lines of media.jsonl, and which of them count."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bridge.bounds import LONGEST_EVENT, MOST_MEDIA, MOST_MEDIA_BYTES, MOST_TRIES, shortened
from bridge.model import MediaType, Notice, NoticeKind
from bridge.rundir.hparams import clean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Line", "Lines", "counting_lines", "parse_line"]

_MOST_NAMED = 20
_YEAR_10000 = 253402300800.0


@dataclass(frozen=True, slots=True)
class Line:
    """One well-formed line; `number` counts from 0."""

    number: int
    tag: str
    step: int
    type: MediaType
    path: str
    time: float | None = None
    caption: str | None = None
    fps: float | None = None
    session: int | None = None


@dataclass(slots=True)
class Lines:
    """The complete lines of a media.jsonl: those that are events, and what is wrong with lines from number `first` on."""

    first: int = 0
    events: list[Line] = field(default_factory=list)
    size: int = 0
    wrong: list[Notice] = field(default_factory=list)
    more: int = 0
    beyond: int = 0

    def add(self, number: int, line: bytes) -> None:
        """Take one more complete line."""
        event, why = parse_line(number, line)
        if event is not None and (len(self.events) == MOST_MEDIA or self.size + len(line) > MOST_MEDIA_BYTES):
            self.beyond += number >= self.first
        elif event is not None:
            self.events.append(event)
            self.size += len(line)
        if why and number >= self.first:
            if len(self.wrong) < _MOST_NAMED:
                self.wrong.append(Notice(NoticeKind.BAD_LINE, f"media.jsonl:{number + 1}", why))
            else:
                self.more += 1

    def notices(self) -> list[Notice]:
        """What is wrong with the lines from number `first` on."""
        notices = list(self.wrong)
        if self.more:
            notices.append(Notice(NoticeKind.BAD_LINE, "media.jsonl", "further bad lines", self.more))
        if self.beyond:
            detail = f"the first {MOST_MEDIA:,} events in {MOST_MEDIA_BYTES >> 20} MiB of lines are kept"
            notices.append(Notice(NoticeKind.TOO_LARGE, "media.jsonl", detail, self.beyond))
        return notices


def parse_line(number: int, line: bytes) -> tuple[Line | None, str]:
    """The event in `line`, and what is wrong with it ("" for nothing).

    A torn line swallows the start of the next event: where a whole event ends the line, it is taken.
    """
    if len(line) > LONGEST_EVENT:
        return None, f"is longer than {LONGEST_EVENT >> 20} MiB"
    if line.isspace():
        return None, "is blank"
    try:
        return _event(number, json.loads(line))
    except RecursionError:
        return None, "is nested too deeply"
    except ValueError as error:
        why = f"is not JSON ({error})"
    start = line.find(b'{"', 1)
    tries = 0
    while start > 0 and tries < MOST_TRIES:
        tries += 1
        try:
            event, _ = _event(number, json.loads(line[start:]))
        except (ValueError, RecursionError):
            event = None
        if event is not None:
            return event, "begins with a torn line, which is lost; the event after it is taken"
        start = line.find(b'{"', start + 1)
    return None, why


def _event(number: int, data: Any) -> tuple[Line | None, str]:
    if not isinstance(data, dict):
        return None, f"holds a JSON {type(data).__name__}, not an object"
    tag, step, path, kind = (data.get(key) for key in ("tag", "step", "path", "type"))
    if not isinstance(tag, str):
        return None, "has no tag that is a text"
    if not isinstance(step, int) or isinstance(step, bool) or not -(2**63) <= step < 2**63:
        return None, f"has the step {step!r:.40}, no 64-bit integer"
    if not isinstance(path, str):
        return None, "has no path that is a text"
    if kind not in ("image", "video"):
        return None, f"has the type {kind!r:.40}, neither image nor video"
    caption, session = data.get("caption"), data.get("session")
    why = "" if shortened(tag) == tag else f"has a tag of {len(tag)} characters, of which the first are kept"
    return Line(
        number=number,
        tag=shortened(clean(tag)),
        step=step,
        type=MediaType(kind),
        path=clean(path),
        time=_time(data),
        caption=clean(caption) if isinstance(caption, str) else None,
        fps=_number(data, "fps"),
        session=session if _is_whole(session) else None,
    ), why


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _time(data: Mapping[str, Any]) -> float | None:
    """When the event was logged; None where it does not say, or says what no clock gives."""
    time = _number(data, "time")
    return time if time is not None and time < _YEAR_10000 else None


def _number(data: Mapping[str, Any], key: str) -> float | None:
    value = data.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def counting_lines(events: Iterable[Line]) -> tuple[dict[tuple[int, int], Line], dict[int, Line]]:
    """The events that count, by (number, index among those of their tag and step), and what superseded others.

    Per tag and step those of the last session count; without sessions, of those with one path the last.
    """
    groups: dict[tuple[str, int], list[Line]] = {}
    for event in events:
        groups.setdefault((event.tag, event.step), []).append(event)
    found: dict[tuple[int, int], Line] = {}
    superseded: dict[int, Line] = {}
    for group in groups.values():
        last = [event for event in group if event.session == group[-1].session]
        if group[-1].session is None:
            by_path = {event.path: event for event in last}
            superseded.update({event.number: by_path[event.path] for event in last if by_path[event.path] is not event})
            last = sorted(by_path.values(), key=lambda event: event.number)
        found.update({(event.number, index): event for index, event in enumerate(last)})
    return dict(sorted(found.items())), superseded

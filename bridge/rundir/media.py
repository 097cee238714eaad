"""Read the media of a run: the events past a cursor, which of them count, and what their files are.

media.jsonl is read whole, up to its size limit. A cursor holds the number of lines that a target has and a digest of
those lines, so a change to them is noticed. The pictures in event files come with the rows: those that a target has lie
before the byte at which its rows end.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from bridge.errors import RunDirectoryError, counted
from bridge.files import (
    LARGEST_MEDIA,
    LARGEST_MEDIA_LIST,
    LONGEST_EVENT,
    Refused,
    clean,
    inside,
    open_plain,
    read_head,
    shortened,
)
from bridge.model import MediaEvent, MediaType, Notice, NoticeKind, RunFile
from bridge.rundir.event_runs import EventTable
from bridge.rundir.header import bytes_digest
from bridge.rundir.resume import Changed, open_table
from bridge.rundir.run import first_named
from logger.files import SNIFFED_BYTES, VIDEO_FORMATS, sniff
from logger.sidecar import parse_time

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from bridge.model import Cursor, Run
    from bridge.rundir.event_file import Picture


@dataclass(slots=True)
class MediaDelta:
    """The media events past a cursor.

    `superseded` says why events that the cursor covers no longer count, "" if all of them do. `lines`, `offset` and
    `digest` are the cursor's after this delta: complete lines, their bytes, a digest of them. `stat` is (size, mtime
    in nanoseconds) from before the first byte was read, zeros without a file.
    """

    events: tuple[MediaEvent, ...] = ()
    superseded: str = ""
    notices: list[Notice] = field(default_factory=list)
    lines: int = 0
    offset: int = 0
    digest: str = ""
    stat: tuple[int, int] = (0, 0)


def read_media(run: Run, cursor: Cursor | None, *, until: Cursor | None = None) -> MediaDelta:
    """Return the media events of `run` past `cursor`, or all of them without one.

    With `until` lines past that cursor are ignored, though `MediaDelta.lines` counts them. A last line without its
    newline is not there yet. Raises Changed if the lines that the cursor covers have changed,
    and RunDirectoryError if media.jsonl cannot be read.
    """
    if run.event_files:
        with open_table(run) as table:
            assert isinstance(table, EventTable)
            place = table.find(until) if until is not None else None
            for _ in table.rows():
                pass
            found = read_pictures(run, table, None, 0, table.size if place is None else place[1])
            found.lines = len(table.pictures(table.size))
            return found
    covered = cursor.media_lines if cursor is not None else 0
    lines, found = _complete_lines(run.files.get("media.jsonl"))
    if found.stat == (0, 0):
        if covered:
            raise Changed("media.jsonl is gone", ("gone",))
        return found
    if len(lines) < covered:
        reason = f"media.jsonl has {counted(len(lines), 'line')}, the target was made of {covered:,}"
        raise Changed(reason, (found.stat, len(lines)))
    if cursor is not None and (digest := _digest(lines[:covered])) != cursor.media_digest:
        raise Changed("media.jsonl: lines that are in the target have changed", (found.stat, digest))
    lines = lines[: None if until is None else until.media_lines]
    parsed = [_parse_line(number, line, run.files["media.jsonl"]) for number, line in enumerate(lines)]
    events = [line for line, _ in parsed if line is not None]
    bad = [
        Notice(NoticeKind.BAD_LINE, f"media.jsonl:{number + 1}", problem)
        for number, (_, problem) in enumerate(parsed)
        if problem and number >= covered
    ]
    found.notices += first_named(bad, "media.jsonl", "further bad lines")
    _apply_overlap(run, found, events, covered)
    return found


def read_pictures(run: Run, table: EventTable, cursor: Cursor | None, begin: int, end: int) -> MediaDelta:
    """Return the pictures in event files between two bytes of `table`; `cursor` ends at `begin`.

    The rows between them were read. Rows before them are read if there are new pictures. All pictures are new where the
    pictures of `cursor` do not go as far as its rows, because they could not be stored.
    """
    media_kept_up = cursor is not None and cursor.media_offset == cursor.offset
    covered = begin if media_kept_up else 0
    found = MediaDelta(lines=cursor.media_lines if cursor is not None and media_kept_up else 0, offset=end)
    if begin and (not media_kept_up or any(at >= begin for at, *_ in table.pictures(end))):
        for _ in table.rows(stop=begin):
            pass
    pictures = table.pictures(end)
    events = [
        _picture_event(number, session, file, picture) for number, (_, session, file, picture) in enumerate(pictures)
    ]
    known = sum(at < covered for at, *_ in pictures)
    found.lines += len(events) - known
    _apply_overlap(run, found, events, known)
    return found


def _picture_event(number: int, session: int, file: RunFile, picture: Picture) -> MediaEvent:
    seconds = parse_time(picture.time)
    mtime_ns = file.mtime_ns if seconds is None else int(seconds * 1e9)
    return MediaEvent(
        line=number,
        tag=shortened(clean(picture.tag)),
        step=picture.step,
        index=0,
        type=MediaType.IMAGE,
        path=f"{file.path.name}:{picture.offset}",
        file=RunFile(file.path, picture.size, mtime_ns, picture.offset),
        format="",
        time=seconds or 0.0,
        is_time_known=seconds is not None,
        session=session,
    )


def _apply_overlap(run: Run, found: MediaDelta, events: Sequence[MediaEvent], covered: int) -> None:
    """Put into `found` the events that count and are new, and whether one of the first `covered` no longer counts."""
    counting = _counting(events)
    counted_before = _counting(event for event in events if event.line < covered)
    found.notices += _shared_file_notices(counting, covered)
    known, kept = set(counted_before), set(counting)
    found.events = tuple(_with_files(run, [event for event in counting if event not in known], found.notices))
    gone = [event for event in counted_before if event not in kept]
    if gone:
        first = gone[0]
        found.superseded = (
            f"{first.where}: {first.tag} at step {first.step} is superseded by a later line"
            f" ({len(gone)} media no longer count)"
        )


def _complete_lines(file: RunFile | None) -> tuple[list[bytes], MediaDelta]:
    """Return the complete lines without their newlines, and a delta that holds nothing but what describes them."""
    found = MediaDelta()
    if file is None:
        return [], found
    try:
        with open_plain(file.path) as stream:
            status = os.fstat(stream.fileno())
            data = stream.read(min(status.st_size, LARGEST_MEDIA_LIST))
    except FileNotFoundError:
        return [], found
    except OSError as error:
        raise RunDirectoryError(f"{file.path} cannot be read: {error.strerror}.") from error
    found.stat = (status.st_size, status.st_mtime_ns)
    if status.st_size > LARGEST_MEDIA_LIST:
        detail = f"larger than {LARGEST_MEDIA_LIST >> 20} MiB; lines beyond are not read"
        found.notices.append(Notice(NoticeKind.TOO_LARGE, "media.jsonl", detail))
    lines = data.split(b"\n")[:-1]
    found.lines, found.offset, found.digest = len(lines), data.rfind(b"\n") + 1, _digest(lines)
    return lines, found


def _digest(lines: Sequence[bytes]) -> str:
    return bytes_digest(b"\n".join([*lines, b""])) if lines else ""


def _parse_line(number: int, line: bytes, file: RunFile) -> tuple[MediaEvent | None, str]:
    """Return the event in `line` of media.jsonl, and what is wrong with the line ("" if nothing is).

    Until the event's own file is looked at, its file is `file`, media.jsonl, without a format.

    A writer that was killed in the middle of a line leaves a torn one, and the next event may follow on the same line.
    That event counts.
    """
    if len(line) > LONGEST_EVENT:
        return None, f"is longer than {LONGEST_EVENT >> 20} MiB"
    if not line or line.isspace():
        return None, "is blank"
    try:
        return _event(number, json.loads(line), file)
    except RecursionError:
        return None, "is nested too deeply"
    except ValueError as error:
        problem = f"is not JSON ({error})"
    try:
        event, _ = _event(number, json.loads(line[max(0, line.rfind(b'{"')) :]), file)
    except (ValueError, RecursionError):
        event = None
    if event is None:
        return None, problem
    return event, "begins with a torn line, which is lost; the event after it is taken"


def _event(number: int, data: Any, file: RunFile) -> tuple[MediaEvent | None, str]:
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
    caption, session, then = data.get("caption"), data.get("session"), data.get("time")
    time = parse_time(then) if isinstance(then, int | float) else None
    problem = "" if shortened(tag) == tag else f"has a tag of {len(tag)} characters, of which the first are kept"
    return MediaEvent(
        line=number,
        tag=shortened(clean(tag)),
        step=step,
        index=0,
        type=MediaType(kind),
        path=clean(path),
        file=file,
        format="",
        time=time or 0.0,
        is_time_known=time is not None,
        caption=clean(caption) if isinstance(caption, str) else None,
        fps=_positive(data.get("fps")),
        session=session if isinstance(session, int) and not isinstance(session, bool) else None,
    ), problem


def _positive(value: object) -> float | None:
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _counting(events: Iterable[MediaEvent]) -> list[MediaEvent]:
    """Return the events that count, each with its index, which is the place among the events of one tag and step.

    Per tag and step the events of the last session count. Where lines say nothing of sessions, the last line with each
    path counts: the file holds what that line says.
    """
    groups: dict[tuple[str, int], list[MediaEvent]] = {}
    for event in events:
        groups.setdefault((event.tag, event.step), []).append(event)
    found: list[MediaEvent] = []
    for group in groups.values():
        last = [event for event in group if event.session == group[-1].session]
        if group[-1].session is None:
            last = sorted({event.path: event for event in last}.values(), key=lambda event: event.line)
        found += [replace(event, index=index) for index, event in enumerate(last)]
    return sorted(found, key=lambda event: event.line)


def _with_files(run: Run, events: Iterable[MediaEvent], notices: list[Notice]) -> Iterator[MediaEvent]:
    """Yield the events whose files are pictures or videos, and add a notice for each of the others."""
    for event in events:
        try:
            file = event.file if event.file.offset is not None else inside(run.path, event.path)
            head = read_head(file.path, SNIFFED_BYTES, offset=file.offset or 0)
        except Refused as error:
            kind, problem = NoticeKind.MISSING_FILE if error.missing else NoticeKind.REFUSED_PATH, str(error)
        except OSError as error:
            kind, problem = NoticeKind.UNREADABLE_MEDIA, f"cannot be read: {error.strerror}"
        else:
            form = sniff(head)
            if file.size > LARGEST_MEDIA:
                kind, problem = NoticeKind.TOO_LARGE, f"is larger than {LARGEST_MEDIA >> 30} GiB"
            elif form is None:
                problem = "is neither a picture nor a video" if head else "is empty"
                kind = NoticeKind.UNREADABLE_MEDIA
            else:
                time = event.time if event.is_time_known else file.mtime_ns / 1e9
                type_ = MediaType.VIDEO if form in VIDEO_FORMATS else event.type
                yield replace(event, file=file, format=form, time=time, type=type_)
                continue
        notices.append(Notice(kind, event.where, f"{event.tag}: {event.path} {problem}"))


def _shared_file_notices(events: Iterable[MediaEvent], covered: int) -> list[Notice]:
    """Return a notice for tags that share files, such as `a/b` and `a__b`: both show what was written last."""
    tags: dict[str, dict[str, bool]] = {}
    for event in events:
        of_path = tags.setdefault(event.path, {})
        of_path[event.tag] = of_path.get(event.tag, False) or event.line >= covered
    shared: dict[str, list[str]] = {}
    for path, of_path in tags.items():
        if len(of_path) > 1 and any(of_path.values()):
            shared.setdefault(", ".join(of_path), []).append(path)
    return [
        Notice(
            NoticeKind.SHARED_FILE, names, f"these tags share {paths[0]}, which holds what was written last", len(paths)
        )
        for names, paths in shared.items()
    ]

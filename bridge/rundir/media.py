"""Read the media of a run: the events past a cursor, which of them count, and what their files are.

media.jsonl is read whole, up to its size limit. A cursor holds the number of lines that a target has and a digest of
those lines, so a change to them is noticed. The pictures in event files come with the rows: those that a target has lie
before the byte at which its rows end.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bridge.errors import RunDirectoryError
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
from bridge.rundir.discover import FILES, stamp
from bridge.rundir.event_runs import EventTable
from bridge.rundir.resume import Changed, open_table
from bridge.rundir.run import first_named
from logger.files import SNIFFED_BYTES, VIDEO_FORMATS, sniff
from logger.sidecar import parse_time

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from bridge.model import Cursor, Run
    from bridge.rundir.event_file import Picture

__all__ = ["MediaDelta", "media_stamp", "read_media", "read_pictures"]


@dataclass(slots=True)
class MediaDelta:
    """The media events past a cursor, and those that the cursor covers and that no longer count (`removed`).

    `lines`, `offset` and `digest` are the cursor's after this delta: complete lines, their bytes, a digest of them.
    `stat` is (size, mtime in nanoseconds) from before the first byte was read, zeros without a file. `reason` says
    why events were removed.
    """

    events: tuple[MediaEvent, ...] = ()
    removed: tuple[MediaEvent, ...] = ()
    notices: list[Notice] = field(default_factory=list)
    reason: str = ""
    lines: int = 0
    offset: int = 0
    digest: str = ""
    stat: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class MediaLine:
    """A well-formed line of media.jsonl, or a picture in an event file; `line` counts from 0.

    `part` is the part of the event file that holds the picture. The file of a line is at `path`.
    """

    line: int
    tag: str
    step: int
    type: MediaType
    path: str
    time: float | None = None
    caption: str | None = None
    fps: float | None = None
    session: int | None = None
    part: RunFile | None = None

    @property
    def where(self) -> str:
        """Return the place of the event, for a person."""
        return f"media.jsonl:{self.line + 1}" if self.part is None else self.path


def media_stamp(run_dir: str, kind: str) -> tuple[object, ...]:
    """Return what stat says of the file with the media of a run, or of its event files; () if there are none."""
    if kind == "TensorBoardLogger":
        return stamp(run_dir)[len(FILES) :]
    try:
        found = os.stat(f"{run_dir}{os.sep}media.jsonl")  # noqa: PTH116 - called for thousands of runs
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns


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
    lines, found = _complete_lines(run)
    if found.stat == (0, 0) and covered:
        raise Changed("media.jsonl is gone", ("gone",))
    if len(lines) < covered:
        reason = f"media.jsonl has {len(lines)} lines, the target was made of {covered}"
        raise Changed(reason, (found.stat, len(lines)))
    if cursor is not None and (digest := _digest(lines[:covered])) != cursor.media_digest:
        raise Changed("media.jsonl: lines that are in the target have changed", (found.stat, digest))
    parsed = [
        parse_line(number, line) for number, line in enumerate(lines[: None if until is None else until.media_lines])
    ]
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
    is_even = cursor is not None and cursor.media_offset == cursor.offset
    covered = begin if is_even else 0
    found = MediaDelta(lines=cursor.media_lines if cursor is not None and is_even else 0, offset=end)
    if begin and (not is_even or any(at > begin for at, *_ in table.pictures(end))):
        for _ in table.rows(stop=begin):
            pass
    pictures = table.pictures(end)
    events = [
        _picture_line(number, session, file, picture) for number, (_, session, file, picture) in enumerate(pictures)
    ]
    known = sum(at <= covered for at, *_ in pictures)
    found.lines += len(events) - known
    _apply_overlap(run, found, events, known)
    return found


def _picture_line(number: int, session: int, file: RunFile, picture: Picture) -> MediaLine:
    time = parse_time(picture.time)
    mtime_ns = file.mtime_ns if time is None else int(time * 1e9)
    return MediaLine(
        line=number,
        tag=shortened(clean(picture.tag)),
        step=picture.step,
        type=MediaType.IMAGE,
        path=f"{file.path.name}:{picture.offset}",
        time=time,
        session=session,
        part=RunFile(file.path, picture.size, mtime_ns, picture.offset),
    )


def _apply_overlap(run: Run, found: MediaDelta, events: Sequence[MediaLine], covered: int) -> None:
    """Put into `found` the events that count and are new, and those of the first `covered` that no longer count."""
    now, written_over = counting_lines(events)
    then, _ = counting_lines(event for event in events if event.line < covered)
    found.notices += _written_over_notices(written_over, covered)
    found.notices += _shared_file_notices(now.values(), covered)
    new = {key: event for key, event in now.items() if key not in then}
    found.events = tuple(_with_files(run, new, found.notices))
    gone = {key: event for key, event in then.items() if key not in now}
    if gone:
        found.removed = tuple(_superseded(run, key, event) for key, event in gone.items())
        first = min(gone.values(), key=lambda event: event.line)
        found.reason = (
            f"{first.where}: {first.tag} at step {first.step} is superseded by a later line"
            f" ({len(gone)} media no longer count)"
        )


def _complete_lines(run: Run) -> tuple[list[bytes], MediaDelta]:
    """Return the complete lines without their newlines, and a delta that holds nothing but what describes them."""
    found = MediaDelta()
    file = run.files.get("media.jsonl")
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
    return hashlib.blake2b(b"\n".join([*lines, b""]), digest_size=10).hexdigest() if lines else ""


def parse_line(number: int, line: bytes) -> tuple[MediaLine | None, str]:
    """Return the event in `line`, and what is wrong with the line ("" if nothing is).

    A writer that was killed in the middle of a line leaves a torn one, and the next event may follow on the same line.
    That event counts.
    """
    if len(line) > LONGEST_EVENT:
        return None, f"is longer than {LONGEST_EVENT >> 20} MiB"
    if not line or line.isspace():
        return None, "is blank"
    try:
        return _event(number, json.loads(line))
    except RecursionError:
        return None, "is nested too deeply"
    except ValueError as error:
        problem = f"is not JSON ({error})"
    try:
        event, _ = _event(number, json.loads(line[max(0, line.rfind(b'{"')) :]))
    except (ValueError, RecursionError):
        event = None
    if event is None:
        return None, problem
    return event, "begins with a torn line, which is lost; the event after it is taken"


def _event(number: int, data: Any) -> tuple[MediaLine | None, str]:
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
    caption, session, time = data.get("caption"), data.get("session"), data.get("time")
    problem = "" if shortened(tag) == tag else f"has a tag of {len(tag)} characters, of which the first are kept"
    return MediaLine(
        line=number,
        tag=shortened(clean(tag)),
        step=step,
        type=MediaType(kind),
        path=clean(path),
        time=parse_time(time) if isinstance(time, int | float) else None,
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


def counting_lines(events: Iterable[MediaLine]) -> tuple[dict[tuple[int, int], MediaLine], dict[int, MediaLine]]:
    """Return the events that count, and the later line for each line number that was written over.

    The key of an event is (line number, index among the events of its tag and step). Per tag and step the events of the
    last session count. Where lines say nothing of sessions, the last line with each path counts.
    """
    groups: dict[tuple[str, int], list[MediaLine]] = {}
    for event in events:
        groups.setdefault((event.tag, event.step), []).append(event)
    found: dict[tuple[int, int], MediaLine] = {}
    written_over: dict[int, MediaLine] = {}
    for group in groups.values():
        last = [event for event in group if event.session == group[-1].session]
        if group[-1].session is None:
            by_path = {event.path: event for event in last}
            written_over.update({event.line: by_path[event.path] for event in last})
            last = sorted(by_path.values(), key=lambda event: event.line)
        found.update({(event.line, index): event for index, event in enumerate(last)})
    return dict(sorted(found.items())), {
        number: event for number, event in written_over.items() if event.line != number
    }


def _with_files(run: Run, events: Mapping[tuple[int, int], MediaLine], notices: list[Notice]) -> Iterator[MediaEvent]:
    """Yield the events whose files are pictures or videos, and add a notice for each of the others."""
    for (_, index), event in events.items():
        try:
            file = event.part or inside(run.path, event.path)
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
                yield _media_event(event, index, file, form)
                continue
        notices.append(Notice(kind, event.where, f"{event.tag}: {event.path} {problem}"))


def _media_event(event: MediaLine, index: int, file: RunFile, form: str) -> MediaEvent:
    return MediaEvent(
        line=event.line,
        tag=event.tag,
        step=event.step,
        index=index,
        type=MediaType.VIDEO if form in VIDEO_FORMATS else event.type,
        path=event.path,
        file=file,
        format=form,
        time=file.mtime_ns / 1e9 if event.time is None else event.time,
        is_time_known=event.time is not None,
        caption=event.caption,
        fps=event.fps,
        session=event.session,
    )


def _superseded(run: Run, key: tuple[int, int], event: MediaLine) -> MediaEvent:
    """Return an event that no longer counts; its file may have changed since, or be gone."""
    try:
        file = event.part or inside(run.path, event.path)
        form = sniff(read_head(file.path, SNIFFED_BYTES, offset=file.offset or 0)) or ""
    except (Refused, OSError):
        file, form = RunFile(path=run.path / "media.jsonl", size=0, mtime_ns=0), ""
    return _media_event(event, key[1], file, form)


def _written_over_notices(written_over: Mapping[int, MediaLine], covered: int) -> list[Notice]:
    """Return a notice for each line past the cursor that names the same file as an earlier line."""
    found = [
        Notice(
            NoticeKind.LEFT_OUT,
            f"media.jsonl:{number + 1}",
            f"{by.tag}: {by.path} was written again by line {by.line + 1}",
        )
        for number, by in written_over.items()
        if by.line >= covered
    ]
    return first_named(found, "media.jsonl", "further lines whose files were written again")


def _shared_file_notices(events: Iterable[MediaLine], covered: int) -> list[Notice]:
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

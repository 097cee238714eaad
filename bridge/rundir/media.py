"""Media events past a cursor: which lines are new, which no longer count, and what their files are."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bridge.bounds import LARGEST_MEDIA, LONGEST_EVENT
from bridge.errors import RunDirectoryError
from bridge.model import MediaEvent, MediaType, Notice, NoticeKind, RunFile
from bridge.plain_files import open_plain, read_head
from bridge.rundir.media_lines import Line, Lines, counting_lines
from bridge.rundir.paths import Refused, inside
from bridge.rundir.place import Changed
from bridge.rundir.sniff import HEAD, MOST_PIXELS, sniff

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import BinaryIO

    from bridge.cursor import Cursor
    from bridge.model import Run

__all__ = ["Media", "read_media"]

_MOST_NAMED = 20
_PIECES = 16
"""A line of more pieces than this ends its run: its bytes belong to the digest of the lines."""


@dataclass(slots=True)
class Media:
    """What media.jsonl holds past a cursor; `lines`, `offset` and `digest` are the cursor's after it.

    `stat` is (size, mtime in nanoseconds) from before the first byte was read, zeros where there is no file.
    """

    events: tuple[MediaEvent, ...] = ()
    removed: tuple[MediaEvent, ...] = ()
    notices: list[Notice] = field(default_factory=list)
    reason: str = ""
    lines: int = 0
    offset: int = 0
    digest: str = ""
    stat: tuple[int, int] = (0, 0)


def read_media(run: Run, cursor: Cursor | None) -> Media:
    """The media events of `run` past `cursor` (None: all). A line without its newline is not there yet.

    Raises Changed where the lines that the cursor covers are others now, RunDirectoryError where media.jsonl cannot be
    read.
    """
    covered = cursor.media_lines if cursor is not None else 0
    file = run.files.get("media.jsonl")
    try:
        stream = open_plain(file.path) if file is not None else None
    except FileNotFoundError:
        stream = None
    except OSError as error:
        assert file is not None
        raise RunDirectoryError(f"{file.path} cannot be read: {error.strerror}.") from error
    if stream is None:
        if covered:
            raise Changed("media.jsonl is gone", ("gone",))
        return Media()
    with stream:
        found, lines = _lines(stream, cursor)
    found.notices = lines.notices()
    now, repeated = counting_lines(lines.events)
    then, _ = counting_lines(event for event in lines.events if event.number < covered)
    new = {key: event for key, event in now.items() if key not in then}
    gone = {key: event for key, event in then.items() if key not in now}
    found.notices += _repeated(repeated, covered)
    found.notices += _shared(now.values(), covered)
    found.events = tuple(_with_files(run, new, found.notices))
    if gone:
        found.removed = tuple(_superseded(run, key, event) for key, event in gone.items())
        first = min(gone.values(), key=lambda event: event.number)
        found.reason = (
            f"media.jsonl:{first.number + 1}: {first.tag} at step {first.step} is superseded by a later line"
            f" ({len(gone)} media no longer count)"
        )
    return found


def _lines(stream: BinaryIO, cursor: Cursor | None) -> tuple[Media, Lines]:
    status = os.fstat(stream.fileno())
    found = Media(stat=(status.st_size, status.st_mtime_ns))
    lines = Lines(first=cursor.media_lines if cursor is not None else 0)
    digest = hashlib.blake2b(digest_size=10)
    for line in _complete(stream):
        lines.add(found.lines, line)
        digest.update(line)
        found.lines += 1
        found.offset += len(line)
        if cursor is None or found.lines != cursor.media_lines:
            continue
        if digest.hexdigest() != cursor.media_digest:
            raise Changed("media.jsonl: lines that are in the target have changed", (found.stat, digest.digest()))
    if cursor is not None and found.lines < cursor.media_lines:
        reason = f"media.jsonl has {found.lines} lines, the target was made of {cursor.media_lines}"
        raise Changed(reason, (found.stat, found.lines))
    found.digest = digest.hexdigest() if found.lines else ""
    return found, lines


def _complete(stream: BinaryIO) -> Iterable[bytes]:
    """The complete lines, none of them longer in memory than a line may be by more than one piece."""
    while line := stream.readline(LONGEST_EVENT + 2):
        while not line.endswith(b"\n"):
            more = stream.readline(LONGEST_EVENT)
            if not more:
                return
            if len(line) > LONGEST_EVENT * _PIECES:
                raise RunDirectoryError(
                    f"{stream.name}: a line is longer than {LONGEST_EVENT * _PIECES >> 20} MiB.",
                    hint="Cut that line out, or export without media: --no-media",
                )
            line += more
        yield line


def _with_files(run: Run, events: Mapping[tuple[int, int], Line], notices: list[Notice]) -> Iterable[MediaEvent]:
    for (_, index), event in events.items():
        where = f"media.jsonl:{event.number + 1}"
        try:
            file = inside(run.path, event.path)
        except Refused as error:
            lost = NoticeKind.MISSING_FILE if error.missing else NoticeKind.REFUSED_PATH
            notices.append(Notice(lost, where, f"{event.tag}: {event.path} {error}"))
            continue
        if file.size > LARGEST_MEDIA:
            why = f"{event.tag}: {event.path} is larger than {LARGEST_MEDIA >> 30} GiB"
            notices.append(Notice(NoticeKind.TOO_LARGE, where, why))
            continue
        try:
            head = read_head(file.path, HEAD)
        except OSError as error:
            why = f"{event.tag}: {event.path} cannot be read: {error.strerror}"
            notices.append(Notice(NoticeKind.UNREADABLE_MEDIA, where, why))
            continue
        found = sniff(head)
        if found is None:
            what = "is empty" if not head else "is neither a picture nor a video"
            notices.append(Notice(NoticeKind.UNREADABLE_MEDIA, where, f"{event.tag}: {event.path} {what}"))
        elif found.pixels is not None and found.pixels > MOST_PIXELS:
            why = f"{event.tag}: {event.path} says it has {found.pixels} pixels"
            notices.append(Notice(NoticeKind.TOO_LARGE, where, why))
        else:
            kind = MediaType.VIDEO if found.video else event.type
            yield _made(event, index, file, found.format, kind)


def _made(event: Line, index: int, file: RunFile, form: str, kind: MediaType) -> MediaEvent:
    return MediaEvent(
        line=event.number,
        tag=event.tag,
        step=event.step,
        index=index,
        type=kind,
        path=event.path,
        file=file,
        format=form,
        time=file.mtime_ns / 1e9 if event.time is None else event.time,
        caption=event.caption,
        fps=event.fps,
        session=event.session,
    )


def _superseded(run: Run, key: tuple[int, int], event: Line) -> MediaEvent:
    """An event that no longer counts; its file may be another by now, or gone."""
    try:
        file = inside(run.path, event.path)
        found = sniff(read_head(file.path, HEAD))
    except (Refused, OSError):
        file, found = RunFile(path=run.path / "media.jsonl", size=0, mtime_ns=0), None
    return _made(event, key[1], file, found.format if found else "", event.type)


def _repeated(superseded: Mapping[int, Line], covered: int) -> list[Notice]:
    """Lines that name the file of a later line: they were written over."""
    new = [(number, by) for number, by in superseded.items() if by.number >= covered]
    notices = [
        Notice(
            NoticeKind.LEFT_OUT,
            f"media.jsonl:{number + 1}",
            f"{by.tag}: {by.path} was written again by line {by.number + 1}",
        )
        for number, by in new[:_MOST_NAMED]
    ]
    if len(new) > _MOST_NAMED:
        notices.append(
            Notice(
                NoticeKind.LEFT_OUT,
                "media.jsonl",
                "further lines whose files were written again",
                len(new) - _MOST_NAMED,
            )
        )
    return notices


def _shared(events: Iterable[Line], covered: int) -> list[Notice]:
    """Tags that share files, such as `a/b` and `a__b`: both show what was written last."""
    tags: dict[str, dict[str, bool]] = {}
    for event in events:
        of_path = tags.setdefault(event.path, {})
        of_path[event.tag] = of_path.get(event.tag, False) or event.number >= covered
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

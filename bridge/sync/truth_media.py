"""The truth about a run's media: the lines of media.jsonl that count, with the digests of their files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from bridge.files import (
    BROKEN_PICTURE,
    LARGEST_MEDIA,
    LONGEST_EVENT,
    MOST_DECODED_PIXELS,
    MOST_MEDIA,
    MOST_MEDIA_BYTES,
    MOST_TRIES,
    open_plain,
    shortened,
)
from bridge.sync.truth_files import own_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from PIL import Image

__all__ = ["TruthMedia", "is_broken", "read_media"]

MOST_PIXELS = 178_956_970
"""Pillow's own bound for a picture that may be decoded."""


@dataclass(frozen=True, slots=True)
class TruthMedia:
    """One media event that counts. `format` is what the file's first bytes say; `digest` is the file's sha256, in hex.

    `path` is as media.jsonl has it, `file` the real one.
    """

    line: int
    tag: str
    step: int
    path: str
    file: Path
    format: str
    digest: str
    caption: str | None


@dataclass(frozen=True, slots=True)
class _Event:
    line: int
    tag: str
    step: int
    path: str
    session: int | None
    caption: str | None


def read_media(run_dir: Path, *, limit: int | None = None) -> tuple[tuple[TruthMedia, ...], int]:
    """The events that count among the first `limit` lines of media.jsonl (None: all), and how many lines there are.

    A line without its newline is not there yet. Events whose file is missing, lies outside the directory or is
    neither picture nor video are left out. Raises OSError where media.jsonl cannot be read.
    """
    events: list[_Event] = []
    lines = size = 0
    source = own_file(run_dir, "media.jsonl")
    if source is None:
        return (), 0
    with open_plain(source) as file:
        for line in _complete(file):
            event = _event(line, lines) if limit is None or lines < limit else None
            if event is not None and len(events) < MOST_MEDIA and size + len(line) <= MOST_MEDIA_BYTES:
                events.append(event)
                size += len(line)
            lines += 1
    real = run_dir.resolve()
    held = (_with_file(event, real) for event in _counting(events))
    return tuple(item for item in held if item is not None), lines


def _complete(file: BinaryIO) -> Iterator[bytes]:
    """The lines that have their newline; of one that is too long only its beginning."""
    while line := file.readline(LONGEST_EVENT + 2):
        end = line
        while not end.endswith(b"\n"):
            end = file.readline(LONGEST_EVENT)
            if not end:
                return
        yield line if end is line else line + b" "


def _event(line: bytes, number: int) -> _Event | None:
    """The event in a line; a torn line swallows the start of the next event, which is taken where it is whole."""
    if len(line) > LONGEST_EVENT:
        return None
    start = 0
    for _ in range(1 + MOST_TRIES):
        if start < 0:
            return None
        try:
            return _event_of(json.loads(line[start:]), number)
        except RecursionError:
            return None
        except ValueError:
            start = line.find(b'{"', start + 1)
    return None


def _event_of(data: Any, number: int) -> _Event | None:
    if not isinstance(data, dict) or data.get("type") not in ("image", "video"):
        return None
    tag, step, path, session = data.get("tag"), data.get("step"), data.get("path"), data.get("session")
    if not isinstance(tag, str) or not isinstance(path, str) or not isinstance(step, int) or isinstance(step, bool):
        return None
    if not -(2**63) <= step < 2**63:
        return None
    caption = data.get("caption")
    return _Event(
        line=number,
        tag=shortened(_encodable(tag)),
        step=step,
        path=_encodable(path),
        session=session if isinstance(session, int) and not isinstance(session, bool) else None,
        caption=_encodable(caption) if isinstance(caption, str) else None,
    )


def _encodable(text: str) -> str:
    """`text` with a replacement character for each lone surrogate."""
    return "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in text)


def _counting(events: Iterable[_Event]) -> list[_Event]:
    """Per tag and step the events of the last session; without sessions, of those with one path the last."""
    groups: dict[tuple[str, int], list[_Event]] = {}
    for event in events:
        groups.setdefault((event.tag, event.step), []).append(event)
    kept: list[_Event] = []
    for group in groups.values():
        last = [event for event in group if event.session == group[-1].session]
        kept += {event.path: event for event in last}.values() if group[-1].session is None else last
    return sorted(kept, key=lambda event: event.line)


def _with_file(event: _Event, real: Path) -> TruthMedia | None:
    path = own_file(real, event.path)
    if path is None:
        return None
    try:
        with open_plain(path) as file:
            if file.seek(0, os.SEEK_END) > LARGEST_MEDIA:
                return None
            file.seek(0)
            form = _format(file.read(64))
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return None
    if form is None or (form in _PICTURES and _is_too_large(path)):
        return None
    return TruthMedia(
        line=event.line,
        tag=event.tag,
        step=event.step,
        path=event.path,
        file=path,
        format=form,
        digest=digest,
        caption=event.caption,
    )


_STARTS = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"OggS", "ogv"),
    (b"\0\0\1\xba", "mpeg"),
    (b"\0\0\1\xb3", "mpeg"),
)
_PICTURES = {"png", "jpeg", "gif", "bmp", "webp"}
_RIFF = {b"WEBP": "webp", b"AVI ": "avi"}
_BRANDS = {b"qt  ": "mov", b"avif": "avif", b"avis": "avif", b"heic": "heic", b"heix": "heic", b"mif1": "heic"}


def _format(start: bytes) -> str | None:
    """The format of a file that starts with these bytes; None for one that is neither picture nor video."""
    for signature, form in _STARTS:
        if start.startswith(signature):
            return form
    if start.startswith(b"RIFF"):
        return _RIFF.get(start[8:12])
    if start.startswith(b"\x1aE\xdf\xa3"):
        return "webm" if b"webm" in start else "mkv"
    if start[4:8] == b"ftyp":
        return _BRANDS.get(start[8:12], "mp4")
    return None


def _is_too_large(path: Path) -> bool:
    """Whether a picture says that it has more pixels than anybody may decode; nothing is decoded to know it."""
    try:
        with _opened(path) as picture:
            return picture.width * picture.height > MOST_PIXELS
    except _not_decodable() as error:
        return type(error).__name__ == "DecompressionBombError"


def is_broken(event: TruthMedia) -> bool:
    """Whether the file of `event` is a picture that only begins like one: no target has to hold what nobody can decode.

    One too large to be decoded here counts as whole.
    """
    if event.format not in _PICTURES:
        return False
    try:
        with _opened(event.file) as picture:
            if picture.width * picture.height <= MOST_DECODED_PIXELS:
                picture.load()
    except _not_decodable():
        return True
    return False


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with open_plain(path) as file, Image.open(file) as picture:
            yield picture


def _not_decodable() -> tuple[type[Exception], ...]:
    """What Pillow raises for files that it cannot decode."""
    from PIL import Image

    return (Image.DecompressionBombError, *BROKEN_PICTURE)

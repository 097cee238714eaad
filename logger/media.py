"""media.jsonl and the folder media: every item is a file of its own, no file is ever written twice.

The line follows the file: a process that is killed between the two leaves a file that nobody names, never a line without its file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from typing import TYPE_CHECKING, Any

from logger.values import strict

if TYPE_CHECKING:
    from pathlib import Path

    from logger.pictures import Encoded

__all__ = ["MEDIA_FOLDER", "MEDIA_NAME", "MediaFile", "safe_tag"]

MEDIA_NAME = "media.jsonl"
MEDIA_FOLDER = "media"
_LONGEST_NAME = 200
"""A folder's name in bytes; file systems take 255."""

_NAME = re.compile(r"(-?\d+)_(\d+)\.")


def safe_tag(tag: str) -> str:
    """The folder's name for `tag`: different for different tags, readable, and in any script.

    Letters, digits, `_`, `-`, inner dots and spaces stand for themselves, all else is %XX as in a URL (so `a/b` is `a%2Fb`);
    a name that would be too long is cut and ends in a digest of the whole.
    """
    safe = "".join(
        letter if letter.isalnum() or letter in "_-" or (letter in ". " and 0 < at < len(tag) - 1) else _percent(letter)
        for at, letter in enumerate(tag)
    )
    safe = safe or "%"
    if len(safe.encode("utf-8", errors="replace")) <= _LONGEST_NAME:
        return safe
    digest = hashlib.sha256(tag.encode("utf-8", errors="surrogatepass")).hexdigest()[:16]
    head = safe.encode("utf-8", errors="replace")[: _LONGEST_NAME - 20].decode("utf-8", errors="ignore")
    return f"{head}%~{digest}"


class MediaFile:
    """The media of one run directory.

    `failed` counts the items that could not be stored, `lines` those that this object wrote.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.path = run_dir / MEDIA_NAME
        self.lines = 0
        self.failed = 0
        self._next: dict[str, dict[int, int]] = {}

    def resume(self) -> None:
        """Cut off a torn last line, so that it cannot swallow the next event."""
        if self.path.is_file():
            cut_torn_line(self.path)

    def add(
        self,
        tag: str,
        step: int,
        kind: str,
        item: Encoded,
        *,
        caption: str | None,
        session: int,
    ) -> None:
        """Store `item` as a file of its own and add its line. Raises OSError where the disk does not take it."""
        folder = self.run_dir / MEDIA_FOLDER / safe_tag(tag)
        folder.mkdir(parents=True, exist_ok=True)
        file = self._store(folder, step, item)
        event: dict[str, Any] = {
            "step": step,
            "tag": tag,
            "type": kind,
            "path": file.relative_to(self.run_dir).as_posix(),
            "caption": caption,
            "fps": item.fps,
            "format": item.ending,
            "time": round(time.time(), 6),
            "session": session,
        }
        self._append(json.dumps(strict(event), allow_nan=False))
        self.lines += 1

    def _store(self, folder: Path, step: int, item: Encoded) -> Path:
        temporary = folder / f".{secrets.token_hex(4)}.tmp"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                if item.source is not None:
                    with item.source.open("rb") as source:
                        shutil.copyfileobj(source, file, 1 << 20)
                else:
                    file.write(item.data or b"")
            return self._place(temporary, folder, step, item.ending)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise

    def _place(self, temporary: Path, folder: Path, step: int, ending: str) -> Path:
        """Give the file the first name that is free; the index is unique in the folder whatever the ending."""
        known = self._next.get(folder.name)
        if known is None:
            known = self._next[folder.name] = _taken(folder)
        while True:
            index = known.get(step, 0)
            known[step] = index + 1
            final = folder / f"{step:08d}_{index}.{_safe_ending(ending)}"
            try:
                final.touch(exist_ok=False)  # takes the name: another process may write here too
            except FileExistsError:
                continue
            temporary.replace(final)
            return final

    def _append(self, line: str) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            data = (line + "\n").encode("utf-8", errors="backslashreplace")
            before = os.fstat(descriptor).st_size
            try:
                if os.write(descriptor, data) < len(data):
                    raise OSError(f"{self.path}: the disk took only a part of a line")
            except OSError:
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)


def cut_torn_line(path: Path) -> int:
    """Cut off what follows the last line end of `path`; how many bytes that were."""
    with path.open("rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            at = file.read(end - start).rfind(b"\n")
            if at >= 0:
                end = start + at + 1
                break
            end = start
        if end < size:
            file.truncate(end)
        return size - end


def _taken(folder: Path) -> dict[int, int]:
    """For each step the first index that no file of `folder` has."""
    taken: dict[int, int] = {}
    for entry in os.scandir(folder):
        if match := _NAME.match(entry.name):
            step, index = int(match[1]), int(match[2])
            taken[step] = max(taken.get(step, 0), index + 1)
    return taken


def _percent(letter: str) -> str:
    return "".join(f"%{byte:02X}" for byte in letter.encode("utf-8", errors="surrogatepass"))


def _safe_ending(ending: str) -> str:
    return re.sub(r"[^0-9A-Za-z]", "", ending)[:16] or "bin"

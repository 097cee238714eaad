"""Files that grow or are replaced, and what is remembered of them to notice edits."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from bridge.errors import TargetRefusedError, TargetUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from _typeshed import ReadableBuffer

__all__ = [
    "KINDS",
    "Draft",
    "Growing",
    "Kept",
    "event_file",
    "generation_of",
    "looked_at",
    "sync_folder",
    "translated",
]

KINDS = ("facts", "media", "scalars")
"""The event files of a run, in the order in which TensorBoard reads them.

Its Python loader reads one file after another and afterwards follows the last alone: that is the one that grows.
"""

_TAIL = 16 * 1024
_PART = 1024 * 1024
_NAME = re.compile(r"events\.out\.tfevents\.\d{10}\.bridge\.(facts|media|scalars)\.g(\d{3,})")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}


@dataclass(frozen=True, slots=True)
class Kept:
    """What is remembered of a file: its name, its length, the CRC-32 of all its bytes, and its time of change.

    The checksum is one that goes on where the file grows, so that an append need not read what was there; it is another
    one than that of the records, so that an edit that makes theirs right does not make this right. `mtime` is in
    nanoseconds and no part of what the file is: a copy has another one.
    With `tail`, a digest of the last 16 KiB, neither is known: that is what an older bridge remembered.
    """

    name: str
    length: int
    checksum: int = 0
    mtime: int = field(default=0, compare=False)
    tail: str = field(default="", compare=False)


def event_file(kind: str, generation: int) -> str:
    """The name of an event file: no clock, no pid, no host. TensorBoard takes what has `tfevents` in its name."""
    return f"events.out.tfevents.{KINDS.index(kind) + 1:010d}.bridge.{kind}.g{generation:03d}"


def generation_of(name: str) -> tuple[str, int] | None:
    """Kind and generation of an event file of ours; None for any other name."""
    match = _NAME.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def looked_at(folder: Path, kept: Kept) -> Kept | None:
    """`kept` with the file's time of change by now; None where the file does not begin with what is remembered.

    A file of the remembered length and time is not read; any other is, as far as it is remembered. So a copy is found
    to be the same, and an edit is found unless it puts the time back too. Raises OSError.
    """
    path = f"{folder}/{kept.name}"
    found = os.stat(path)  # noqa: PTH116 - asked of thousands of folders
    if not kept.tail and (found.st_size, found.st_mtime_ns) == (kept.length, kept.mtime):
        return kept
    if found.st_size < kept.length:
        return None
    with open(path, "rb") as file:  # noqa: PTH123
        checksum = _checksum(file, kept.length)
        same = _tail(file, kept.length) == kept.tail if kept.tail else checksum == kept.checksum
    return Kept(kept.name, kept.length, checksum, found.st_mtime_ns) if same else None


def _tail(file: BinaryIO, length: int) -> str:
    file.seek(max(0, length - _TAIL))
    return hashlib.sha256(file.read(length - file.tell())).hexdigest()[:32]


def _checksum(file: BinaryIO, length: int) -> int:
    """The CRC-32 of the first `length` bytes."""
    file.seek(0)
    checksum = 0
    while length and (part := file.read(min(length, _PART))):
        checksum = zlib.crc32(part, checksum)
        length -= len(part)
    return checksum


class Growing:
    """A file of which the first `kept.length` bytes are acknowledged: what lies past them is written over and cut off.

    A TensorBoard that watches may have read what lies past them; it goes on rightly if the bytes that come in their
    place are the same. `diverged` says that they were not: then what the file holds needs a new name.
    """

    def __init__(self, folder: Path, kept: Kept) -> None:
        self._path = folder / kept.name
        self._length = kept.length
        self._place = kept.length
        self._checksum = kept.checksum
        self._file: BinaryIO = self._path.open("r+b")
        self._old_end = self._file.seek(0, os.SEEK_END)
        self._file.seek(self._place)
        self.diverged = False

    def write(self, data: ReadableBuffer) -> None:
        """Add bytes at the end."""
        fresh = memoryview(data)
        if self._place < self._old_end and not self.diverged:
            there = self._file.read(min(fresh.nbytes, self._old_end - self._place))
            self._file.seek(self._place)
            self.diverged = fresh[: len(there)] != there
        self._file.write(fresh)
        self._checksum = zlib.crc32(fresh, self._checksum)
        self._place += fresh.nbytes

    def reread(self) -> tuple[BinaryIO, int]:
        """The file, to read what it holds by now, and how many bytes that are."""
        self._file.truncate(self._place)
        self._file.flush()
        return self._file, self._place

    def finish(self) -> Kept:
        """Cut off what is left of old bytes, flush to the disk; what is to be remembered."""
        self._file.truncate(self._place)
        _flush(self._file)
        return Kept(self._path.name, self._place, self._checksum, _settled(self._path))

    def abandon(self) -> None:
        """Cut off what was written, so that a full disk is not left fuller."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            os.truncate(self._path, self._length)


class Draft:
    """A new file, written out of TensorBoard's sight and renamed when it is whole."""

    def __init__(self, folder: Path, name: str) -> None:
        kind = generation_of(name)
        # Not even a file that is not there yet may have `tfevents` in its name.
        beside = f".bridge-{kind[0]}-{kind[1]}.new" if kind else f".bridge-{name}.new"
        self._beside = folder / beside
        self._path = folder / name
        self._file: BinaryIO = self._beside.open("w+b")
        self._checksum = 0
        self.diverged = False

    def write(self, data: ReadableBuffer) -> None:
        """Add bytes at the end."""
        self._file.write(data)
        self._checksum = zlib.crc32(data, self._checksum)

    def reread(self) -> tuple[BinaryIO, int]:
        """The file, to read what it holds by now, and how many bytes that are."""
        self._file.flush()
        return self._file, self._file.seek(0, os.SEEK_END)

    def finish(self) -> Kept:
        """Flush to the disk and take the file's own name; what is to be remembered."""
        length = self._file.tell()
        _flush(self._file)
        mtime = _settled(self._beside)
        self._beside.replace(self._path)
        return Kept(self._path.name, length, self._checksum, mtime)

    def abandon(self) -> None:
        """Remove what was written."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._beside.unlink()


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


def _settled(path: Path) -> int:
    """Give a file that was just written a time of change that no later write can give it; which one it has now.

    Its own would not tell an edit that follows within the clock's tick. It is a whole second, as copies keep it.
    """
    found = path.stat()
    with contextlib.suppress(OSError):  # another user's file in a shared folder, or a file system that takes no times
        os.utime(path, ns=(found.st_atime_ns, (found.st_mtime_ns // 10**9 - 1) * 10**9))
    return path.stat().st_mtime_ns


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot flush a folder
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def translated(folder: Path) -> Iterator[None]:
    """Errors of the operating system as ours."""
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else str(folder)
        what = f"{where}: {error.strerror or error}"
        if error.errno in _FULL:
            raise TargetRefusedError(
                f"No space left to write the event files: {what}.",
                hint="Free some space, or choose another --logdir. What was exported before is whole.",
            ) from error
        if error.errno in _FORBIDDEN:
            raise TargetRefusedError(
                f"The log directory cannot be written: {what}.", hint="Choose a --logdir that you may write to."
            ) from error
        raise TargetUnavailableError(f"The event files cannot be written: {what}.") from error

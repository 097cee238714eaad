"""Open what must be a plain file, and still the one that was looked at: no link, pipe or device, whatever happens meanwhile."""

from __future__ import annotations

import io
import os
import stat
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BROKEN_PICTURE", "open_plain", "open_raw", "read_head", "read_plain"]

BROKEN_PICTURE: tuple[type[Exception], ...] = (
    OSError, ValueError, SyntaxError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError, EOFError,
    MemoryError, struct.error,
)  # fmt: skip
"""What Pillow and PyAV raise for pictures and videos that are broken: each of these was seen."""

_NO_LINK_AT_ALL: int = getattr(os, "O_NOFOLLOW_ANY", 0)
"""On macOS one flag refuses links anywhere in the path."""

_FOLDER: int = getattr(os, "O_PATH", 0) and os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: int = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | _NO_LINK_AT_ALL


def open_plain(path: Path) -> io.BufferedReader:
    """Open the plain file at the real path `path` for reading.

    A real path has no links in it, so one that is met on the way was put there after the path was looked at: it is not
    followed, neither as the file nor as a folder above it. Nothing blocks, also not on a pipe. Raises OSError.
    """
    return io.BufferedReader(open_raw(path))


def open_raw(path: Path) -> io.FileIO:
    """The same without a buffer."""
    descriptor = _descriptor(path)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "it is no plain file", str(path))
        file = io.FileIO(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
    file.name = str(path)
    return file


def read_head(path: Path, size: int) -> bytes:
    """The first `size` bytes of the plain file at the real path `path`. Raises OSError."""
    with open_raw(path) as file:
        return file.read(size)


def read_plain(path: Path, *, limit: int) -> bytes:
    """The bytes of the plain file at the real path `path`, of a larger one `limit` + 1 of them. Raises OSError."""
    with open_raw(path) as file:
        pieces = []
        left = limit + 1
        size = os.fstat(file.fileno()).st_size + 1
        while left > 0 and (piece := file.read(min(left, max(size, 1 << 16)))):
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)


def _descriptor(path: Path) -> int:
    if not _FOLDER or _NO_LINK_AT_ALL or not path.is_absolute():
        return os.open(path, _FILE)
    # One folder at a time, each opened below the one before: there is no instant at which a link could be slipped in.
    top, *folders, name = path.parts
    folder = os.open(top, _FOLDER)
    try:
        for part in folders:
            below = os.open(part, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = below
        return os.open(name, _FILE, dir_fd=folder)
    finally:
        os.close(folder)

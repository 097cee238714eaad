"""Replace a file at one instant, and tell what a file is by its first bytes. Free of torch, lightning and numpy."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

SNIFFED_BYTES = 64
"""As many first bytes of a file are enough for `sniff`."""

VIDEO_FORMATS = frozenset({"mp4", "mov", "webm", "mkv", "avi", "ogv", "mpeg"})
"""The formats of `sniff` that are always videos; a GIF, WebP or PNG may move or not."""

_SIGNATURES = (
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (0, b"\xff\xd8\xff", "jpeg"),
    (0, b"GIF87a", "gif"),
    (0, b"GIF89a", "gif"),
    (8, b"WEBP", "webp"),
    (8, b"AVI ", "avi"),
    (0, b"BM", "bmp"),
    (0, b"II*\x00", "tiff"),
    (0, b"MM\x00*", "tiff"),
    (4, b"ftypavif", "avif"),
    (4, b"ftypavis", "avif"),
    (4, b"ftyphei", "heic"),
    (4, b"ftypmif1", "heic"),
    (4, b"ftypqt  ", "mov"),
    (4, b"ftyp", "mp4"),
    (0, b"OggS", "ogv"),
    (0, b"\x00\x00\x01\xba", "mpeg"),
    (0, b"\x00\x00\x01\xb3", "mpeg"),
)
"""Offset, bytes at that offset, format; the first match counts."""

_IN_RIFF = frozenset({"webp", "avi"})


def replace_file(
    path: str | os.PathLike[str],
    data: bytes | str | Iterable[bytes],
    *,
    durable: bool = True,
    confirm: Callable[[os.stat_result], bool] | None = None,
) -> os.stat_result | None:
    """Replace the file `path` by `data` (text as UTF-8) at one instant, or leave the old file as it is.

    The new file is written beside the old one, flushed to disk if `durable`, and renamed. A symbolic link stays a link.
    A file that is replaced keeps its mode and, where permitted, its group; the umask decides the mode of a new one.

    `confirm` is called just before the rename with the new file's stat result; if it returns false nothing is replaced.
    Return the new file's stat result, or None if nothing was replaced. Raises OSError if the disk refuses.
    """
    # Called for each of thousands of runs, so without Path. The links above the file may stay links.
    real = os.path.realpath(path) if os.path.islink(path) else os.fspath(path)  # noqa: PTH114
    folder, name = os.path.split(real)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")  # noqa: PTH118
    # tempfile.mkstemp would make a file that only its owner can read.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            _keep_access(real, descriptor)
            if isinstance(data, str):
                data = data.encode("utf-8", errors="replace")
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            if durable:
                os.fsync(descriptor)
            state = os.fstat(descriptor)
        if confirm is not None and not confirm(state):
            os.unlink(temporary)  # noqa: PTH108
            return None
        os.replace(temporary, real)  # noqa: PTH105
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108
        raise
    return state


def _keep_access(old: str, descriptor: int) -> None:
    """Give the open file `descriptor` the mode and group of the file `old`, if it exists, as far as permitted."""
    try:
        before = os.stat(old)  # noqa: PTH116
    except OSError:
        return
    if os.fstat(descriptor).st_gid != before.st_gid:
        with contextlib.suppress(OSError):
            os.fchown(descriptor, -1, before.st_gid)
    with contextlib.suppress(OSError):
        os.fchmod(descriptor, stat.S_IMODE(before.st_mode))


def sniff(head: bytes) -> str | None:
    """Return the format of a picture or video that begins with the bytes `head`, in lower case; None for anything else.

    An animated PNG is a `png`, an animated WebP a `webp`. Nothing is decoded.
    """
    if head.startswith(b"\x1aE\xdf\xa3"):  # EBML: Matroska, whose document type follows within its first element
        return "webm" if b"webm" in head[:SNIFFED_BYTES] else "mkv"
    for offset, signature, name in _SIGNATURES:
        if head.startswith(signature, offset) and (name not in _IN_RIFF or head.startswith(b"RIFF")):
            return name
    return None


def append_whole(descriptor: int, data: bytes) -> None:
    """Append `data` to the open file `descriptor`.

    If the disk takes only a part of `data`, that is cut off again. Raises OSError.
    """
    before = os.fstat(descriptor).st_size
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
    except BaseException:
        if os.fstat(descriptor).st_size < before + len(data):
            os.ftruncate(descriptor, before)
        raise


def free_beside(path: Path, mark: str = ".") -> Path:
    """Return a name beside `path` that is free: `name.1`, `name.2`, ..., with `mark` before the number."""
    number = 1
    while (aside := path.with_name(f"{path.name}{mark}{number}")).exists():
        number += 1
    return aside


def set_aside(path: Path) -> Path:
    """Rename `path` to a free name beside it, and return that."""
    aside = free_beside(path)
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
    return aside

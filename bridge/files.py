"""Read files of run directories safely: what may be opened, how much of it is read, and how names are shortened.

Nothing in a run directory is trusted. Only regular files whose real path lies inside the directory are opened, and one
size limit for each file bounds memory and time. `docs/explanation/security.md` states the limits for users.
"""

# ruff: noqa: PTH116, PTH117, PTH118 - os.path keeps the dots of a path, which Path would swallow

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.model import RunFile, digest

if TYPE_CHECKING:
    from collections.abc import Iterable

LARGEST_JSON = 8 << 20
"""Bytes of sidecar.json and of summary.json. Python needs up to 30 times as much memory for what they hold."""

LARGEST_YAML = 1 << 20
"""Bytes of YAML that are parsed, which takes seconds. Of a larger hparams.yaml the largest keys are left out."""

LARGEST_HPARAMS_FILE = 64 << 20
"""Bytes of hparams.yaml."""

LARGEST_PARAMS = 16 << 20
"""Characters of flat hyperparameters, names and values together. A nested name repeats the names above it, and a YAML
alias repeats what it stands for, so a small file can hold a lot.
"""

LONGEST_ROW = 8 << 20
"""Bytes of one row or header line of metrics.csv."""

MOST_COLUMNS = 50_000
"""Columns of metrics.csv."""

LARGEST_MEDIA_LIST = 16 << 20
"""Bytes of media.jsonl; the lines before this limit are read."""

LONGEST_EVENT = 1 << 20
"""Bytes of one line of media.jsonl."""

LARGEST_MEDIA = 1 << 30
"""Bytes of one picture or video."""

MOST_DECODED_PIXELS = 25_000_000
"""Pixels of a picture that is decoded, all frames together: up to three times four bytes are needed for each."""

LONGEST_NAME = 500
"""Characters of a run's id and identity, and of the name of a metric or of media; longer ones end in a digest."""

TARGET_MARK = ".bridge-target"
"""The file that exporters put into their folders, so that a walk never takes the bridge's own output for runs."""

BROKEN_PICTURE: tuple[type[Exception], ...] = (
    OSError, ValueError, SyntaxError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError, EOFError,
    MemoryError, struct.error,
)  # fmt: skip
"""What Pillow and PyAV raise for pictures and videos that are broken: each of these was seen."""


def why_broken(error: Exception) -> str:
    """Return why a picture or video cannot be read. Pillow's own words for an unknown format hold a memory address."""
    return "its format is unknown" if type(error).__name__ == "UnidentifiedImageError" else str(error)[:200]


_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


class Refused(Exception):  # noqa: N818 - an answer for the caller to word, never shown
    """A path that must not be read; `str()` says why. `missing` is set where there is no such file."""

    def __init__(self, why: str, *, missing: bool = False) -> None:
        super().__init__(why)
        self.missing = missing


def own_file(directory: Path, name: str) -> RunFile | None:
    """Return the regular file `name` of the real path `directory`, or None if there is nothing of that name.

    Raises Refused for anything but a regular file, and for a link that leads out of the directory.
    """
    try:
        found = os.lstat(f"{directory}{os.sep}{name}")
    except OSError:
        return None
    if stat.S_ISREG(found.st_mode):
        return RunFile(path=directory / name, size=found.st_size, mtime_ns=found.st_mtime_ns)
    return inside(directory, name)


def inside(directory: Path, relative: str) -> RunFile:
    """Return the regular file at `relative` below the real path `directory`.

    Raises Refused for an absolute path, for a path that leads out of the directory (by `..` or a link), for anything
    but a regular file (a folder, a pipe, a device), and for a missing file.
    """
    if not relative or "\0" in relative:
        raise Refused("is not a path")
    if os.path.isabs(relative) or ".." in relative.replace("\\", "/").split("/"):
        raise Refused("leads out of the run directory")
    try:
        real = os.path.realpath(os.path.join(directory, relative))
        if not real.startswith(f"{str(directory).rstrip(os.sep)}{os.sep}"):
            raise Refused("is a link that leads out of the run directory")
        found = os.stat(real, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        raise Refused("is missing", missing=True) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Refused(f"cannot be looked at: {reason}") from None
    if not stat.S_ISREG(found.st_mode):
        raise Refused("is not a regular file")
    return RunFile(path=Path(real), size=found.st_size, mtime_ns=found.st_mtime_ns)


def open_plain(path: Path) -> io.BufferedReader:
    """Open the regular file at the real path `path` for reading.

    A real path holds no links. If the file, or a folder above it, has become a link since, opening fails. A pipe does
    not block. Raises OSError.
    """
    return io.BufferedReader(open_raw(path))


def open_file(file: RunFile, *, most: int = sys.maxsize) -> io.BufferedReader | io.BytesIO:
    """Open a file of a run directory, or a part of one, as `open_plain` does.

    A part is read into memory, no more than its first `most` bytes.
    """
    stream = open_plain(file.path)
    if file.offset is None:
        return stream
    with stream:
        stream.seek(file.offset)
        return io.BytesIO(stream.read(min(file.size, most)))


def read_limited(file: RunFile, most: int) -> bytes | None:
    """Return the bytes of a file of a run directory, None if it is gone, larger than `most`, or no longer plain."""
    try:
        with open_file(file) as source:
            data = source.read(most + 1)
    except OSError:
        return None
    return data if len(data) <= most else None


def open_raw(path: Path) -> io.FileIO:
    """Open the file as `open_plain` does, without a buffer."""
    descriptor = os.open(path, _OPEN_FLAGS)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        if not _lies_at(descriptor, path):
            raise OSError(errno.ELOOP, "a folder above it has become a link", str(path))
        file = io.FileIO(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
    file.name = str(path)
    return file


def _lies_at(descriptor: int, path: Path) -> bool:
    """Return whether the open file lies at the real path `path`, and no folder above it is a link."""
    with contextlib.suppress(OSError):  # only Linux has it
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(path):  # noqa: PTH115
            return True
    return os.path.realpath(path) == os.path.abspath(path)  # noqa: PTH100 - normalises nothing in a real path


def read_head(path: Path, size: int, *, offset: int = 0) -> bytes:
    """Return `size` bytes, from byte `offset` on, of the regular file at the real path `path`; fewer if it ends before.

    Raises OSError.
    """
    with io.BufferedReader(open_raw(path)) as file:  # some file systems return less at a time than asked for
        file.seek(offset)
        return file.read(min(size, os.fstat(file.fileno()).st_size + 1))  # no more memory than the file takes


def clean(text: str) -> str:
    """Return `text` with lone surrogates replaced, since no target can encode them."""
    if text.isascii():
        return text
    return text.encode("utf-16", errors="surrogatepass").decode("utf-16", errors="replace")


def shortened(name: str) -> str:
    """Return `name`; one that is longer than LONGEST_NAME is cut and ends in a digest of the whole."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 33]}-{digest(name, 32)}"


def cache_dir() -> Path:
    """Return the folder for caches: BRIDGE_CACHE_DIR, else `registry-bridge` in XDG_CACHE_HOME or ~/.cache.

    Everything in it can be deleted at any time. It may not exist yet. Raises RuntimeError if there is no home folder.
    """
    own = os.environ.get("BRIDGE_CACHE_DIR")
    if own:
        return Path(own).expanduser()  # RuntimeError also for ~somebody who does not exist
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG rules say that a relative path is to be ignored.
    base = Path(shared) if Path(shared).is_absolute() else Path.home() / ".cache"
    return base / "registry-bridge"


SETTLED_S = 2.0
"""Seconds within which two changes of a file can leave the same mtime."""


def fingerprint(paths: Iterable[str | Path]) -> str | None:
    """Return the inodes, sizes and mtimes of `paths` as a text that differs if one of them changed; "-" if missing.

    Return None if one changed within the last SETTLED_S seconds, so that a later change may leave the same mtime.
    """
    settled = time.time() - SETTLED_S
    found = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            found.append("-")
            continue
        if status.st_mtime > settled:
            return None
        found.append(f"{status.st_ino}.{status.st_size}.{status.st_mtime_ns}")
    return " ".join(found)

"""Which files of a run directory may be read: regular ones whose real path lies inside, nothing else."""

# ruff: noqa: PTH116, PTH117, PTH118 - os.path keeps the dots of a path, which Path would swallow

from __future__ import annotations

import os
import stat
from pathlib import Path

from bridge.model import RunFile

__all__ = ["RUN_FILES", "Refused", "inside", "own_file"]

RUN_FILES = ("sidecar.json", "summary.json", "hparams.yaml", "metrics.csv", "media.jsonl")
"""A run directory's own plain files."""


class Refused(Exception):  # noqa: N818 - an answer for the caller to word, never shown
    """A path that must not be read; `str()` says why. `missing` where there is just no such file."""

    def __init__(self, why: str, *, missing: bool = False) -> None:
        super().__init__(why)
        self.missing = missing


def own_file(directory: Path, name: str) -> RunFile | None:
    """The plain file `name` directly in the real path `directory`; None where there is none.

    Raises Refused for what is no regular file, or a link that leads out.
    """
    path = f"{directory}{os.sep}{name}"
    try:
        found = os.lstat(path)
    except OSError:
        return None
    if stat.S_ISREG(found.st_mode):
        return RunFile(path=directory / name, size=found.st_size, mtime_ns=found.st_mtime_ns)
    return inside(directory, name)


def inside(directory: Path, relative: str) -> RunFile:
    """The regular file at `relative` below the real path `directory`.

    Raises Refused for an absolute path, for one that leads out of the directory (by `..` or a link), for what is
    no regular file (a folder, a pipe, a device), and for what is not there.
    """
    if not relative or "\0" in relative:
        raise Refused("is no path")
    parts = relative.replace("\\", "/").split("/")
    if os.path.isabs(relative) or ".." in parts:
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
        raise Refused("is no regular file")
    return RunFile(path=Path(real), size=found.st_size, mtime_ns=found.st_mtime_ns)

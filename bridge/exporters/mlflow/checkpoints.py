"""A run's checkpoints: told by path, size and step, or uploaded."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.model import RunFile

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from bridge.model import Run

__all__ = [
    "CHECKPOINTS_FILE",
    "checkpoint_file",
    "checkpoint_files",
    "checkpoint_tags",
    "plain_path",
    "refused_files",
]

CHECKPOINTS_FILE = "bridge/checkpoints.json"
"""The names of checkpoints that no server takes, by what they are called there."""

_FOLDER = "checkpoints"
_STEP = re.compile(r"step=(\d+)")
_CUT_SHORT = re.compile(r"[#?%\x00-\x1f\x7f\ud800-\udfff]")
"""Where a server takes a path for ended or for encoded: another name arrives, and two may become one."""

_NAME_BYTES = 200
"""Bytes of a name that had to be changed, below what file systems take."""


def checkpoint_tags(run: Run) -> dict[str, str]:
    """What the tags say of the checkpoint that the sidecar names: its path and, as far as they are known, size and step.

    Nothing is said of a file outside the run directory but its path.
    """
    if not run.checkpoint:
        return {}
    tags = {"bridge.checkpoint": run.checkpoint}
    file = checkpoint_file(run)
    if file is not None:
        tags["bridge.checkpoint_size"] = str(file.size)
    step = _STEP.search(Path(run.checkpoint).name)
    return tags | ({"bridge.checkpoint_step": step[1]} if step else {})


def checkpoint_file(run: Run) -> RunFile | None:
    """The checkpoint that the sidecar names, where it is a plain file inside the run directory, wherever that is now."""
    if not run.checkpoint or "\0" in run.checkpoint:
        return None
    named = Path(run.checkpoint)
    inside = named if not named.is_absolute() else named.relative_to(run.path) if _within(named, run.path) else None
    for path in (inside, Path(_FOLDER) / named.name):
        file = None if path is None else _plain_file(run.path, path)
        if file is not None:
            return file
    return None


def checkpoint_files(run: Run) -> dict[str, RunFile]:
    """All checkpoints of the run directory by their path in it: plain files below `checkpoints`, links not followed."""
    files = ((path, _plain_file(run.path, path)) for path in _paths(run))
    return {path.as_posix(): file for path, file in files if file is not None}


def refused_files(run: Run, files: Container[str]) -> list[str]:
    """What else lies below `checkpoints`, beside `files`: links that lead out of the run directory, pipes."""
    return [path.as_posix() for path in _paths(run) if path.as_posix() not in files]


def plain_path(path: str) -> str:
    """`path` as every artifact store takes it; each part that had to be changed has a digest, so that no two are the same."""
    return "/".join(_plain_part(part) for part in path.split("/"))


def _plain_part(part: str) -> str:
    plain = _CUT_SHORT.sub("_", part)
    if plain == part:
        return part
    stem, dot, ending = plain.rpartition(".")
    mark = hashlib.sha256(part.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    room = _NAME_BYTES - len(f"{dot}{ending}".encode())
    return f"{(stem if dot else plain).encode()[: max(room, 0)].decode(errors='ignore')}-{mark}{dot}{ending if dot else ''}"


def _paths(run: Run) -> Iterator[Path]:
    """The paths of all that is no folder below `checkpoints`, relative to the run directory."""
    top = run.path / _FOLDER
    # Where that is a link itself, what it leads out to is not even listed: it may be the whole file system.
    inside = Path(os.path.realpath(top)).is_relative_to(run.path)
    for folder, folders, names in os.walk(top, followlinks=False) if inside else ():
        folders.sort()
        for name in sorted(names):
            yield (Path(folder) / name).relative_to(run.path)


def _within(path: Path, folder: Path) -> bool:
    return ".." not in path.parts and path.is_relative_to(folder)


def _plain_file(folder: Path, path: Path) -> RunFile | None:
    try:
        real = (folder / path).resolve(strict=True)
        found = real.stat()
    except (OSError, RuntimeError, ValueError):
        return None
    if ".." in path.parts or not real.is_relative_to(folder) or not stat.S_ISREG(found.st_mode):
        return None
    return RunFile(path=real, size=found.st_size, mtime_ns=found.st_mtime_ns)

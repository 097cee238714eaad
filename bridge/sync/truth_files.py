"""Which files of a run directory verify reads: regular ones whose real path lies inside."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["own_file"]


def own_file(run_dir: Path, name: str) -> Path | None:
    """The real path of the file `name` (relative, with slashes) of `run_dir`; None where it may not be read.

    That is one that is missing, that is no regular file (a pipe would block whoever opens it), or that lies outside.
    """
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        return None
    try:
        real = run_dir.resolve()
        path = (real / relative).resolve()
        return path if path.is_relative_to(real) and path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # a loop of links, a name with a null byte
        return None

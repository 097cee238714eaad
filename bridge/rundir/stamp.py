"""What stat says of a run directory: enough to know that nothing moved since the last look."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Stamp", "stamp"]

Stamp: TypeAlias = tuple[tuple[int, int, int] | None, ...]
"""(inode, size, mtime in nanoseconds) of each of FILES; None where there is none."""

FILES = ("sidecar.json", "summary.json", "hparams.yaml", "metrics.csv", "media.jsonl", "heartbeat")


def stamp(run_dir: Path) -> Stamp:
    """The stamp of `run_dir`, six stats and nothing read."""
    return tuple(_of(f"{run_dir}{os.sep}{name}") for name in FILES)


def _of(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - called for thousands of runs every few seconds
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns

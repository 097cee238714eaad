"""Find run directories below some folders, by listing no more than it takes."""

# ruff: noqa: PTH112, PTH113 - a walk over a hundred thousand folders: objects for paths would cost more than the walk

from __future__ import annotations

import csv
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["NEVER_ENTERED", "TARGET_MARK", "discover", "is_run", "walk"]

NEVER_ENTERED = frozenset({"mlruns", "mlartifacts", "media", "checkpoints"})
"""Folders that hold no runs; hidden ones are not entered either."""

TARGET_MARK = ".bridge-target"
"""The file that exporters leave in folders of theirs, so that a walk never finds the bridge's own output."""

_HEADER_BYTES = 1 << 20

log = logging.getLogger(__name__)


def discover(roots: Sequence[Path]) -> Iterator[Path]:
    """The real paths of all run directories at and below `roots`, each once, in the order of names below each root.

    The walk stops at a run directory, follows links, and survives loops of them. A folder that cannot be listed is
    logged and passed over. Raises UsageError, before anything is walked, for a root that is not a folder.
    """
    for root in roots:
        if not os.path.isdir(root):
            what = "is not a folder" if os.path.lexists(root) else "does not exist"
            raise UsageError(f"{root} {what}.", hint="Give run directories, or folders that hold some.")
    return map(Path, walk([os.path.realpath(root) for root in roots]))


def walk(roots: Sequence[str]) -> Iterator[str]:
    """The same as texts, for real paths of folders."""
    seen: set[str] = set()
    waiting = [*reversed(roots)]
    while waiting:
        folder = waiting.pop()
        if folder in seen:
            continue
        seen.add(folder)
        if os.path.lexists(f"{folder}{os.sep}{TARGET_MARK}"):
            continue
        if is_run(folder):
            yield folder
        else:
            waiting += reversed(_folders(folder))


def is_run(folder: str) -> bool:
    """Whether `folder` is a run directory: a sidecar, or metrics.csv with a column `step` beside hparams.yaml.

    Whatever is called sidecar.json makes it one: where it is no plain file, reading the run says so.
    """
    if os.path.lexists(f"{folder}{os.sep}sidecar.json"):
        return True
    metrics = f"{folder}{os.sep}metrics.csv"
    return os.path.isfile(f"{folder}{os.sep}hparams.yaml") and os.path.isfile(metrics) and _has_step(metrics)


def _has_step(metrics: str) -> bool:
    try:
        with open(metrics, "rb", opener=_opened) as file:
            line = file.readline(_HEADER_BYTES).decode("utf-8-sig", errors="replace")
        return "step" in next(csv.reader([line]), [])
    except (OSError, csv.Error):
        return False


def _opened(path: str, flags: int) -> int:
    # A pipe in the place of the file must not block.
    return os.open(path, flags | os.O_NONBLOCK)


def _folders(folder: str) -> list[str]:
    """The real paths of the folders in `folder` that may hold runs, by name."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name[0] == "." or name in NEVER_ENTERED or not _is_folder(entry):
                    continue
                found.append((name, os.path.realpath(entry.path) if entry.is_symlink() else entry.path))
    except OSError as error:
        log.warning("%s cannot be listed: %s", folder, error.strerror)
    found.sort()
    return [path for _, path in found]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, or to what may not be looked at
        return False

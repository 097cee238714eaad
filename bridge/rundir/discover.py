"""Find run directories below folders, and name the folders that only look like one."""

# ruff: noqa: PTH112, PTH116 - a walk over a hundred thousand folders: a Path for each would cost more than the walk

from __future__ import annotations

import contextlib
import os
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bridge.errors import RunDirectoryError, UsageError
from bridge.files import SETTLED_S, TARGET_MARK, Refused, inside, open_plain
from bridge.model import SkippedFolder
from bridge.rundir.event_runs import event_names, holds_points, is_event_file, scalars_names
from bridge.rundir.header import read_layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import BinaryIO

    from bridge.rundir.header import Layout

OWN_FOLDERS = ("checkpoints", "media")
"""Folders of a run that hold its own files. The walk does not enter them; `runs_within` names the runs in there."""

FILES = ("sidecar.json", "summary.json", "hparams.yaml", "metrics.csv", "media.jsonl", "heartbeat", *OWN_FOLDERS)
"""The files and folders of a run directory that change while its run goes on."""

Stamp = tuple[tuple[int, int, int] | None, ...]
"""(inode, size, mtime in nanoseconds) of each of FILES and of the `checkpoint_folders`, or None for a missing file."""

_RUN_FILES = ("sidecar.json", "metrics.csv")
_NAMES = (*_RUN_FILES, *OWN_FOLDERS)

_NEVER_ENTERED = frozenset({"mlruns", "mlartifacts"})

_BLANK_BYTES = 1 << 14
LFS_POINTER = b"version https://git-lfs.github.com/"
"""The beginning of the file that Git leaves in the place of one that was not fetched."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """Run directories as real paths, each once, in the order of names below each root; and the skipped folders."""

    runs: list[Path] = field(default_factory=list)
    skipped: list[SkippedFolder] = field(default_factory=list)

    def __iter__(self) -> Iterator[Path]:
        """Iterate over the run directories."""
        return iter(self.runs)


class RunListing(NamedTuple):
    """A run directory as a walk found it.

    `names` are those of its sidecar.json, metrics.csv and OWN_FOLDERS, if they are there, and of its event files. If it
    holds other folders, these may belong to its event files, which are not named then. With them, or with links to
    folders, which count if it is no run any more, `fingerprint` is "".
    """

    path: str
    names: list[str]
    fingerprint: str


def discover(roots: Sequence[Path]) -> Discovery:
    """Find all run directories at and below `roots`.

    Raises UsageError, before anything is walked, for a root that is not a folder.
    """
    for root in roots:
        if not os.path.isdir(root):
            problem = "is not a folder" if os.path.lexists(root) else "does not exist"
            raise UsageError(f"{root} {problem}.", hint="Give run directories, or folders that hold some.")
    skipped: list[SkippedFolder] = []
    runs = [Path(run.path) for run in walk([os.path.realpath(root) for root in roots], skipped)]
    return Discovery(runs, skipped)


def walk(
    roots: Sequence[str],
    skipped: list[SkippedFolder],
    is_unchanged: Callable[[str, list[str]], bool] = lambda *_: False,
    listings: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[RunListing]:
    """Yield the run directories at and below `roots` (real paths of folders), and add what is passed over to `skipped`.

    The walk follows links to folders, and enters each real folder once, so loops of links end. It goes on below a run
    directory, where it follows no links. Hidden folders, MLflow's own and those with a TARGET_MARK are not entered, nor
    a run's checkpoints and media, for which there is `runs_within`. No file is opened in a folder that `is_unchanged`
    knows as a run by its path and names.

    `listings` holds the fingerprint and names of run directories that an earlier walk found. A folder that still has
    this fingerprint is not listed: making or deleting anything in a folder changes its times.
    """
    seen: set[str] = set()
    waiting = [(root, True) for root in reversed(roots)]
    while waiting:
        folder, follow = waiting.pop()
        if folder in seen:
            continue
        seen.add(folder)
        before, *files = (listings or {}).get(folder, ("",))
        now = "" if listings is None else _fingerprint(folder)
        folders: dict[str, str] = {}
        links: dict[str, str] = {}
        try:
            if not files or now != before:
                files, folders, links = _listing(folder)
        except OSError as error:
            skipped.append(SkippedFolder(folder, f"cannot be listed: {error.strerror}"))
            continue
        if TARGET_MARK in files:
            continue
        has_events = "tfevents" in "/".join(files) and any(map(is_event_file, files))  # most folders have none
        # Other folders may belong to the run as well, so that its event files are not only those in `files`.
        events = list(filter(is_event_file, files)) if has_events and not folders.keys() - OWN_FOLDERS else []
        names = [name for name in _NAMES if name in files or name in folders] + events
        reason = "" if "sidecar.json" in files or is_unchanged(folder, names) else _why_no_run(folder, files)
        if not reason:
            follow = False
            for name in OWN_FOLDERS:
                folders.pop(name, None)
            yield RunListing(folder, names, "" if folders or links else now)
            if folders and has_events:
                folders = {name: path for name, path in folders.items() if not scalars_names(folder, name)}
        elif "metrics.csv" in files or has_events:
            skipped.append(SkippedFolder(folder, reason))
        below = folders | links if follow else folders
        if below:
            waiting += [(below[name], follow) for name in sorted(below, reverse=True)]


def runs_within(run: Path | str, own_folders: Sequence[str] = OWN_FOLDERS) -> list[SkippedFolder]:
    """Return the run directories up to two levels inside `own_folders` of the run directory `run`.

    This takes longer than the walk itself, so it belongs to the reading of a run that is new or changed (see FILES).
    """
    found: list[SkippedFolder] = []
    for name in own_folders:
        own = f"{run}{os.sep}{name}"
        level = [own] if has_folders(lstat(own)) else []
        for depth in range(3):
            below: list[str] = []
            for path in level:
                try:
                    files = _telling_files(path) if name == "media" and depth else None
                    if files is None:
                        files, folders, _ = _listing(path)
                        below += folders.values()
                except OSError:
                    continue
                if files and not _why_no_run(path, files):
                    found.append(SkippedFolder(path, f"is in the {name} of the run {run}; to read it, give its path"))
            level = sorted(below)
    return found


def _telling_files(folder: str) -> list[str] | None:
    """Return the files that make a folder of media a run; None if it must be listed, since it holds folders.

    There may be thousands of pictures in it. Event files are not looked for: only the logger writes into media.
    """
    if has_folders(lstat(folder)):
        return None
    return [name for name in _RUN_FILES if lstat(f"{folder}{os.sep}{name}")]


def checkpoint_folders(run: Path | str) -> list[str]:
    """Return the folders up to two levels inside the checkpoints of the run directory `run`.

    A run that begins in one of them changes the mtime of that folder alone. Only the logger writes into media.
    """
    found: list[str] = []
    level = [f"{run}{os.sep}checkpoints"]
    for _ in range(2):
        below: list[str] = []
        for path in level:
            if has_folders(lstat(path)):
                with contextlib.suppress(OSError):
                    below += _listing(path)[1].values()
        level = sorted(below)
        found += level
    return found


def has_folders(found: os.stat_result | None) -> bool:
    """Return whether lstat found a folder, and no link, in which other folders can be.

    A folder of two links holds none on most file systems. It is not listed, since there may be many files in it.
    """
    return found is not None and found.st_nlink != 2 and stat.S_ISDIR(found.st_mode)


def lstat(path: str) -> os.stat_result | None:
    """Return what lstat says of `path`, None where it says nothing."""
    try:
        return os.lstat(path)
    except OSError:
        return None


def why_no_run(folder: str) -> str:
    """Return the reason why `folder` is not a run directory, or "" if it is one.

    Anything called sidecar.json makes a run directory. If it cannot be read, reading the run says so.
    """
    try:
        return _why_no_run(folder, _listing(folder)[0])
    except OSError as error:
        return f"cannot be listed: {error.strerror}"


def stamp(run_dir: Path | str) -> Stamp:
    """Return what stat says of the FILES of `run_dir`, or of its event files: if it is unchanged, so are they."""
    found = tuple(file_mark(f"{run_dir}{os.sep}{name}") for name in FILES)
    if found[0] is None and found[3] is None:  # neither sidecar.json nor metrics.csv
        found += tuple(file_mark(f"{run_dir}{os.sep}{name}") for name in sorted(event_names(run_dir)))
    if found[6] is not None:  # checkpoints
        found += tuple(map(file_mark, checkpoint_folders(run_dir)))
    return found


def file_stamp(run_dir: str, kind: str, name: str) -> tuple[object, ...]:
    """Return what stat says of the file `name` of a run, or of its event files; () if there are none."""
    if kind == "TensorBoardLogger":
        return stamp(run_dir)[len(FILES) :]
    return file_mark(f"{run_dir}{os.sep}{name}") or ()


def file_mark(path: Path | str) -> tuple[int, int, int] | None:
    """Return the inode, size and mtime of a file, None if there is none: if they are the same, so is its content."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _fingerprint(folder: str) -> str:
    """Return a text that differs if anything was made or deleted in `folder`; "" if this was a moment ago.

    The ctime tells it where the mtime was set back, as `rsync -a` and `tar` do.
    """
    found = lstat(folder)
    if found is None or found.st_mtime > time.time() - SETTLED_S:
        return ""
    return f"{found.st_ino}.{found.st_size}.{found.st_mtime_ns}.{found.st_ctime_ns}"


def _listing(folder: str) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """Return the names of the files in `folder`, and the real paths of its folders that may be entered, by name.

    Links to folders are in a mapping of their own.
    """
    files: list[str] = []
    folders: dict[str, str] = {}
    links: dict[str, str] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if entry.is_file(follow_symlinks=False) or name in _RUN_FILES:
                files.append(name)
            elif entry.is_dir(follow_symlinks=False):
                if name[0] != "." and name not in _NEVER_ENTERED:
                    folders[name] = entry.path
            elif not _is_folder(entry):
                files.append(name)
            elif name[0] != "." and name not in _NEVER_ENTERED:
                links[name] = os.path.realpath(entry.path)
    return files, folders, links


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether a link leads to a folder."""
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, or to something that must not be looked at
        return False


def _why_no_run(folder: str, files: list[str]) -> str:
    if "sidecar.json" in files:
        return ""
    if "metrics.csv" not in files:
        events = [name for name in files if is_event_file(name)]
        if not events:
            return "there is neither a sidecar.json nor a metrics.csv nor an event file"
        return "" if holds_points(folder, events) else "its event files hold no metric"
    try:
        with open_plain(inside(Path(folder), "metrics.csv").path) as file:
            layout = read_layout(file, None)
            problem = _no_header(file) if layout is None else _header_problem(layout)
    except Refused as error:
        problem = f"metrics.csv {error}"
    except OSError as error:
        problem = f"metrics.csv cannot be read: {error.strerror}"
    except RunDirectoryError as error:
        problem = error.message.removeprefix(f"{folder}{os.sep}").removesuffix(".")
    return problem


def _no_header(file: BinaryIO) -> str:
    file.seek(0)
    return "metrics.csv ends within its header line" if file.read(_BLANK_BYTES).strip() else "metrics.csv is empty"


def _header_problem(layout: Layout) -> str:
    """Return why a metrics.csv with this header is not a logger's, or "" if it is."""
    columns = layout.columns
    if columns[0].startswith(LFS_POINTER.decode()):
        return "metrics.csv is a Git LFS pointer; `git lfs pull` fetches the file"
    is_known = "step" in columns or ("created_at" in columns and "epoch" in columns)
    return "" if is_known else "metrics.csv has no column step, and so is not a logger's"

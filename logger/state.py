"""sidecar.json and summary.json of a run that is being written: what is ours in them, and what others edit meanwhile."""

from __future__ import annotations

import contextlib
import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from logger.files import replace_file
from logger.sidecar import (
    SCHEMA_VERSION,
    SidecarError,
    atomic_text_write,
    json_text,
    read_sidecar,
    read_summary,
    sidecar_path,
    summary_path,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "SidecarFile",
    "first_change",
    "format_number",
    "free_beside",
    "load_summary",
    "remove_leftovers",
    "set_aside",
    "write_summary",
]

_OURS = frozenset(
    {
        "schema_version",
        "uid",
        "run_id",
        "run_dir",
        "status",
        "created_at",
        "ended_at",
        "updated_at",
        "hparams",
        "summary",
        "checkpoint_path",
        "sessions",
        "time_column",
        "time_column_before",
        "given",
    }
)
"""The sidecar's fields that the training writes; all others (tags, notes, display_name, archived, unknown ones) belong to people."""

_TRIES = 3
_LEFTOVER_MEDIA = re.compile(r"\.[0-9a-f]{8}\.tmp")
_LEFTOVER = re.compile(r"\.(sidecar\.json|summary\.json|hparams\.yaml|metrics\.csv)\.[0-9a-f]{8}\.tmp")


class SidecarFile:
    """The sidecar of a run that is being written.

    `data` is what this process holds to be true. Whatever others put on disk meanwhile in fields that are not ours wins,
    and so do sessions that we do not know of.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = sidecar_path(run_dir)
        self.data: dict[str, Any] = {}
        self._seen: tuple[int, int, int] | None = None

    def load(self) -> bool:
        """Take over what is on disk; whether there was anything. What cannot be read is set aside, never overwritten."""
        self._seen = self._state()
        try:
            self.data = read_sidecar(self.path.parent)
        except FileNotFoundError:
            return False
        except SidecarError:
            set_aside(self.path)
            raise
        return True

    def write(self, ours: dict[str, Any]) -> None:
        """Replace the file by `data` with `ours` in it; an edit that comes in between is taken over first."""
        for attempt in range(_TRIES):
            self._take_over()
            self.data.update(ours)
            last = attempt == _TRIES - 1
            confirm = None if last else lambda _: self._state() == self._seen
            state = replace_file(self.path, json_text(self.data), confirm=confirm)
            if state is not None:
                self._seen = state.st_ino, state.st_mtime_ns, state.st_size
                return

    def _take_over(self) -> None:
        state = self._state()
        if state is None or state == self._seen:
            return
        self._seen = state
        try:
            disk = read_sidecar(self.path.parent)
        except FileNotFoundError:
            return
        except SidecarError:
            set_aside(self.path)  # an editor may be in the middle of its work: it keeps its file
            return
        for name in [name for name in self.data if name not in _OURS and name not in disk]:
            del self.data[name]
        self.data.update({name: value for name, value in disk.items() if name not in _OURS})
        known = {session.get("id") for session in self.data.get("sessions", ()) if isinstance(session, dict)}
        others = disk.get("sessions")
        for session in others if isinstance(others, list) else ():
            if isinstance(session, dict) and session.get("id") not in known:
                self.data.setdefault("sessions", []).append(session)

    def _state(self) -> tuple[int, int, int] | None:
        try:
            state = self.path.stat()
        except OSError:
            return None
        return state.st_ino, state.st_mtime_ns, state.st_size


def format_number(data: Mapping[str, Any]) -> int:
    """The format of a file that held `data`: ours, or a later one that it had (what is unknown of it is kept)."""
    held = data.get("schema_version")
    return held if type(held) is int and held > SCHEMA_VERSION else SCHEMA_VERSION


def load_summary(run_dir: Path) -> dict[str, Any]:
    """The summary of `run_dir` as it is; empty where there is none, or none that can be read (it can be made anew)."""
    try:
        return read_summary(run_dir)
    except (OSError, SidecarError):
        return {}


def write_summary(run_dir: Path, summary: dict[str, Any]) -> None:
    """Replace the summary of `run_dir`."""
    atomic_text_write(summary_path(run_dir), json_text(summary))


def remove_leftovers(run_dir: Path, *, older_than: float) -> None:
    """Remove temporary files, of `older_than` seconds or more, that a process killed in the middle of a write left behind."""
    found = [path for path in run_dir.glob(".*.tmp") if _LEFTOVER.fullmatch(path.name)]
    found += [path for path in run_dir.glob("media/*/.*.tmp") if _LEFTOVER_MEDIA.fullmatch(path.name)]
    for path in found:
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime >= older_than:
                path.unlink()


def first_change(run_dir: Path) -> str:
    """When the oldest of the run's own files was last changed, as sidecars write times."""
    times = [path.stat().st_mtime for name in ("hparams.yaml", "metrics.csv") if (path := run_dir / name).exists()]
    return datetime.fromtimestamp(min(times, default=time.time()), UTC).isoformat()


def free_beside(path: Path) -> Path:
    """A name beside `path` that is free: `name.1`, `name.2`, ..."""
    number = 1
    while (aside := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return aside


def set_aside(path: Path) -> Path:
    """Rename `path` to a name beside it that is free."""
    aside = free_beside(path)
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
    return aside

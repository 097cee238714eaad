"""Going on with a run directory that is there: statistics, sessions, tags, and who else may be writing it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from logger.csv_scan import Record, Scan, records, whole_number
from logger.session import host_name, process_lives, session_entry
from logger.sidecar import MetricStats, Summary, convert_document, heartbeat_mtime, is_alive
from logger.steps import FAR
from logger.values import cell_number

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Restored", "add_session", "other_process", "restore"]


@dataclass(slots=True)
class Restored:
    """What the rows on disk say: statistics of each metric, the last row's step (None without rows), the last epoch."""

    stats: dict[str, MetricStats] = field(default_factory=dict)
    step: int | None = None
    epoch: float | None = None


def restore(path: Path, found: Scan, summary: Mapping[str, Any], *, time_column: str | None) -> Restored:
    """The statistics of all `found` rows of the metrics.csv at `path`.

    `summary` is taken for the rows that it covers (it may be some seconds behind the rows); the others are read. One that does
    not say how many it covers (other writers) counts for nothing, as long as there are rows; one that says null (the disk had
    refused rows that it covers) for nothing at all.
    """
    metrics = summary.get("metrics")
    covered = summary.get("rows")
    known = isinstance(metrics, dict) and isinstance(covered, int) and 0 <= covered <= found.rows
    restored = Restored()
    refused = "rows" in summary and covered is None
    if isinstance(metrics, dict) and (known or not (found.rows or refused)):
        restored.stats = convert_document({"metrics": metrics}, Summary)[0].metrics
        step = summary.get("step")
        restored.step = step if isinstance(step, int) and -FAR <= step < FAR else None
        restored.epoch = summary["epoch"] if isinstance(summary.get("epoch"), int | float) else None
    skip = covered if known and isinstance(covered, int) else 0
    if skip == found.rows:
        return restored
    for number, record in enumerate(records(path, found, skip=skip), start=skip):
        _add_row(restored, record, number=number, time_column=time_column)
    return restored


def _add_row(restored: Restored, record: Record, *, number: int, time_column: str | None) -> None:
    """Take in what readers find in a row: nothing in one that is none for them."""
    row = record.filled()
    step = whole_number(row.get("step", "")) if "step" in record.columns else number
    if not record.good or step is None:
        return
    restored.step = step
    for name, cell in row.items():
        if name in ("step", time_column):
            continue
        value = cell_number(cell)
        if value is None:
            continue
        if name not in restored.stats:
            restored.stats[name] = MetricStats()
        restored.stats[name].add(value, restored.step)
        if name == "epoch":
            restored.epoch = value


def add_session(data: dict[str, Any], *, token: str, rows: int, tags: tuple[str, ...], notes: str) -> tuple[int, bool]:
    """Enter this start into the sidecar `data`; gives its number, and whether it is a new one.

    A start whose token is there already (a child process, an unpickled copy) goes on in its own entry. Tags and notes
    are added once: what people took away or rewrote since an earlier start gave it stays as they left it.
    """
    sessions = data.get("sessions")
    sessions = data["sessions"] = list(sessions) if isinstance(sessions, list) else []
    for number, session in enumerate(sessions):
        if isinstance(session, dict) and session.get("id") == token:
            return number, False
    sessions.append(session_entry(token, rows=rows))
    given = data.get("given")
    given = given if isinstance(given, dict) else {}
    present = data.get("tags")
    present = [present] if isinstance(present, str) and present else present  # one tag, as readers have it
    present = [str(tag) for tag in present] if isinstance(present, list) else []
    before = given.get("tags")
    before = before if isinstance(before, list) else []
    data["tags"] = present + [tag for tag in dict.fromkeys(tags) if tag not in present and tag not in before]
    if notes and (not data.get("notes") or data.get("notes") == given.get("notes")) and notes != given.get("notes"):
        data["notes"] = notes
    data["given"] = {"tags": list(dict.fromkeys([*before, *tags])), "notes": notes or given.get("notes", "")}
    return len(sessions) - 1, True


def other_process(run_dir: Path, data: Mapping[str, Any]) -> str | None:
    """A sentence that names the process that seems to be writing `run_dir` at this moment, if it is not this one."""
    if not is_alive(run_dir):
        return None
    sessions = data.get("sessions")
    last = sessions[-1] if isinstance(sessions, list) and sessions and isinstance(sessions[-1], dict) else {}
    host, pid = last.get("host"), last.get("pid")
    if host == host_name() and isinstance(pid, int) and not process_lives(pid):
        return None
    age = max(0.0, time.time() - (heartbeat_mtime(run_dir) or 0.0))
    who = f"process {pid} on {host}" if host else "another process"
    return (
        f"{run_dir} gave a sign of life {age:.0f} s ago: {who} may still be writing it. "
        "Two processes in one run directory mix their rows; end one of them, or give each its own directory."
    )

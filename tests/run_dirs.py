"""Write run directories by hand, byte by byte, for tests that do not depend on the logger."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

CREATED = "2026-04-10T12:00:00+00:00"
CREATED_S = 1775822400.0
"""The start of every hand-written run, in seconds since the epoch."""


def write_sidecar(path: Path, *, status: str = "completed", **fields: Any) -> Path:
    """Write `sidecar.json` into the run directory `path`, with `fields` over usable defaults."""
    path.mkdir(parents=True, exist_ok=True)
    sidecar = {
        "schema_version": 1,
        "run_id": path.name,
        "run_dir": str(path),
        "status": status,
        "created_at": CREATED,
        "ended_at": "2026-04-10T13:00:00+00:00" if status in ("completed", "failed") else None,
        # A run that goes on wrote its sidecar just now; an older time would mean that the directory is a copy.
        "updated_at": time.time() if status == "running" else "2026-04-10T13:00:00+00:00",
        "tags": [],
        "notes": "",
        "hparams": {},
        "summary": {},
        "checkpoint_path": None,
        "uid": f"uid-{path.name}",
        "time_column": "wall_time",
        "sessions": [],
    } | fields
    (path / "sidecar.json").write_text(json.dumps(sidecar))
    return path


def write_metrics(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]], *, append: bool = False) -> None:
    """Write (or append) rows to `metrics.csv`, as Lightning does: CRLF, None as an empty cell.

    The file gets an mtime over a minute ago, so that no rows of a running run wait for later ones.
    """
    lines = [] if append else [",".join(header)]
    lines += [",".join("" if cell is None else str(cell) for cell in row) for row in rows]
    with (path / "metrics.csv").open("a" if append else "w", newline="") as file:
        file.write("".join(f"{line}\r\n" for line in lines))
    then = time.time() - 70
    os.utime(path / "metrics.csv", (then, then))


def make_run(
    path: Path,
    rows: Sequence[Mapping[str, object]] = (),
    *,
    heartbeat_age: float | None = None,
    **sidecar: Any,
) -> Path:
    """Return a whole run directory: rows are dicts with `step` and metrics.

    `wall_time` counts seconds from CREATED_S.
    """
    write_sidecar(path, **sidecar)
    names = sorted({name for row in rows for name in row} - {"step", "wall_time"})
    write_metrics(
        path,
        [*names, "step", "wall_time"],
        [
            [*(row.get(name) for name in names), row.get("step"), row.get("wall_time", CREATED_S + number)]
            for number, row in enumerate(rows)
        ],
    )
    (path / "hparams.yaml").write_text("{}\n")
    heartbeat = path / "heartbeat"
    heartbeat.touch()
    if heartbeat_age is not None:
        then = heartbeat.stat().st_mtime - heartbeat_age
        os.utime(heartbeat, (then, then))
    return path

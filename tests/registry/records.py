"""Make records by hand."""

from __future__ import annotations

from typing import Any

from bridge.model import Status
from bridge.registry import RunRecord

START = 1775822400.0
"""2026-04-10 12:00:00 UTC."""


def record(run_id: str = "a", **fields: Any) -> RunRecord:
    """Return a completed run of one hour with `fields` over it."""
    usual: dict[str, Any] = {
        "run_dir": f"/runs/{run_id}",
        "identity": f"uid-{run_id}",
        "status": Status.COMPLETED,
        "status_word": "completed",
        "start": START,
        "end": START + 3600,
        "last_alive": START + 3600,
        "updated": START + 3600,
        "name": run_id,
    }
    return RunRecord(run_id=run_id, **(usual | fields))

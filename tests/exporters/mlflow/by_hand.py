"""Build runs and deltas by hand, for exporter tests that do not depend on the reader."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.model import Block, Cursor, Delta, DeltaKind, Run, RunFile, Status
from bridge.options import ContentOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

START = 1775822400.0
"""The start of every run made here, in seconds since the epoch."""


def run_of(path: Path = Path("/runs/first"), **fields: Any) -> Run:
    """Return a completed run of an hour, with `fields` over it."""
    defaults: dict[str, Any] = {
        "path": path,
        "identity": f"uid-{path.name}",
        "run_id": f"20260410/{path.name}",
        "status": Status.COMPLETED,
        "status_word": "completed",
        "start": START,
        "end": START + 3600.0,
        "last_alive": START + 3600.0,
        "name": path.name,
        "parent": path.parent.name,
        "time_column": "wall_time",
    }
    return Run(**defaults | fields)


def block_of(rows: Sequence[Mapping[str, float]], *, first: int = 0) -> Block:
    """Return rows as a block: each maps `step` and metrics; the time is START plus the row's number in seconds."""
    names = tuple(dict.fromkeys(name for row in rows for name in row if name != "step"))
    values = np.array([[row.get(name, 0.0) for row in rows] for name in names], dtype=np.float64).reshape(
        len(names), len(rows)
    )
    present = np.array([[name in row for row in rows] for name in names], dtype=np.bool_).reshape(len(names), len(rows))
    number = np.arange(first, first + len(rows), dtype=np.int64)
    return Block(
        names=names,
        row=number,
        step=np.array([row["step"] for row in rows], dtype=np.int64),
        time=START + number.astype(np.float64),
        values=values,
        present=present,
    )


def delta_of(
    run: Run,
    rows: Sequence[Mapping[str, float]] = (),
    *,
    before: Cursor | None = None,
    content: ContentOptions | None = None,
    **fields: Any,
) -> Delta:
    """Return a delta with `rows` after `before`; SAME without rows and with a cursor."""
    first = before.rows if before is not None else 0
    block = block_of(rows, first=first)
    base = before or Cursor(run.identity, str(run.path), content=(content or ContentOptions()).differences())
    after = base.with_(rows=first + len(rows), offset=10 * (first + len(rows)), digest=f"digest-{first + len(rows)}")
    kind = DeltaKind.NEW if before is None else DeltaKind.APPEND if rows else DeltaKind.SAME
    defaults: dict[str, Any] = {
        "run": run,
        "kind": kind,
        "before": before,
        "after": after,
        "blocks": (block,) if rows else (),
        "metrics": block.names,
    }
    return Delta(**defaults | fields)


def file_of(path: Path) -> RunFile:
    """Return a file of a run directory as the reader describes it."""
    found = path.stat()
    return RunFile(path=path.resolve(), size=found.st_size, mtime_ns=found.st_mtime_ns)

"""Build runs and deltas by hand, for exporter tests that do not depend on the reader."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.model import RunFile
from bridge.options import ContentOptions
from tests.deltas import make_block, make_delta, make_model_run
from tests.run_dirs import CREATED_S as START

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bridge.model import Block, Cursor, Delta, Run

__all__ = ["START", "block_of", "delta_of", "file_of", "run_of"]


def run_of(path: Path = Path("/runs/first"), **fields: Any) -> Run:
    """Return a completed run of an hour, with `fields` over it."""
    return make_model_run(path, **fields)


def block_of(rows: Sequence[Mapping[str, float]], *, first: int = 0) -> Block:
    """Return rows as a block: each maps `step` and metrics; the time is START plus the row's number in seconds."""
    names = dict.fromkeys(name for row in rows for name in row if name != "step")
    columns = {name: [row.get(name) for row in rows] for name in names}
    return make_block([int(row["step"]) for row in rows], columns, first_row=first)


def delta_of(
    run: Run,
    rows: Sequence[Mapping[str, float]] = (),
    *,
    before: Cursor | None = None,
    content: ContentOptions | None = None,
    **fields: Any,
) -> Delta:
    """Return a delta with `rows` after `before`; SAME without rows and with a cursor."""
    blocks = [block_of(rows, first=before.rows if before else 0)] if rows else []
    delta = make_delta(run, fields.pop("blocks", blocks), before=before, **fields)
    kept = before.content if before else (content or ContentOptions()).differences()
    return delta.with_(after=delta.after.with_(content=kept))


def file_of(path: Path) -> RunFile:
    """Return a file of a run directory as the reader describes it."""
    found = path.stat()
    return RunFile(path=path.resolve(), size=found.st_size, mtime_ns=found.st_mtime_ns)

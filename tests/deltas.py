"""Build runs and deltas by hand, for exporter tests that do not depend on the reader."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.model import Block, Cursor, Delta, DeltaKind, Notice, NoticeKind, Run, RunFile, Status
from bridge.options import ContentOptions
from tests.run_dirs import CREATED_S

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bridge.model import MediaEvent
    from bridge.sync.report import RunReport


def make_model_run(path: Path = Path("/runs/first"), **fields: Any) -> Run:
    """Return a Run of an hour as read from the directory `path`, with `fields` over usable defaults."""
    status = fields.get("status", Status.COMPLETED)
    usual: dict[str, Any] = {
        "path": path,
        "identity": f"uid-{path.name}",
        "run_id": path.name,
        "status": status,
        "status_word": status.value,
        "start": CREATED_S,
        "end": None if status is Status.RUNNING else CREATED_S + 3600.0,
        "last_alive": CREATED_S + 3600.0,
        "name": path.name,
        "parent": path.parent.name,
        "time_column": "wall_time",
    }
    return Run(**(usual | fields))


def make_block(steps: Sequence[int], columns: Mapping[str, Sequence[float | None]], *, first_row: int = 0) -> Block:
    """Return a block of one row per step; None is no point, and times count seconds from CREATED_S by row."""
    row = np.arange(first_row, first_row + len(steps), dtype=np.int64)
    present = np.array([[value is not None for value in values] for values in columns.values()], dtype=bool)
    values = np.array([[value if value is not None else 0.0 for value in one] for one in columns.values()])
    return Block(
        names=tuple(columns),
        row=row,
        step=np.array(steps, dtype=np.int64),
        time=CREATED_S + row.astype(np.float64),
        values=values.reshape(len(columns), len(steps)).astype(np.float64),
        present=present.reshape(len(columns), len(steps)),
    )


def make_delta(
    run: Run,
    blocks: Sequence[Block] = (),
    *,
    before: Cursor | None = None,
    media: Sequence[MediaEvent] = (),
    content: ContentOptions | None = None,
    **fields: Any,
) -> Delta:
    """Return what follows `before`: NEW without one, SAME where nothing is added, else APPEND.

    The cursor counts rows, and holds the content options of `before`, else those of `content`.
    """
    rows = (before.rows if before else 0) + sum(len(block.step) for block in blocks)
    lines = (before.media_lines if before else 0) + len(media)
    steps = [int(block.step.max()) for block in blocks if len(block.step)]
    last = [] if before is None or before.last_step is None else [before.last_step]
    after = Cursor(
        identity=run.identity,
        path=str(run.path),
        rows=rows,
        digest=hashlib.sha256(str(rows).encode()).hexdigest()[:16],
        last_step=max(steps + last, default=None),
        media_lines=lines,
        media_digest=str(lines),
        content=before.content if before else (content or ContentOptions()).differences(),
    )
    kind = DeltaKind.APPEND if blocks or media else DeltaKind.SAME
    names = dict.fromkeys(name for block in blocks for name in block.names)
    usual: dict[str, Any] = {
        "kind": DeltaKind.NEW if before is None else kind,
        "after": after,
        "before": before,
        "blocks": tuple(blocks),
        "media": tuple(media),
        "metrics": tuple(names),
    }
    return Delta(run=run, **(usual | fields))


def block_of(rows: Sequence[Mapping[str, float]], *, first_row: int = 0) -> Block:
    """Return a block of rows that map `step` and metrics."""
    names = dict.fromkeys(name for row in rows for name in row if name != "step")
    columns = {name: [row.get(name) for row in rows] for name in names}
    return make_block([int(row["step"]) for row in rows], columns, first_row=first_row)


def delta_of(run: Run, rows: Sequence[Mapping[str, float]], *, before: Cursor | None = None, **fields: Any) -> Delta:
    """Return the delta of these rows after `before`."""
    blocks = [block_of(rows, first_row=before.rows if before else 0)] if rows else []
    return make_delta(run, **{"blocks": blocks, "before": before} | fields)


def file_of(path: Path) -> RunFile:
    """Return a file of a run directory as the reader describes it."""
    found = path.stat()
    return RunFile(path=path.resolve(), size=found.st_size, mtime_ns=found.st_mtime_ns)


def notices_of(report: RunReport) -> list[Notice]:
    """Return the notices that the report of a run names, one by one."""
    return [Notice(NoticeKind(entry.kind), one.what, one.detail) for entry in report.notices for one in entry.examples]

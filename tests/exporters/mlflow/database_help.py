"""Make points for the database writer's tests, and read MLflow's tables row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import sqlalchemy as sa

from bridge.exporters.mlflow.rows import KeyRows
from bridge.exporters.mlflow.runs import FoundRun, RunRow, RunUpdate, new_run_id
from bridge.exporters.mlflow.write_db import Database

START_MS = 1775822400000

FACTS = RunRow(status="RUNNING", name="a run", start=START_MS, end=None)
NEW = FoundRun("", "0", "RUNNING", deleted=False, start=START_MS, end=None, tags={"mlflow.runName": "a run"})
"""A run that does not exist yet. Its id is that of the write that creates it, or MLflow's own."""


def wide_rows(metrics: int, count: int, *, start: int = 0) -> list[KeyRows]:
    """Return rows of `metrics` metrics named m0, m1, ... at `count` steps from `start`, ten steps a second."""
    step = np.arange(start, start + count, dtype=np.int64)
    is_nan = np.zeros(count, dtype=np.bool_)
    chance = np.random.default_rng(start)
    return [
        KeyRows(f"m{number}", START_MS + 100 * step, step, chance.random(count), is_nan) for number in range(metrics)
    ]


def open_database(uri: str) -> Database:
    """Return the database writer on `uri`, which must have a known schema."""
    notes: list[str] = []
    database = Database.open(uri, note=notes.append)
    assert database is not None, notes
    return database


def make_run(database: Database, identity: str = "uid-1", *, cursor: str = "c0", **changes: Any) -> str:
    """Make a run of `identity` with `cursor` and `changes`, and return its id."""
    run_uuid = new_run_id("0", identity)
    tags = {"mlflow.bridge.uid": identity, "mlflow.bridge.cursor": cursor} | changes.pop("tags", {})
    database.write(run_uuid, RunUpdate(expected_cursor=None, create=NEW, row=FACTS, tags=tags, **changes))
    return run_uuid


def table(uri: str, name: str, run_uuid: str) -> list[dict[str, Any]]:
    """Return the rows of one table of one run, without the run's id, in a fixed order."""
    engine = sa.create_engine(uri)
    try:
        with engine.connect() as connection:
            found = connection.execute(sa.text(f"SELECT * FROM {name} WHERE run_uuid = :run"), {"run": run_uuid})
            rows = [{key: value for key, value in row._mapping.items() if key != "run_uuid"} for row in found]
    finally:
        engine.dispose()
    return sorted(rows, key=lambda row: tuple(repr(value) for _, value in sorted(row.items())))

"""Several simultaneous exports into one database end with one run for each run directory."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bridge.exporters.mlflow.facts import Tag
from bridge.options import ContentOptions
from tests.exporters.mlflow.by_hand import delta_of, run_of
from tests.exporters.mlflow.conftest import Store

if TYPE_CHECKING:
    from bridge.model import Run

ROWS = [{"step": step, "loss": 1.0 / (step + 1)} for step in range(300)]


@pytest.mark.parametrize("exports", [4])
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_every_run_directory_has_one_run_with_every_point_once(
    kind: str, exports: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Exports in different orders all succeed and leave every point once."""
    store = Store(request.getfixturevalue("sqlite_uri" if kind == "sqlite" else "postgres_uri"))
    store.client.create_experiment("trials", artifact_location=tmp_path.as_uri())
    runs = [run_of(Path(f"/runs/r{number}"), params={"a": number}, tags=("x:y",)) for number in range(4)]
    together = threading.Barrier(exports)

    def export(number: int) -> None:
        together.wait()
        for place in range(4):
            _export_what_is_left(store, runs[(place + number) % 4])

    with ThreadPoolExecutor(exports) as pool:
        list(pool.map(export, range(exports)))
    found = store.runs()
    assert sorted(run.data.tags[Tag.UID] for run in found) == ["uid-r0", "uid-r1", "uid-r2", "uid-r3"]
    for run in found:
        assert [point[:2] for point in store.points("loss", run.info.run_id)] == [(r["step"], r["loss"]) for r in ROWS]
        assert (run.info.status, len(run.data.params)) == ("FINISHED", 1)


def _export_what_is_left(store: Store, run: Run) -> None:
    with store.exporter() as exporter:
        cursor = exporter.cursors([run])[run.identity].cursor
        rest = ROWS[cursor.rows if cursor is not None else 0 :]
        exporter.open(run, ContentOptions()).apply(delta_of(run, rest, before=cursor))


def test_who_comes_second_goes_on_from_what_the_first_has_done(store: Store) -> None:
    """Of two exports that start from one state the second applies its delta on top, or finds it applied."""
    run = run_of()
    store.export(run, ROWS[:100])
    with store.exporter() as one, store.exporter() as other:
        before = [exporter.cursors([run])[run.identity].cursor for exporter in (one, other)]
        one.open(run, ContentOptions()).apply(delta_of(run, ROWS[100:200], before=before[0]))
        applied = other.open(run, ContentOptions()).apply(delta_of(run, ROWS[100:200], before=before[1]))
        assert applied.notes == ("another export brought this run up to date meanwhile",)
        other.close()
        late = delta_of(run, ROWS[100:300], before=before[1])
        other.open(run, ContentOptions()).apply(late)
    assert [point[0] for point in store.points("loss")] == list(range(300))
    cursor = store.known(run).cursor
    assert cursor is not None
    assert cursor.rows == 300

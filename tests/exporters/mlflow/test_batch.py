"""Several new runs in one transaction of a database: all or nothing, and one that cannot be written costs no other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from bridge.errors import TargetRefusedError
from bridge.exporters.contract import find_exporter
from bridge.exporters.mlflow import write_db
from bridge.exporters.mlflow.exporter import MlflowExporter
from bridge.exporters.mlflow.write_db import Database, RunUpdate
from bridge.sync.export import export_runs
from bridge.sync.verify import verify_runs
from tests.exporters.mlflow.conftest import Store
from tests.run_dirs import make_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

RUNS = 5


@pytest.fixture(params=["sqlite", "postgresql"])
def uri(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("sqlite_uri" if request.param == "sqlite" else "postgres_uri"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(RUNS):
        rows = [{"step": step, "loss": 1 / (step + 1)} for step in range(10)]
        make_run(tmp_path / "runs" / f"job-{number}", rows, hparams={"lr": 0.1}, tags=["sweep:s"] if number > 2 else [])
    return tmp_path / "runs"


@pytest.fixture
def transactions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many runs each transaction wrote."""
    counts: list[int] = []
    write = Database.write_together

    def counted(self: Database, updates: Sequence[tuple[str, RunUpdate]]) -> None:
        counts.append(len(updates))
        write(self, updates)

    monkeypatch.setattr(Database, "write_together", counted)
    return counts


def exporter(uri: str) -> MlflowExporter:
    made = find_exporter("mlflow")(tracking_uri=uri, experiment="batch")
    assert isinstance(made, MlflowExporter)
    return made


def verdicts(root: Path, uri: str) -> list[str]:
    return [str(check.verdict) for check in verify_runs([root], exporter(uri)).runs]


def test_new_runs_share_transactions(uri: str, root: Path, transactions: list[int]) -> None:
    """New runs are written together; what must be read or created in between comes after those that wait."""
    report = export_runs([root], exporter(uri))
    assert [line.points for line in report.runs] == [10] * RUNS
    assert transactions == [3, 1, 2, 1]  # three runs, the sweep's parent, its two children, its summary
    assert verdicts(root, uri) == ["="] * RUNS


def test_the_first_runs_of_a_new_file_share_them_too(tmp_path: Path, root: Path, transactions: list[int]) -> None:
    """A SQLite file that the export itself creates is no exception."""
    export_runs([root], exporter(f"sqlite:///{tmp_path}/new.db"))
    assert transactions == [3, 1, 2, 1]


def test_a_transaction_has_no_more_points_than_a_delta(
    uri: str, root: Path, transactions: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other programs wait for one transaction at most, so many points are written in several."""
    monkeypatch.setattr(write_db, "_POINTS_TOGETHER", 20)
    export_runs([root], exporter(uri))
    assert transactions == [2, 1, 1, 2, 1]


def test_a_run_that_is_refused_costs_no_other(uri: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the database refuses one of several runs, the others are written, and that one alone has failed."""
    write = Database.write_together

    def refusing(self: Database, updates: Sequence[tuple[str, RunUpdate]]) -> None:
        if any(update.row is not None and update.row.name == "job-1" for _, update in updates):
            raise TargetRefusedError("no")
        write(self, updates)

    monkeypatch.setattr(Database, "write_together", refusing)
    report = export_runs([root], exporter(uri))
    assert [line.reason for line in report.runs if line.failed] == ["no"]
    names = sorted(run.info.run_name for run in Store(uri, experiment="batch").runs())
    assert names == ["job-0", "job-2", "job-3", "job-4", "s"]


def test_another_export_is_faster_with_one_of_them(uri: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that somebody else brings in at the same moment is no error, and it is there once."""
    write = Database.write_together
    others = [True]

    def late(self: Database, updates: Sequence[tuple[str, RunUpdate]]) -> None:
        if others:
            others.clear()
            export_runs([root / "job-1"], exporter(uri))
        write(self, updates)

    monkeypatch.setattr(Database, "write_together", late)
    report = export_runs([root], exporter(uri))
    assert [line.reason for line in report.runs if line.failed] == []
    assert verdicts(root, uri) == ["="] * RUNS
    with sa.create_engine(uri).connect() as connection:
        found = connection.execute(sa.text("SELECT count(*) FROM runs WHERE name = 'job-1'")).scalar()
    assert found == 1

"""A database that does not belong to the tracking URI is refused before anything is written to it."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from bridge.errors import TargetRefusedError, UsageError
from bridge.exporters.mlflow import MlflowExporter
from bridge.exporters.mlflow.store import ExperimentName, MlflowStore
from tests.exporters.mlflow.by_hand import run_of
from tests.exporters.mlflow.conftest import Store

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.mlflow_server import MlflowServer

ROWS = [{"step": step, "loss": 1.0 / (step + 1)} for step in range(3)]
TABLES = ("experiments", "runs", "tags", "params", "metrics", "latest_metrics")


def content(uri: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows of the tables that an export writes."""
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
        return {table: sorted(connection.execute(f"SELECT * FROM {table}"), key=repr) for table in TABLES}


@pytest.fixture
def other(store: Store, tmp_path: Path) -> str:
    """Make another MLflow database, a millisecond younger."""
    file = shutil.copy(store.uri.removeprefix("sqlite:///"), tmp_path / "other.db")
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE experiments SET creation_time = creation_time + 1")
    return f"sqlite:///{file}"


def test_another_mlflows_database_is_refused(store: Store, other: str) -> None:
    """The error names both databases and a remedy, and neither gets a row."""
    store.options = {"database_uri": other}
    before = content(store.uri), content(other)
    with pytest.raises(TargetRefusedError) as raised:
        store.export(run_of(), ROWS)
    assert other in raised.value.message
    assert store.uri in raised.value.message
    assert "--backend-store-uri" in str(raised.value.hint)
    assert (content(store.uri), content(other)) == before


def test_a_database_without_the_servers_experiment_is_refused(
    store: Store, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    """A copy of the server's file that lacks the server's newer experiment is refused."""
    before = content(store.uri)
    through = Store(mlflow_server.uri, experiment=str(tmp_path), options={"database_uri": store.uri})
    with pytest.raises(TargetRefusedError, match="is not the database behind"):
        through.export(run_of(), ROWS)
    assert content(store.uri) == before


def test_a_database_by_another_name_is_the_same(store: Store, tmp_path: Path) -> None:
    """The content of a database decides, not its path."""
    link = tmp_path / "link.db"
    link.symlink_to(store.uri.removeprefix("sqlite:///"))
    store.options = {"database_uri": f"sqlite:///{link}"}
    store.export(run_of(), ROWS)
    assert [step for step, _, _ in store.points("loss")] == [0, 1, 2]


@pytest.mark.parametrize("uri", ["http://127.0.0.1:5000", "nonsense", "./mlruns", "ftp://host/x"])
def test_what_is_no_database_is_wrong_usage(uri: str) -> None:
    """A --database-uri that is no database is an error, not a slower path."""
    with pytest.raises(UsageError, match="is not a database"):
        MlflowExporter("http://127.0.0.1:9", "trials", database_uri=uri)


def test_a_database_that_cannot_be_written_directly_is_reported() -> None:
    """MySQL goes through the API, with a note."""
    place = MlflowStore("http://127.0.0.1:9", ExperimentName.of("trials", None), "mysql+pymysql://me@host/db")
    assert place.database is None
    assert place.take_notes() == ("Points go through MLflow's API: a mysql database cannot be written to directly.",)

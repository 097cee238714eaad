"""An address names one MLflow: the file that SQLAlchemy opens for it, or the database behind a server."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.engine import make_url

from bridge.errors import TargetRefusedError, UsageError
from bridge.exporters.mlflow import MlflowExporter
from bridge.exporters.mlflow.address import Address, sqlite_uri
from bridge.exporters.mlflow.store import ExperimentName, MlflowStore
from bridge.sync.export import Options, export_runs
from bridge.sync.verify import verify_runs
from tests.deltas import make_model_run
from tests.exporters.mlflow.conftest import Store
from tests.run_dirs import make_run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.mlflow_server import MlflowServer


@pytest.mark.parametrize("name", ["plain.db", "x y.db", "50%.db", "a%20b.db", "a?b#c.db", "ü.db"])
def test_any_file_has_a_uri(name: str, tmp_path: Path) -> None:
    """The URI of any file leads back to it."""
    file = tmp_path / name
    uri = sqlite_uri(file)
    assert make_url(uri).database == str(file)
    assert Address.of(uri).sqlite_file == file


def test_a_relative_path_may_be_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is resolved from the working directory and keeps its query, whatever characters it has."""
    here = tmp_path / "100%25 here"
    here.mkdir()
    monkeypatch.chdir(here)
    address = Address.of("sqlite:///x y%20z.db?timeout=5")
    assert address.sqlite_file == here / "x y z.db"
    assert make_url(address.uri).database == str(here / "x y z.db")
    assert address.uri.endswith("?timeout=5")


def test_an_encoded_path_is_the_file_that_is_made(tmp_path: Path) -> None:
    """`%20` is a space: the file and its artifacts are created under that name only."""
    store = Store(f"sqlite:///{tmp_path}/x y%20z.db")
    store.export(make_model_run(), [{"step": 0, "loss": 1.0}])
    assert store.points("loss") == [(0, 1.0, 1775822400000)]
    assert [path.name for path in tmp_path.iterdir() if path.name != "mlartifacts"] == ["x y z.db"]


@pytest.mark.parametrize("given", ["sqlite:///x%20y.db", None])
def test_a_dry_run_and_a_verify_make_no_database(
    given: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dry run and a verify create no SQLite file.

    This holds for a given file and for MLflow's default.
    """
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 1.0}], uid="a")
    exporter = MlflowExporter(tracking_uri=given, experiment="{parent}")
    plan = export_runs([tmp_path / "runs"], exporter, Options(dry_run=True))
    assert [(str(line.action), line.points) for line in plan.runs] == [("new", 1)]
    assert [str(line.verdict) for line in verify_runs([tmp_path / "runs"], exporter).runs] == ["+"]
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_database_behind_a_server_is_never_made(tmp_path: Path) -> None:
    """A --database-uri that names no SQLite file is an error and creates none."""
    uri = f"sqlite:///{tmp_path}/typo.db"
    with pytest.raises(TargetRefusedError, match="There is no database"):
        _ = MlflowStore("http://127.0.0.1:9", ExperimentName.of("trials", None), uri).database
    assert list(tmp_path.iterdir()) == []


def test_an_export_with_nothing_new_never_imports_mlflow(store: Store, tmp_path: Path) -> None:
    """An export with nothing new and a dry run do not import MLflow, which takes seconds."""
    make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 1.0}], uid="a")
    export_runs([tmp_path / "runs"], store.exporter())
    for option in ("-q", "--dry-run"):
        command = [
            *("export", str(tmp_path / "runs"), "--to", "mlflow", option),
            *("--tracking-uri", store.uri, "--experiment", store.experiment),
        ]
        program = (
            "import sys, atexit; atexit.register(lambda: print('mlflow' in sys.modules, file=sys.stderr)); "
            f"sys.argv = ['bridge', *{command!r}]; import bridge.__main__ as main; main.main()"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.strip()[-5:]) == (0, "False")


# ---------------------------------------------------------------------------------------------------------------------
# A database behind a server

ROWS = [{"step": step, "loss": 1.0 / (step + 1)} for step in range(3)]


def content(uri: str) -> list[str]:
    """Return all that a database holds, as statements."""
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
        return list(connection.iterdump())


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
        store.export(make_model_run(), ROWS)
    assert (other in raised.value.message, store.uri in raised.value.message) == (True, True)
    assert "--backend-store-uri" in str(raised.value.hint)
    assert (content(store.uri), content(other)) == before


def test_a_database_without_the_servers_experiment_is_refused(
    store: Store, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    """A copy of the server's file that lacks the server's newer experiment is refused."""
    before = content(store.uri)
    through = Store(mlflow_server.uri, experiment=str(tmp_path), options={"database_uri": store.uri})
    with pytest.raises(TargetRefusedError, match="is not the database behind"):
        through.export(make_model_run(), ROWS)
    assert content(store.uri) == before


def test_a_database_by_another_name_is_the_same(store: Store, tmp_path: Path) -> None:
    """The content of a database decides, not its path."""
    link = tmp_path / "link.db"
    link.symlink_to(store.uri.removeprefix("sqlite:///"))
    store.options = {"database_uri": f"sqlite:///{link}"}
    store.export(make_model_run(), ROWS)
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

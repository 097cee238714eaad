"""A SQLite address names the file that SQLAlchemy opens for it, and only a write creates it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.engine import make_url

from bridge.errors import TargetRefusedError
from bridge.exporters.mlflow import MlflowExporter
from bridge.exporters.mlflow.client import Address, sqlite_uri
from bridge.exporters.mlflow.store import ExperimentName, MlflowStore
from bridge.sync.export import Options, export_runs
from bridge.sync.verify import verify_runs
from tests.exporters.mlflow.by_hand import run_of
from tests.exporters.mlflow.conftest import Store
from tests.run_dirs import make_run

if TYPE_CHECKING:
    from pathlib import Path


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
    store.export(run_of(), [{"step": 0, "loss": 1.0}])
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

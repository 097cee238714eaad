"""Unchanged runs are not read again until their files or their target change."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from bridge.exporters.contract import find_exporter
from bridge.exporters.mlflow.address import sqlite_fingerprint
from bridge.files import cache_dir
from bridge.options import ContentOptions
from bridge.sync import select
from bridge.sync.export import Options, export_runs
from bridge.sync.select import Selection
from tests.run_dirs import make_run, write_metrics, write_sidecar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bridge.exporters.contract import Exporter
    from bridge.sync.report import Report

ROWS = [{"step": step, "loss": 1.0 / (step + 1)} for step in range(4)]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that collects the run directories that exports read."""
    found: list[str] = []
    real = select.gather

    def gather(*args: object, read: Callable[[Path], object], **options: object) -> object:
        return real(*args, read=lambda path: (found.append(path.name), read(path))[1], **options)  # type: ignore[arg-type]

    monkeypatch.setattr("bridge.sync.export.gather", gather)
    return found


@pytest.fixture(params=["tensorboard", "mlflow"])
def exporter(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Exporter:
    monkeypatch.chdir(tmp_path)
    if request.param == "tensorboard":
        return find_exporter("tensorboard")(logdir=tmp_path / "tb")
    uri = request.getfixturevalue("sqlite_uri")
    return find_exporter("mlflow")(tracking_uri=uri, experiment="unchanged")


def test_no_home_folder_is_no_reason_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a place for the cache, as in some containers, each export reads all runs."""
    make_run(tmp_path / "runs" / "a", ROWS)
    monkeypatch.setenv("BRIDGE_CACHE_DIR", "~nobody-of-this-name/cache")
    for action in ("new", "unchanged"):
        (line,) = export_runs([tmp_path / "runs"], find_exporter("tensorboard")(logdir=tmp_path / "tb")).runs
        assert line.action == action


def age(folder: Path) -> None:
    """Back-date all files below, as if time had passed; a file that is old enough keeps its time."""
    then = time.time_ns() - 10_000_000_000
    for path in (*folder.rglob("*"), folder):
        before = min(path.stat().st_mtime_ns, then)
        os.utime(path, ns=(before, before))


def settle(tmp_path: Path, exporter: Exporter) -> Path:
    """Make two runs, and export them until there is nothing to do."""
    for name in "ab":
        make_run(tmp_path / "runs" / name, ROWS)
    root = tmp_path / "runs"
    for _ in range(3):
        report = export_runs([root], exporter)
        age(tmp_path)
    assert actions(report) == {"a": "unchanged", "b": "unchanged"}
    export_runs([root], exporter)  # remembers what the files' times are now
    return root


def actions(report: Report) -> dict[str, str]:
    return {line.run_id: str(line.action) for line in report.runs}


def test_an_unchanged_run_is_not_read(tmp_path: Path, exporter: Exporter, reads: list[str]) -> None:
    """An unchanged run has its report line and address without being read, unless the export asks for more."""
    root = settle(tmp_path, exporter)
    reads.clear()
    known = export_runs([root], exporter)
    assert (actions(known), reads) == ({"a": "unchanged", "b": "unchanged"}, [])
    read = export_runs([root], exporter, Options(selection=Selection(run_ids=("*",))))
    assert [replace(line, seconds=0.0) for line in read.runs] == list(known.runs)
    given = Options(content=ContentOptions(exclude_metrics=("loss",)), given=frozenset({"exclude_metrics"}))
    for options in (given, Options(rebuild=True)):
        assert actions(export_runs([root], exporter, options)) == {"a": "rebuild", "b": "rebuild"}
    assert len(reads) == 6


def test_exports_of_other_runs_into_one_target_forget_nothing(
    tmp_path: Path, exporter: Exporter, reads: list[str]
) -> None:
    """Where each of several exports has runs of its own, all of them know what is unchanged, but for what is gone."""
    root = tmp_path / "runs"
    for name in "ab":
        make_run(root / name, ROWS)
        export_runs([root / name], exporter)
        age(tmp_path)
    for _ in range(3):
        for name in "ab":
            export_runs([root / name], exporter)
            age(tmp_path)
    reads.clear()
    for name in "ab":
        assert actions(export_runs([root / name], exporter)) == {name: "unchanged"}
    assert reads == []
    shutil.rmtree(root / "a")
    write_sidecar(root / "b", notes="new")
    assert actions(export_runs([root / "b"], exporter)) == {"b": "changed"}
    caches = [file.read_bytes() for file in (cache_dir() / "unchanged").iterdir()]
    assert not any(str(root / "a").encode() in cache for cache in caches)


def test_runs_inside_checkpoints_are_named_by_every_export(tmp_path: Path, exporter: Exporter) -> None:
    """A run that starts in the checkpoints of an unchanged run is named, by each export."""
    inner = tmp_path / "runs" / "a" / "checkpoints" / "logs" / "version_0"
    inner.mkdir(parents=True)
    root = settle(tmp_path, exporter)
    make_run(inner)
    for _ in range(3):
        assert [folder.path for folder in export_runs([root], exporter).skipped] == [str(inner)]
        age(root)


def test_the_export_that_writes_a_run_remembers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sqlite_uri: str, reads: list[str]
) -> None:
    """The second export into a SQLite MLflow reads nothing, although the database was written a moment ago.

    It does not even load MLflow.
    """
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a", ROWS)
    age(tmp_path)
    exporter = find_exporter("mlflow")(tracking_uri=sqlite_uri, experiment="unchanged")
    assert actions(export_runs([tmp_path], exporter)) == {"a": "new"}
    reads.clear()
    assert actions(export_runs([tmp_path], exporter)) == {"a": "unchanged"}
    assert reads == []
    program = (
        "import sys; from pathlib import Path; from bridge.exporters.contract import find_exporter;"
        "from bridge.sync.export import export_runs;"
        f"exporter = find_exporter('mlflow')(tracking_uri={sqlite_uri!r}, experiment='unchanged');"
        f"report = export_runs([Path({str(tmp_path)!r})], exporter);"
        "heavy = {'mlflow', 'pyarrow', 'tensorboard'} & set(sys.modules);"
        "print([str(line.action) for line in report.runs], sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "['unchanged'] []\n"


def test_each_write_into_a_sqlite_file_is_seen(tmp_path: Path) -> None:
    """Two writes differ although the file keeps its size and gets its old times back."""
    file = tmp_path / "x.db"
    found = set()
    for value in range(3):
        with contextlib.closing(sqlite3.connect(file)) as connection, connection:
            connection.execute("CREATE TABLE IF NOT EXISTS t (v)")
            connection.execute("DELETE FROM t")
            connection.execute("INSERT INTO t VALUES (?)", (value,))
        os.utime(file, (1, 1))
        found.add(sqlite_fingerprint(file))
    assert len(found) == 3
    assert None not in found
    assert sqlite_fingerprint(tmp_path / "none.db") is None


def test_a_run_that_moved_is_read(tmp_path: Path, exporter: Exporter, reads: list[str]) -> None:
    """Only a run with a file of another size or mtime is read; then its content decides."""
    root = settle(tmp_path, exporter)
    moves: dict[str, Callable[[], object]] = {
        "rows": lambda: write_metrics(root / "a", (), [[0.5, 9, 1775822500.0]], append=True),
        "sidecar": lambda: write_sidecar(root / "a", notes="new"),
        "heartbeat": (root / "a" / "heartbeat").touch,
    }
    for what, move in moves.items():
        export_runs([root], exporter)
        age(tmp_path)
        export_runs([root], exporter)
        reads.clear()
        move()
        expected = "unchanged" if what == "heartbeat" else "changed"
        assert actions(export_runs([root], exporter)) == {"a": expected, "b": "unchanged"}
        assert reads == ["a"]


def test_a_target_that_moved_is_asked(tmp_path: Path, exporter: Exporter, reads: list[str]) -> None:
    """Changes and deletions in the target are noticed."""
    root = settle(tmp_path, exporter)
    reads.clear()
    if exporter.name == "tensorboard":
        shutil.rmtree(tmp_path / "tb" / "a")
        assert actions(export_runs([root], exporter)) == {"a": "new", "b": "unchanged"}
        assert reads == ["a"]
        return
    (database,) = tmp_path.rglob("*.db")
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE runs SET lifecycle_stage = 'deleted' WHERE name = 'a'")
    assert actions(export_runs([root], exporter)) == {"a": "deleted", "b": "unchanged"}


def test_a_copy_of_an_unchanged_run_is_a_copy(tmp_path: Path, exporter: Exporter) -> None:
    """A copy with the same identity makes both directories be read."""
    root = settle(tmp_path, exporter)
    shutil.copytree(root / "a", root / "copy")
    found = {line.path for line in export_runs([root], exporter).runs if line.run_id == "a"}
    assert found == {str(root / "a"), str(root / "copy")}

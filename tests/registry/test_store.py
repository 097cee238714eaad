"""The cache can be deleted, repairs itself, never blocks work, and allows several scanners."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bridge.errors import UsageError
from bridge.registry import Registry, open_registry
from bridge.registry import store as store_module
from tests.run_dirs import make_run

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Make a tree of two runs."""
    make_run(tmp_path / "runs" / "a", hparams={"lr": 1}, summary={"acc": 0.5})
    make_run(tmp_path / "runs" / "b", tags=["x"])
    return tmp_path / "runs"


def opened(runs: Path, **how: object) -> tuple[Registry, list[str]]:
    """Return the registry and its messages."""
    said: list[str] = []
    return open_registry(runs, say=said.append, **how), said  # type: ignore[arg-type]


def upserted(registry: Registry) -> int:
    assert registry.report is not None
    return registry.report.upserted


def file_of(cache: Path) -> Path:
    (file,) = (cache / "registry").glob("*.sqlite")
    return file


def test_deleting_the_cache_is_harmless(runs: Path, cache: Path) -> None:
    """Without its cache everything is read again, without a message."""
    opened(runs)
    file_of(cache).unlink()
    registry, said = opened(runs)
    assert (upserted(registry), len(registry), said) == (2, 2, [])


def sql(file: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "garbage": lambda file: file.write_bytes(b"this is no database at all, whatever its name says" * 100),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:5000]),
    "a record": lambda file: sql(file, "UPDATE runs SET record = x'ff'"),
    "an older format": lambda file: sql(file, "DROP TABLE runs", "PRAGMA user_version = 1"),
    "a newer format": lambda file: sql(file, "DROP TABLE runs", "PRAGMA user_version = 99"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_rebuilt_and_said(runs: Path, cache: Path, damage: str) -> None:
    """A cache that is damaged or of another format is rebuilt with one message."""
    opened(runs)
    file = file_of(cache)
    DAMAGE[damage](file)
    registry, said = opened(runs)
    assert (len(registry), said) == (2, [f"The cache of runs {file} was damaged or of another format; it is rebuilt."])
    again, said = opened(runs)
    assert (upserted(again), said) == (0, [])


FOREIGN: dict[str, Callable[[Path], object]] = {
    "a text": lambda file: file.write_bytes(b"a,b\n1,2\n"),
    "a cut database": lambda file: file.write_bytes(b"SQLite format 3\x00"),
    "our mark in another file": lambda file: file.write_bytes(b"x" * 68 + b"brdg" + b"x" * 40),
    "a database": lambda file: sql(file, "CREATE TABLE runs (x)"),
    "of our version": lambda file: sql(file, "CREATE TABLE runs (x)", f"PRAGMA user_version = {store_module.FORMAT}"),
    "a pipe": os.mkfifo,
    "a device": lambda file: file.symlink_to(os.devnull),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_ours_is_refused(runs: Path, tmp_path: Path, kind: str) -> None:
    """--db never overwrites what is not a cache of runs, whatever its name."""
    file = tmp_path / "runs-0123456789abcdef.sqlite"
    FOREIGN[kind](file)
    before = file.read_bytes() if kind != "a pipe" else b""
    with pytest.raises(UsageError, match="is not a cache of runs, so it was not changed"):
        opened(runs, db_path=file)
    assert os.path.lexists(file)
    assert kind == "a pipe" or file.read_bytes() == before


def test_a_cache_that_another_scan_replaces_at_this_moment(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is gone between two looks at it is a new cache."""
    file = tmp_path / "all.sqlite"
    opened(runs, db_path=file)
    plain_open = Path.open

    def too_late(path: Path, *how: Any) -> Any:
        if path == file:
            path.unlink()
        return plain_open(path, *how)

    monkeypatch.setattr(Path, "open", too_late)
    registry, said = opened(runs, db_path=file)
    assert (upserted(registry), said) == (2, [])


def test_one_file_for_two_trees(runs: Path, tmp_path: Path) -> None:
    """One --db holds several trees, and none forgets the other's runs."""
    make_run(tmp_path / "more" / "c")
    file = tmp_path / "all.sqlite"
    opened(runs, db_path=file)
    opened(tmp_path / "more", db_path=file)
    first, said = opened(runs, db_path=file)
    second, _ = opened(tmp_path / "more", db_path=file)
    assert (sorted(run.run_id for run in first), [run.run_id for run in second], said) == (["a", "b"], ["c"], [])


def test_a_locked_cache_is_done_without(runs: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If another process holds the lock for too long, the scan continues in memory with one message."""
    opened(runs)
    make_run(runs / "c")
    monkeypatch.setattr(store_module, "LOCK_TIMEOUT_S", 0.01)
    holder = sqlite3.connect(file_of(cache), isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    registry, said = opened(runs)
    holder.close()
    assert (len(registry), said) == (
        3,
        ["The cache of runs cannot be used, so the runs are kept in memory: database is locked"],
    )


FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))"


@pytest.mark.parametrize(("before", "home"), [(FULL_DISK, {}), ("", {"HOME": "/dev/null"})], ids=["full", "homeless"])
def test_a_full_disk_and_a_missing_home_are_done_without(
    runs: Path, tmp_path: Path, before: str, home: dict[str, str]
) -> None:
    """If the disk is full, or there is no home directory, the scan continues in memory with one message."""
    program = (
        f"import sys\n{before}\n"
        "from bridge.registry import open_registry\n"
        "said = []\n"
        "print(len(open_registry(sys.argv[1], say=said.append)), len(said), said[0].partition(': ')[0])\n"
    )
    environment = {"PATH": os.environ["PATH"]} | (home or {"BRIDGE_CACHE_DIR": str(tmp_path / "full")})
    done = subprocess.run(
        [sys.executable, "-B", "-c", program, str(runs)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "2 1 The cache of runs cannot be used, so the runs are kept in memory\n"


def test_where_the_cache_lies(runs: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is in BRIDGE_CACHE_DIR, XDG_CACHE_HOME or ~/.cache, and never in the runs."""
    for variable, folder in (("XDG_CACHE_HOME", "xdg"), ("HOME", "home/.cache")):
        opened(runs)
        assert file_of(cache).exists()
        monkeypatch.delenv("BRIDGE_CACHE_DIR" if folder == "xdg" else "XDG_CACHE_HOME")
        monkeypatch.setenv(variable, str(tmp_path / folder.partition("/")[0]))
        cache = tmp_path / folder / "registry-bridge"
    opened(runs)
    assert file_of(cache).exists()
    assert sorted(path.name for path in runs.iterdir()) == ["a", "b"]


def test_no_wal(runs: Path, cache: Path) -> None:
    """The journal is no WAL, because network file systems do not support one."""
    opened(runs)
    with contextlib.closing(sqlite3.connect(file_of(cache))) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


SCANNER = """
import sys
from pathlib import Path
from bridge.registry import open_registry
said = []
for _ in range(15):
    registry = open_registry(sys.argv[1], db_path=sys.argv[2], say=said.append)
    assert len(registry) == 40, len(registry)
    for number in range(0, 40, 7):
        path = Path(sys.argv[1]) / f"run-{number}" / "sidecar.json"
        beside = path.with_name(f"beside-{sys.argv[3]}")
        beside.write_text(path.read_text())
        beside.rename(path)
print(len(said))
"""


def test_several_scanners_at_once(tmp_path: Path) -> None:
    """Four processes that scan one tree into one new cache, while sidecars change, all find every run."""
    for number in range(40):
        make_run(tmp_path / "runs" / f"run-{number}", hparams={"lr": 1}, summary={"acc": number})
    file = tmp_path / "shared.sqlite"
    command = [sys.executable, "-c", SCANNER, str(tmp_path / "runs"), str(file)]
    started = [subprocess.Popen([*command, str(which)], stdout=subprocess.PIPE, text=True) for which in range(4)]
    assert [process.communicate(timeout=60)[0] for process in started] == ["0\n"] * 4
    registry, said = opened(tmp_path / "runs", db_path=file)
    assert (len(registry), said) == (40, [])
    again, _ = opened(tmp_path / "runs", db_path=file)
    assert upserted(again) == 0

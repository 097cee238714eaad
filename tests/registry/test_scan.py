"""A scan reads what changed, counts what it finds, and leaves what a first scan would find."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bridge.errors import UsageError
from bridge.model import SkippedFolder, Status
from bridge.registry import open_registry
from bridge.registry import store as store_module
from bridge.rundir import discover, read_run
from tests.run_dirs import CREATED_S, make_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.model import Run
    from bridge.registry import Registry

    Change = Callable[[Path], object]

OLD = ["killed", "lost", "ours", "stock"]
"""The runs of the fixture."""


def counts(registry: Registry) -> tuple[int, int, int, int, int]:
    """Return (total, upserted, unchanged, invalid, orphaned)."""
    report = registry.report
    assert report is not None
    return report.total, report.upserted, report.unchanged, report.invalid, report.orphaned


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Make a tree of long-ended runs: a logger's, a killed one, a stock CSVLogger's, and one that lost its sidecar."""
    runs = tmp_path / "runs"
    rows = [{"step": 0, "acc": 0.5}]
    make_run(runs / "group" / "ours", rows, notes="old")
    make_run(runs / "killed", rows, status="running")
    for name in ("stocks/stock", "lost"):
        run = make_run(runs / name, rows)
        (run / "sidecar.json").unlink()
        (run / "heartbeat").unlink()
        (run / "hparams.yaml").write_text("lr: 0.1\n")
    for path in runs.rglob("*"):
        if "." in path.name or path.is_dir():  # an old folder is not listed again
            os.utime(path, (CREATED_S, CREATED_S))
    os.utime(runs / "killed" / "heartbeat", (CREATED_S, CREATED_S))
    return runs


def write(name: str, text: str = "") -> Change:
    return lambda runs: (runs / name).write_text(text)


def move(old: str, new: str) -> Change:
    return lambda runs: (runs / old).rename(runs / new)


def edit_notes_with_an_older_time(runs: Path) -> None:
    make_run(runs / "group" / "ours", notes="newer")
    os.utime(runs / "group/ours/sidecar.json", (1000, 1000))


def replace_sidecar_within_a_tick(runs: Path) -> None:
    """Replace it by one of the same size and time."""
    sidecar = runs / "group/ours/sidecar.json"
    beside = runs / "beside"
    beside.write_text(sidecar.read_text().replace('"old"', '"new"'))
    os.utime(beside, (CREATED_S, CREATED_S))
    beside.rename(sidecar)


def hide_behind_a_link(runs: Path) -> None:
    (runs / "group").rename(runs.parent / "far")
    (runs / "group").symlink_to(runs.parent / "far")


def put_a_file_in_place_of_a_run(runs: Path) -> None:
    shutil.rmtree(runs / "group/ours")
    (runs / "group/ours").touch()


STATS = '{"rows": 1, "metrics": {"acc": {"last": 7, "max": 9, "count": 1}}}'

CHANGES: dict[str, tuple[Change, list[str], tuple[int, int, int, int, int]]] = {
    "nothing": (lambda runs: None, OLD, (4, 0, 4, 0, 0)),
    "a sidecar gets an older time": (edit_notes_with_an_older_time, OLD, (4, 1, 3, 0, 0)),
    "a sidecar is replaced within one tick": (replace_sidecar_within_a_tick, OLD, (4, 1, 3, 0, 0)),
    "a summary is new": (write("group/ours/summary.json", STATS), OLD, (4, 1, 3, 0, 0)),
    "hparams.yaml changes": (write("group/ours/hparams.yaml", "lr: 0.25\n"), OLD, (4, 1, 3, 0, 0)),
    "a stock run grows": (write("stocks/stock/metrics.csv", "acc,step\n1,0\n2,1\n"), OLD, (4, 1, 3, 0, 0)),
    "a heart beats again": (lambda runs: (runs / "killed/heartbeat").touch(), OLD, (4, 1, 3, 0, 0)),
    "a heart beats beside a lost sidecar": (write("lost/heartbeat"), OLD, (4, 1, 3, 0, 0)),
    "a summary beside a lost sidecar": (write("lost/summary.json", STATS), OLD, (4, 1, 3, 0, 0)),
    "a stock run loses its hparams": (lambda runs: (runs / "stocks/stock/hparams.yaml").unlink(), OLD, (4, 1, 3, 0, 0)),
    "a stock run loses its step column": (
        write("stocks/stock/metrics.csv", "acc\n1\n"), ["killed", "lost", "ours"], (3, 0, 3, 0, 1)
    ),
    "a run becomes a target": (write("group/ours/.bridge-target"), ["killed", "lost", "stock"], (3, 0, 3, 0, 1)),
    "a folder of runs becomes a target": (write("group/.bridge-target"), ["killed", "lost", "stock"], (3, 0, 3, 0, 1)),
    "a folder of runs becomes a run": (lambda runs: make_run(runs / "group"), ["group", *OLD], (5, 1, 4, 0, 0)),
    "a run holds another": (lambda runs: make_run(runs / "group/ours/a"), ["a", *OLD], (5, 1, 4, 0, 0)),
    "a stock run holds another": (lambda runs: make_run(runs / "stocks/stock/a"), ["a", *OLD], (5, 1, 4, 0, 0)),
    "a run loses its sidecar": (lambda runs: (runs / "group/ours/sidecar.json").unlink(), OLD, (4, 1, 3, 0, 0)),
    "a run gets a sidecar": (lambda runs: make_run(runs / "stocks/stock"), OLD, (4, 1, 3, 0, 0)),
    "a folder is renamed": (move("group", "other"), OLD, (4, 1, 3, 0, 1)),
    "a folder is hidden": (move("group", ".group"), ["killed", "lost", "stock"], (3, 0, 3, 0, 1)),
    "a folder is never entered": (move("group", "mlruns"), ["killed", "lost", "stock"], (3, 0, 3, 0, 1)),
    "a folder is gone": (lambda runs: shutil.rmtree(runs / "group"), ["killed", "lost", "stock"], (3, 0, 3, 0, 1)),
    "a file takes a run's place": (put_a_file_in_place_of_a_run, ["killed", "lost", "stock"], (3, 0, 3, 0, 1)),
    "a run lies behind a link now": (hide_behind_a_link, OLD, (4, 1, 3, 0, 1)),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_scan_after_a_change_finds_what_a_first_scan_finds(runs: Path, change: str) -> None:
    """After any change the records are those of a first scan and of the runs that an export finds.

    After the change is undone they are those from before.
    """
    before = open_registry(runs)
    assert counts(before) == (4, 4, 0, 0, 0)
    shutil.copytree(runs, runs.parent / "kept", symlinks=True)
    act, names, expected = CHANGES[change]
    act(runs)
    after = open_registry(runs)
    assert (sorted(run.name for run in after), counts(after)) == (names, expected)
    assert list(after) == list(open_registry(runs, db_path=runs.parent / "first.sqlite"))
    assert {run.run_dir for run in after} == {str(path) for path in discover([runs])}
    assert (list(after) == list(before)) == (change == "nothing")
    assert counts(open_registry(runs))[-1] == 0
    shutil.rmtree(runs)
    shutil.move(runs.parent / "kept", runs)
    assert list(open_registry(runs)) == list(before)


def test_a_run_directory_is_listed_again_only_if_something_was_made_in_it(runs: Path) -> None:
    """Once a run directory has been quiet for some seconds, a scan with nothing new lists and opens nothing in it."""
    looks: list[str] = []

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event in ("os.scandir", "open") and str(args[0]).startswith(f"{runs}/"):
            looks.append(str(args[0]).removeprefix(f"{runs}/"))

    sys.addaudithook(hook)

    def listed_and_opened() -> list[str]:
        looks.clear()
        open_registry(runs)
        return looks.copy()

    listed_and_opened()
    assert listed_and_opened() == ["group", "stocks"]
    make_run(runs / "killed/later")
    assert len(open_registry(runs)) == 5
    os.utime(runs / "killed", (CREATED_S, CREATED_S))
    shutil.rmtree(runs / "killed/later")
    os.utime(runs / "killed", (CREATED_S + 1, CREATED_S + 1))
    assert listed_and_opened() == ["group", "killed", "stocks"]
    assert listed_and_opened() == ["group", "stocks"]


def test_a_heartbeat_a_moment_younger_than_its_time_is_no_new_one(tmp_path: Path) -> None:
    """The file server's clock may be ahead of the writer's. A killed run is not read again at each scan for that."""
    run = make_run(tmp_path / "runs" / "a", status="running", sessions=[{"rows": 0}])
    (run / "heartbeat").write_text(f"{CREATED_S:.6f}\n")
    os.utime(run / "heartbeat", (CREATED_S + 0.02, CREATED_S + 0.02))
    os.utime(run / "metrics.csv", (CREATED_S, CREATED_S))
    assert [counts(open_registry(tmp_path / "runs"))[1] for _ in range(2)] == [1, 0]


def test_what_comes_into_a_folder_with_an_old_time_is_found(runs: Path) -> None:
    """A sidecar is found although the folder keeps its time, as `rsync -a` does, and its size."""
    run = runs / "lost"
    (run / "sidecar_json").write_text((runs / "killed/sidecar.json").read_text())
    os.utime(run, (CREATED_S, CREATED_S))
    assert [run.name for run in open_registry(runs)].count("lost") == 1
    (run / "sidecar_json").rename(run / "sidecar.json")
    os.utime(run, (CREATED_S, CREATED_S))
    assert counts(open_registry(runs)) == (4, 1, 3, 0, 0)


def test_links_in_a_folder_that_is_no_run_any_more_lead_to_runs(runs: Path) -> None:
    """A metrics.csv that is rewritten in place makes no run any more; so a link beside it is followed."""
    make_run(runs.parent / "far/inner")
    (runs / "lost/far").symlink_to(runs.parent / "far")
    os.utime(runs / "lost", (CREATED_S, CREATED_S))
    assert [len(open_registry(runs)) for _ in range(2)] == [4, 4]
    (runs / "lost/metrics.csv").write_text("acc\n1\n")
    assert sorted(run.name for run in open_registry(runs)) == ["inner", "killed", "ours", "stock"]


def test_full_reads_all(runs: Path) -> None:
    """--full reads every run again and forgets what is gone."""
    open_registry(runs)
    shutil.rmtree(runs / "group")
    assert counts(open_registry(runs, full=True)) == (3, 3, 0, 0, 1)
    assert len(open_registry(runs)) == 3


def test_invalid_runs_are_counted_named_and_keep_their_last_record(runs: Path) -> None:
    """An unreadable sidecar keeps the last record and is tried again at every scan."""
    open_registry(runs)
    (runs / "group/ours/sidecar.json").write_text('{"run_id": "b", ')
    for _ in range(2):
        registry = open_registry(runs)
        assert (counts(registry), registry["ours"].notes) == ((4, 0, 3, 1, 0), "old")
        assert registry.report is not None
        ((path, reason),) = registry.report.problems
        assert path == str(runs / "group/ours")
        assert reason.startswith(f"{path}/sidecar.json cannot be read: it is not JSON")


def test_liveness_is_refreshed_without_a_new_sidecar(tmp_path: Path) -> None:
    """A run is killed at the first scan after its heartbeat stops, by the timeout of that scan, and running later."""
    runs = tmp_path / "runs"
    run = make_run(runs / "a", status="running")
    assert open_registry(runs)["a"].status is Status.RUNNING
    old = time.time() - 600
    for name in ("heartbeat", "metrics.csv"):
        os.utime(run / name, (old, old))
    dead = open_registry(runs)["a"]
    assert (dead.status, dead.end, dead.alive) == (Status.KILLED, pytest.approx(old), False)
    shown = [open_registry(runs, heartbeat_timeout=limit)["a"].status for limit in (3600, 180)]
    assert shown == [Status.RUNNING, Status.KILLED]
    (run / "heartbeat").touch()
    assert open_registry(runs)["a"].status is Status.RUNNING


def test_a_slow_file_system_is_read_by_several_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a look at a run takes long, several are read at once, with the same result."""
    monkeypatch.setattr(store_module, "_SLOW_S", 0.0)
    monkeypatch.setattr(store_module, "_SAMPLE", 1)
    for number in range(9):
        make_run(tmp_path / "runs" / f"{number}", status="running")
    together = threading.Barrier(4)

    def read(path: Path, **how: Any) -> Run:
        if path.name != "0":
            together.wait(60)
        return read_run(path, **how)

    monkeypatch.setattr(store_module, "read_run", read)
    registry = open_registry(tmp_path / "runs", statistics=False)
    assert counts(registry) == (9, 9, 0, 0, 0)
    assert sorted(record.run_id for record in registry) == list("012345678")


@pytest.mark.parametrize("there", [".", "logs", "logs/version_0"])
def test_runs_inside_checkpoints_are_named_by_every_scan(tmp_path: Path, there: str) -> None:
    """A run in another run's checkpoints is named each time, also if it came after the outer one was read."""
    outer = make_run(tmp_path / "runs" / "a")
    (outer / "checkpoints" / there).mkdir(parents=True)
    assert open_registry(tmp_path / "runs").report.skipped == ()  # type: ignore[union-attr]
    assert counts(open_registry(tmp_path / "runs")) == (1, 0, 1, 0, 0)
    inner = make_run(outer / "checkpoints" / ("version_0" if there == "." else there))
    reason = f"is in the checkpoints of the run {outer}; to read it, give its path"
    for _ in range(2):
        report = open_registry(tmp_path / "runs").report
        assert report is not None
        assert report.skipped == (SkippedFolder(str(inner), reason),)


def test_ttl(runs: Path) -> None:
    """A scan younger than scan_ttl_s is enough."""
    open_registry(runs)
    make_run(runs / "b")
    assert [len(open_registry(runs, scan_ttl_s=seconds)) for seconds in (600, 0)] == [4, 5]


def test_a_root_that_is_a_run_needs_no_cache(tmp_path: Path, cache: Path) -> None:
    """A single run directory is read directly, without a cache file."""
    registry = open_registry(make_run(tmp_path / "a"))
    assert ([run.run_id for run in registry], list(cache.glob("registry/*"))) == (["a"], [])


def test_the_root_may_be_a_link(runs: Path, tmp_path: Path, cache: Path) -> None:
    """The cache belongs to the real path of a linked root."""
    (tmp_path / "link").symlink_to(runs)
    open_registry(runs)
    assert counts(open_registry(tmp_path / "link")) == (4, 0, 4, 0, 0)
    assert len(list(cache.glob("registry/*.sqlite"))) == 1


def test_a_root_that_is_no_directory(tmp_path: Path) -> None:
    """A missing root is a usage error, and forgets no runs."""
    with pytest.raises(UsageError, match="missing is not a directory"):
        open_registry(tmp_path / "missing")


def test_odd_values_are_stored(tmp_path: Path) -> None:
    """Folder names that are not UTF-8, lone surrogates in a sidecar, and long whole numbers come back as they are."""
    path = os.fsdecode(os.fsencode(tmp_path / "runs") + b"/caf\xe9")
    make_run(Path(path), run_id="r", notes="\ud800x", hparams={"seed": 2**100})
    first, second = open_registry(tmp_path / "runs"), open_registry(tmp_path / "runs")
    assert first["r"].run_dir == second["r"].run_dir == path
    assert first["r"].hparams == second["r"].hparams == {"seed": 2**100}
    assert counts(second) == (1, 0, 1, 0, 0)


def test_times_of_a_record(tmp_path: Path) -> None:
    """A record has the run's times as seconds and as ISO text."""
    run = open_registry(make_run(tmp_path / "a"))["a"]
    assert (run.start, run.created_at) == (CREATED_S, "2026-04-10T12:00:00+00:00")
    assert (run.ended_at, run.duration) == ("2026-04-10T13:00:00+00:00", 3600.0)

"""The scan reads what changed and counts what it finds."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bridge.errors import UsageError
from bridge.model import SkippedFolder, Status
from bridge.registry import open_registry
from bridge.registry import store as store_module
from bridge.rundir import read_run
from tests.run_dirs import CREATED_S, make_run

if TYPE_CHECKING:
    from bridge.model import Run
    from bridge.registry import ScanReport


def counts(report: ScanReport | None) -> tuple[int, int, int, int, int]:
    """Return (total, upserted, unchanged, invalid, orphaned)."""
    assert report is not None
    return report.total, report.upserted, report.unchanged, report.invalid, report.orphaned


def test_first_and_second_scan(tmp_path: Path) -> None:
    """The first scan reads all runs, the second none, and both have the same records."""
    runs = tmp_path / "runs"
    make_run(runs / "a")
    make_run(runs / "deep" / "er" / "b", status="failed")
    first, second = open_registry(runs), open_registry(runs)
    assert (counts(first.report), counts(second.report)) == ((2, 2, 0, 0, 0), (2, 0, 2, 0, 0))
    assert list(first) == list(second)
    assert {run.run_id: str(run.status) for run in second} == {"a": "completed", "b": "failed"}


def test_a_changed_sidecar_is_read_again_also_with_an_older_time(tmp_path: Path) -> None:
    """A sidecar is read again if its mtime differs, even if it is older, as of a restored copy."""
    run = make_run(tmp_path / "runs" / "a", notes="before")
    open_registry(tmp_path / "runs")
    make_run(run, notes="after!")
    os.utime(run / "sidecar.json", (1000, 1000))
    again = open_registry(tmp_path / "runs")
    assert (counts(again.report), again["a"].notes) == ((1, 1, 0, 0, 0), "after!")


def test_a_sidecar_replaced_within_one_tick_is_read_again(tmp_path: Path) -> None:
    """A replaced file is read again even if size and mtime are the same."""
    run = make_run(tmp_path / "runs" / "a", notes="old")
    open_registry(tmp_path / "runs")
    stat = (run / "sidecar.json").stat()
    text = (run / "sidecar.json").read_text().replace('"old"', '"new"')
    (run / "beside").write_text(text)
    os.utime(run / "beside", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (run / "beside").rename(run / "sidecar.json")
    assert open_registry(tmp_path / "runs")["a"].notes == "new"


def test_a_new_summary_is_read(tmp_path: Path) -> None:
    """The best values follow summary.json even if the sidecar is unchanged."""
    run = make_run(tmp_path / "runs" / "a", hparams={"lr": 1}, summary={"acc": 0.5})
    open_registry(tmp_path / "runs")
    (run / "summary.json").write_text(json.dumps({"rows": 0, "metrics": {"acc": {"last": 0.5, "max": 0.9}}}))
    assert open_registry(tmp_path / "runs")["a"].metric("acc", "max") == 0.9


def test_a_run_that_is_gone_is_counted_once_and_forgotten(tmp_path: Path) -> None:
    """A run without its directory is counted by the scan that misses it, and read anew when it returns."""
    runs = tmp_path / "runs"
    make_run(runs / "a")
    make_run(runs / "b")
    open_registry(runs)
    (runs / "b").rename(tmp_path / "aside")
    gone = open_registry(runs)
    assert (counts(gone.report), [run.run_id for run in gone]) == ((1, 0, 1, 0, 1), ["a"])
    assert counts(open_registry(runs).report) == (1, 0, 1, 0, 0)
    (tmp_path / "aside").rename(runs / "b")
    back = open_registry(runs)
    assert (counts(back.report), sorted(run.run_id for run in back)) == ((2, 1, 1, 0, 0), ["a", "b"])


def test_full_reads_all(tmp_path: Path) -> None:
    """--full scans from scratch."""
    make_run(tmp_path / "runs" / "a")
    open_registry(tmp_path / "runs")
    assert counts(open_registry(tmp_path / "runs", full=True).report) == (1, 1, 0, 0, 0)


def test_invalid_runs_are_counted_named_and_keep_their_last_record(tmp_path: Path) -> None:
    """An unreadable sidecar keeps the last record and is tried again at every scan."""
    runs = tmp_path / "runs"
    make_run(runs / "a")
    bad = make_run(runs / "b", notes="good once")
    open_registry(runs)
    (bad / "sidecar.json").write_text('{"run_id": "b", ')
    for _ in range(2):
        registry = open_registry(runs)
        assert counts(registry.report) == (2, 0, 1, 1, 0)
        assert registry.report is not None
        ((path, reason),) = registry.report.problems
        assert path == str(bad)
        assert reason.startswith(f"{bad}/sidecar.json cannot be read: it is not JSON")
        assert registry["b"].notes == "good once"


def test_liveness_is_refreshed_without_a_new_sidecar(tmp_path: Path) -> None:
    """A run is killed at the first scan after its heartbeat stops, and running when it beats again."""
    runs = tmp_path / "runs"
    run = make_run(runs / "a", status="running")
    assert open_registry(runs)["a"].status is Status.RUNNING
    old = time.time() - 3600
    for name in ("heartbeat", "metrics.csv"):
        os.utime(run / name, (old, old))
    dead = open_registry(runs)["a"]
    assert (dead.status, dead.end, dead.alive) == (Status.KILLED, pytest.approx(old), False)
    (run / "heartbeat").touch()
    assert open_registry(runs)["a"].status is Status.RUNNING


def test_a_dead_run_is_not_read_again(tmp_path: Path) -> None:
    """A killed run without new files costs only a stat."""
    run = make_run(tmp_path / "runs" / "a", status="running")
    old = time.time() - 3600
    for name in ("heartbeat", "metrics.csv"):
        os.utime(run / name, (old, old))
    open_registry(tmp_path / "runs")
    assert counts(open_registry(tmp_path / "runs").report) == (1, 0, 1, 0, 0)


def test_a_slow_file_system_is_read_by_several_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a look at a run takes long, several are read at once, with the same result."""
    monkeypatch.setattr(store_module, "_SLOW_S", 0.0)
    monkeypatch.setattr(store_module, "_SAMPLE", 1)
    for number in range(9):
        make_run(tmp_path / f"{number}", status="running")
    together = threading.Barrier(4)

    def read(path: Path, **how: Any) -> Run:
        if path.name != "0":
            together.wait(60)
        return read_run(path, **how)

    monkeypatch.setattr(store_module, "read_run", read)

    store = store_module.Store.open(":memory:")
    assert counts(store_module.scan(str(tmp_path), store)) == (9, 9, 0, 0, 0)
    assert sorted(record.run_id for record in store.records(str(tmp_path))) == list("012345678")


@pytest.mark.parametrize("there", [".", "logs", "logs/version_0"])
def test_runs_inside_checkpoints_are_named_by_every_scan(tmp_path: Path, there: str) -> None:
    """A run in another run's checkpoints is named each time, also if it came after the outer one was read."""
    outer = make_run(tmp_path / "runs" / "a")
    (outer / "checkpoints" / there).mkdir(parents=True)
    assert open_registry(tmp_path / "runs").report.skipped == ()  # type: ignore[union-attr]
    assert counts(open_registry(tmp_path / "runs").report) == (1, 0, 1, 0, 0)
    inner = make_run(outer / "checkpoints" / ("version_0" if there == "." else there))
    for _ in range(2):
        report = open_registry(tmp_path / "runs").report
        assert report is not None
        reason = f"is in the checkpoints of the run {outer}; to read it, give its path"
        assert report.skipped == (SkippedFolder(str(inner), reason),)


@pytest.mark.parametrize(
    ("name", "text"), [("heartbeat", ""), ("summary.json", '{"rows": 1, "metrics": {"acc": {"last": 7, "count": 1}}}')]
)
def test_files_beside_a_lost_sidecar_are_followed(tmp_path: Path, name: str, text: str) -> None:
    """A heartbeat or a summary of a run without a sidecar changes what a scan finds, as it changes what is read."""
    run = make_run(tmp_path / "runs" / "a", [{"step": 0, "acc": 0.5}])
    for gone in ("sidecar.json", "heartbeat"):
        (run / gone).unlink()
    os.utime(run / "metrics.csv", (CREATED_S, CREATED_S))
    before = open_registry(tmp_path / "runs")["a"]
    (run / name).write_text(text)
    after = open_registry(tmp_path / "runs")["a"]
    assert after != before
    assert after == open_registry(tmp_path / "runs", full=True)["a"]


def test_the_heartbeat_timeout_counts_at_once(tmp_path: Path) -> None:
    """Another --heartbeat-timeout changes statuses without changes on disk."""
    run = make_run(tmp_path / "runs" / "a", status="running")
    old = time.time() - 600
    for name in ("heartbeat", "metrics.csv"):
        os.utime(run / name, (old, old))
    shown = [open_registry(tmp_path / "runs", heartbeat_timeout=limit)["a"].status for limit in (180, 3600, 180)]
    assert shown == [Status.KILLED, Status.RUNNING, Status.KILLED]


def test_stock_csv_logger_runs_are_found_and_followed(tmp_path: Path) -> None:
    """A run without a sidecar is known by its path, and read again when metrics.csv grows."""
    run = tmp_path / "runs" / "version_0"
    run.mkdir(parents=True)
    (run / "hparams.yaml").write_text("lr: 0.1\n")
    (run / "metrics.csv").write_text("loss,step\r\n0.5,0\r\n")
    first = open_registry(tmp_path / "runs")["version_0"]
    assert (first.identity, dict(first.hparams)) == (str(run), {"lr": 0.1})
    assert (first.metric("loss"), first.metric("loss", "max")) == (0.5, 0.5)
    with (run / "metrics.csv").open("a", newline="") as file:
        file.write("0.75,1\r\n")
    grown = open_registry(tmp_path / "runs")
    assert grown.report is not None
    assert grown.report.upserted == 1
    assert (grown["version_0"].metric("loss"), grown["version_0"].metric("loss", "min")) == (0.75, 0.5)


def test_ttl(tmp_path: Path) -> None:
    """A scan younger than scan_ttl_s is enough."""
    runs = tmp_path / "runs"
    make_run(runs / "a")
    open_registry(runs)
    make_run(runs / "b")
    assert [len(open_registry(runs, scan_ttl_s=seconds)) for seconds in (600, 0)] == [1, 2]


def test_a_root_that_is_a_run_needs_no_cache(tmp_path: Path, cache: Path) -> None:
    """A single run directory is read directly, without a cache file."""
    registry = open_registry(make_run(tmp_path / "a"))
    assert ([run.run_id for run in registry], list(cache.glob("registry/*"))) == (["a"], [])


def test_the_root_may_be_a_link(tmp_path: Path, cache: Path) -> None:
    """The cache belongs to the real path of a linked root."""
    make_run(tmp_path / "runs" / "a")
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    open_registry(tmp_path / "runs")
    assert counts(open_registry(tmp_path / "link").report) == (1, 0, 1, 0, 0)
    assert len(list(cache.glob("registry/*.sqlite"))) == 1


def test_a_root_that_is_no_directory(tmp_path: Path) -> None:
    """A missing root is a usage error, and forgets no runs."""
    with pytest.raises(UsageError, match="missing is not a directory"):
        open_registry(tmp_path / "missing")


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    """Folder names that are not UTF-8, and lone surrogates in a sidecar, are stored like any text."""
    folder = os.fsencode(tmp_path / "runs") + b"/caf\xe9"
    path = os.fsdecode(folder)
    make_run(Path(path), run_id="r", notes="\ud800x")
    first, second = open_registry(tmp_path / "runs"), open_registry(tmp_path / "runs")
    assert first["r"].run_dir == second["r"].run_dir == path
    assert counts(second.report) == (1, 0, 1, 0, 0)


def test_times_of_a_record(tmp_path: Path) -> None:
    """A record has the run's times as seconds and as ISO text."""
    run = open_registry(make_run(tmp_path / "a"))["a"]
    assert (run.start, run.created_at) == (CREATED_S, "2026-04-10T12:00:00+00:00")
    assert (run.ended_at, run.duration) == ("2026-04-10T13:00:00+00:00", 3600.0)

"""A live view shows the present content of run directories."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bridge import live as live_module
from bridge.errors import UsageError
from bridge.exporters.mlflow.facts import facts_of
from bridge.live import LiveOptions, LiveRuns
from bridge.options import ContentOptions
from bridge.registry import store
from bridge.rundir import read_run
from tests.pictures import log_image, png
from tests.run_dirs import CREATED_S, make_run, write_metrics, write_sidecar

if TYPE_CHECKING:
    from bridge.live import LiveRun
    from bridge.model import Run
    from bridge.registry import Registry

HEADER = ["loss", "step", "wall_time"]
ROW = [{"step": 0, "loss": 4.0}]


def live_runs(*roots: Path, **options: Any) -> LiveRuns:
    """Return the live runs at and below some folders."""
    return LiveRuns(LiveOptions(roots=list(map(str, roots)), **options))


def only(live: LiveRuns) -> LiveRun:
    (run,) = live.runs().values()
    return run


def names(live: LiveRuns) -> list[str]:
    return [run.record.run_id for run in live.runs().values()]


def points(live: LiveRuns, name: str = "loss") -> list[tuple[int, float]]:
    series = live.series(only(live))[name]
    return list(zip(series.step.tolist(), series.value.tolist(), strict=True))


def test_records_are_scanned_beside_the_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first request scans; later ones get the last list while a scan runs, and soon the new one."""
    monkeypatch.setattr(live_module, "STALE_AFTER", 60.0)
    path = make_run(tmp_path / "runs" / "a", ROW)
    live = live_runs(tmp_path / "runs")
    before = only(live)
    make_run(tmp_path / "runs" / "b", ROW)
    deadline = time.monotonic() + 30
    while names(live) != ["a", "b"] and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert live.runs()[before.id] is before
    shutil.rmtree(path)
    assert live.series(before).keys() <= {"loss"}
    while names(live) != ["b"] and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert names(live) == ["b"]


def test_a_slow_scan_delays_no_request_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests wait together for at most SCAN_WAIT after a scan began, however many a page needs."""
    make_run(tmp_path / "runs" / "a", ROW)
    live = live_runs(tmp_path / "runs")
    before = live.runs()
    monkeypatch.setattr(live_module, "SCAN_WAIT", 0.2)
    hangs = threading.Event()
    scan = live_module.open_registry
    monkeypatch.setattr(live_module, "open_registry", lambda *root, **more: hangs.wait(60) and scan(*root, **more))
    began = time.monotonic()
    try:
        assert [live.runs() for _ in range(50)] == [before] * 50
        assert time.monotonic() - began < 5.0  # 50 waits would take ten seconds
    finally:
        hangs.set()


def test_what_was_made_of_a_record_goes_when_it_changes(tmp_path: Path) -> None:
    """A changed sidecar is read again, and an unchanged one is not."""
    path = make_run(tmp_path / "runs" / "a", ROW, notes="old")
    live = live_runs(tmp_path / "runs")
    first, runs = only(live), live.runs()
    assert live.run(first).notes == "old"
    assert live.runs() is runs
    write_sidecar(path, notes="newer")
    assert (only(live).id, live.run(only(live)).notes) == (first.id, "newer")


def test_a_thread_that_cannot_be_started_costs_one_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit of processes on a login node a request gets the old list, and a later one the new."""
    make_run(tmp_path / "runs" / "a", ROW)
    live = live_runs(tmp_path / "runs")
    assert names(live) == ["a"]
    make_run(tmp_path / "runs" / "b", ROW)

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        assert names(live) == ["a"]
    assert names(live) == ["a", "b"]


@pytest.mark.parametrize("change", ["notes", "summary"])
def test_a_change_within_one_tick_of_the_clock_is_seen(tmp_path: Path, change: str) -> None:
    """A second edit within a second of a coarse clock, or a summary that is written just after a scan, is shown."""
    path = make_run(tmp_path / "runs" / "a", ROW, notes="first")
    sidecar = path / "sidecar.json"
    os.utime(sidecar, (CREATED_S, CREATED_S))
    live = live_runs(tmp_path / "runs")
    assert only(live).record.covered is False
    if change == "notes":
        write_sidecar(path, notes="the second edit")
        os.utime(sidecar, (CREATED_S, CREATED_S))
        assert only(live).record.notes == "the second edit"
    else:
        (path / "summary.json").write_text(json.dumps({"rows": 1, "metrics": {"loss": {"last": 4.0, "count": 1}}}))
        assert only(live).record.covered is True


def test_a_scan_that_ends_late_brings_nothing_old_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two scans the one that began last counts: an edit on the page stays although a scan was on its way."""
    monkeypatch.setattr(live_module, "SCAN_PERIOD", 60.0)
    path = make_run(tmp_path / "runs" / "a", ROW, notes="old")
    live = live_runs(tmp_path / "runs")
    live.scan()
    make_run(tmp_path / "runs" / "b", ROW)  # both scans have something to bring
    scan, has_read, may_end = live_module.open_registry, threading.Event(), threading.Event()

    def slow(*root: Path, **more: Any) -> Registry:
        found = scan(*root, **more)
        has_read.set()
        may_end.wait(60)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(live_module, "open_registry", slow)
        slow_scan = threading.Thread(target=live.scan)
        slow_scan.start()
        has_read.wait(60)
    write_sidecar(path, notes="edited")
    live.scan()
    may_end.set()
    slow_scan.join(60)
    assert [run.record.notes for run in live.runs().values()] == ["edited", ""]


def test_ids_follow_from_the_identity_alone(tmp_path: Path) -> None:
    """A moved run keeps its id and so its links; a copy beside it gets another id."""
    path = make_run(tmp_path / "runs" / "a", ROW, uid="uid-a")
    first = only(live_runs(tmp_path / "runs")).id
    moved = path.rename(tmp_path / "runs" / "elsewhere")
    assert only(live_runs(tmp_path / "runs")).id == first
    shutil.copytree(moved, tmp_path / "runs" / "z-copy")
    ids = list(live_runs(tmp_path / "runs").runs())
    assert len(ids) == 2
    assert ids[0] == first


def test_only_what_was_looked_at_stays_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit the least recently viewed runs leave memory and are read again on demand."""
    monkeypatch.setattr(live_module, "SERIES_BYTES", 1800)
    for name in "abc":
        make_run(tmp_path / "runs" / name, [{"step": step, "loss": 1.0} for step in range(10)])
    live = live_runs(tmp_path / "runs")
    reads: list[str] = []
    read_small = live_module.read_small
    monkeypatch.setattr(
        live_module, "read_small", lambda run, *more: reads.append(run.path.name) or read_small(run, *more)
    )
    for name in "abcca":
        run = next(run for run in live.runs().values() if run.record.run_id == name)
        assert len(live.series(run)["loss"].step) == 10
    assert reads == ["a", "b", "c", "a"]


def test_requests_at_once_count_the_memory_of_a_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several charts of one run that a page asks for at once push no other run out of memory."""
    monkeypatch.setattr(live_module, "SERIES_BYTES", 1800)
    for name in "ab":
        make_run(tmp_path / "runs" / name, [{"step": step, "loss": 1.0} for step in range(10)])
    live = live_runs(tmp_path / "runs")
    first, second = live.runs().values()
    facts, all_ask = live.facts, threading.Barrier(4)

    def wait_for_the_others(run: LiveRun) -> Run:
        all_ask.wait(60)
        return facts(run)

    with monkeypatch.context() as patched, ThreadPoolExecutor(4) as pool:
        patched.setattr(live, "facts", wait_for_the_others)
        list(pool.map(live.series, [first] * 4))
    live.series(second)
    monkeypatch.setattr(live_module, "read_small", None)
    assert len(live.series(first)["loss"].step) == 10


def test_the_facts_of_a_record_are_those_of_the_directory(tmp_path: Path) -> None:
    """A record says what an export shows, also of a requeued run and of numbers that the cache cannot hold."""
    sessions = [{"user": "ada", "restart_count": 3, "slurm": {"job_id": "1"}}, {"host": "n2", "restart_count": 1}, {}]
    for name, seed in (("a", 1), ("b", 2**70)):
        make_run(tmp_path / "runs" / name, ROW, hparams={"seed": seed}, sessions=sessions, tags=["x:1"], notes="n")
    for _ in range(2):  # read from the directories, then from the cache
        live = live_runs(tmp_path / "runs")
        assert names(live) == ["a", "b"]
        for run in live.runs().values():
            whole = read_run(Path(run.record.run_dir))
            assert facts_of(live.facts(run), ContentOptions()) == facts_of(whole, ContentOptions())


def test_a_metrics_file_that_comes_later(tmp_path: Path) -> None:
    """A run viewed before its first row shows its points after the next scan."""
    path = tmp_path / "runs" / "a"
    write_sidecar(path, status="running")
    (path / "heartbeat").touch()
    live = live_runs(tmp_path / "runs")
    assert live.series(only(live)) == {}
    write_metrics(path, HEADER, [(1.0, 0, CREATED_S)])
    os.utime(path / "heartbeat", (time.time(), time.time() + 1))
    assert points(live) == [(0, 1.0)]


def test_media_are_read_again_when_their_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at unchanged media reads nothing."""
    path = make_run(tmp_path / "runs" / "a", ROW)
    live = live_runs(tmp_path / "runs")
    assert live.media(only(live)) == ()
    log_image(path, 0, "a.png", png(1), caption="first")
    assert [event.caption for event in live.media(only(live))] == ["first"]
    log_image(path, 1, "b.png", png(2))
    assert [event.step for event in live.media(only(live))] == [0, 1]
    monkeypatch.setattr(live_module, "read_media", None)
    assert [event.step for event in live.media(only(live))] == [0, 1]
    assert live_runs(tmp_path / "runs", content=ContentOptions(media=False)).media(only(live)) == ()


def test_a_look_at_many_runs_costs_one_call_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file server that answers slowly is asked once for each run, by several threads, and answers keep order."""
    monkeypatch.setattr(store, "_SAMPLE", 0)
    monkeypatch.setattr(store, "_SLOW_S", 0.0)
    for number in range(40):
        make_run(tmp_path / "runs" / f"{number:02d}", ROW)
    log_image(tmp_path / "runs" / "07", 0, "a.png", png(1), caption="first")
    live = live_runs(tmp_path / "runs")
    runs = list(live.runs().values())
    live.look_at_each(live.media, runs)
    asked: list[str] = []
    threads: set[int] = set()
    stat = os.stat

    def counted(path: Any, **more: Any) -> os.stat_result:
        asked.append(str(path))
        threads.add(threading.get_ident())
        return stat(path, **more)

    monkeypatch.setattr(os, "stat", counted)
    found = live.look_at_each(live.media, runs)
    monkeypatch.undo()
    assert [len(events) for events in found] == [int(run.record.run_id == "07") for run in runs]
    assert sorted(asked) == [f"{run.record.run_dir}/media.jsonl" for run in runs]
    assert threading.get_ident() not in threads


def test_several_roots_and_a_choice(tmp_path: Path) -> None:
    """Roots may overlap, and `choose` selects among the records."""
    for name in "ab":
        make_run(tmp_path / "runs" / name, ROW)
    roots = [tmp_path / "runs" / "b", tmp_path / "runs"]
    assert sorted(names(live_runs(*roots))) == ["a", "b"]
    options = LiveOptions(roots=list(map(str, roots)))
    assert names(LiveRuns(options, lambda records: [one for one in records if one.run_id == "b"])) == ["b"]
    with pytest.raises(UsageError, match="not a directory"):
        live_runs(tmp_path / "nowhere")

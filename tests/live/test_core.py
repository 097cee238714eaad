"""A live view shows the present content of run directories."""

from __future__ import annotations

import os
import shutil
import threading
import time
from typing import TYPE_CHECKING

import pytest

from bridge.errors import UsageError
from bridge.live import LiveRuns
from bridge.live import core as live_core
from bridge.options import ContentOptions
from tests.contract.test_media import log_image, picture
from tests.run_dirs import CREATED_S, make_run, write_metrics, write_sidecar

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.live import LiveRun

HEADER = ["loss", "step", "wall_time"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test its own cache."""
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path / "cache"))


def only(live: LiveRuns) -> LiveRun:
    (run,) = live.runs().values()
    return run


def points(live: LiveRuns, name: str = "loss") -> list[tuple[int, float]]:
    series = live.series(only(live))[name]
    return list(zip(series.step.tolist(), series.value.tolist(), strict=True))


def test_a_run_that_grows_and_is_requeued(tmp_path: Path) -> None:
    """Each look returns the points that count now, with strictly increasing steps and their own times."""
    path = make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 4.0}, {"step": 1, "loss": 3.0}], status="running")
    live = LiveRuns([tmp_path / "runs"])
    assert points(live) == [(0, 4.0), (1, 3.0)]
    write_metrics(path, HEADER, [(2.0, 2, CREATED_S + 2)], append=True)
    assert points(live) == [(0, 4.0), (1, 3.0), (2, 2.0)]
    write_metrics(path, HEADER, [(2.5, 1, CREATED_S + 9), (1.5, 2, CREATED_S + 10)], append=True)
    assert points(live) == [(0, 4.0), (1, 2.5), (2, 1.5)]
    assert live.series(only(live))["loss"].time.tolist() == [CREATED_S, CREATED_S + 9, CREATED_S + 10]


def test_the_newest_row_of_a_running_run_is_shown(tmp_path: Path) -> None:
    """A view shows the newest row at once, unlike an export, because it writes nothing."""
    path = make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 4.0}], status="running")
    (path / "heartbeat").touch()
    live = LiveRuns([tmp_path / "runs"])
    assert points(live) == [(0, 4.0)]
    write_metrics(path, HEADER, [(3.0, 0, CREATED_S + 1)], append=True)
    assert points(live) == [(0, 3.0)]


def test_records_are_scanned_beside_the_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first request scans; later ones get the last list while a scan runs, and soon the new one."""
    monkeypatch.setattr(live_core, "SCAN_PERIOD", 0.0)
    path = make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 4.0}])
    live = LiveRuns([tmp_path / "runs"])
    before = only(live)
    make_run(tmp_path / "runs" / "b", [{"step": 0, "loss": 4.0}])
    deadline = time.monotonic() + 30
    while len(live.runs()) < 2 and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    names = {run.record.run_id: run for run in live.runs().values()}
    assert set(names) == {"a", "b"}
    assert names["a"] is before
    shutil.rmtree(path)
    assert live.series(before) == {} or list(live.series(before)) == ["loss"]
    while len(live.runs()) > 1 and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert [run.record.run_id for run in live.runs().values()] == ["b"]


def test_an_old_list_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look after a pause waits for the scan and shows a new run at once."""
    monkeypatch.setattr(live_core, "SCAN_PERIOD", 0.0)
    monkeypatch.setattr(live_core, "STALE_AFTER", 0.0)
    monkeypatch.setattr(live_core, "SCAN_WAIT", 30.0)
    make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 4.0}])
    live = LiveRuns([tmp_path / "runs"])
    live.runs()
    live._pause = 0.0
    make_run(tmp_path / "runs" / "b", [{"step": 0, "loss": 4.0}])
    assert [run.record.run_id for run in live.runs().values()] == ["a", "b"]


def test_a_slow_scan_delays_no_request_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests wait together for at most SCAN_WAIT after a scan began, however many a page needs."""
    make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 4.0}])
    live = LiveRuns([tmp_path / "runs"])
    before = live.runs()
    monkeypatch.setattr(live_core, "STALE_AFTER", 0.0)
    waits: list[float] = []

    class Scan(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            return False

    live._scan, live._scan_began = Scan(), time.monotonic() - 0.4
    assert live.runs() is before
    live._scan_began -= 1.0
    assert live.runs() is before
    assert 0.0 < waits[0] <= 0.1
    assert waits[1] == 0.0


def test_what_was_made_of_a_record_goes_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed sidecar is read again, and an unchanged one is not."""
    path = make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 4.0}], notes="old")
    live = LiveRuns([tmp_path / "runs"])
    first = only(live)
    assert live.run(first).notes == "old"
    runs = live.runs()
    live._rescan()
    assert live.runs() is runs
    assert only(live) is first
    write_sidecar(path, notes="newer")
    live._rescan()
    assert only(live) is not first
    assert (only(live).id, live.run(only(live)).notes) == (first.id, "newer")


def test_ids_follow_from_the_identity_alone(tmp_path: Path) -> None:
    """A moved run keeps its id and so its links; a copy beside it gets another id."""
    path = make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 4.0}], uid="uid-a")
    first = only(LiveRuns([tmp_path / "runs"])).id
    moved = path.rename(tmp_path / "runs" / "elsewhere")
    assert only(LiveRuns([tmp_path / "runs"])).id == first
    shutil.copytree(moved, tmp_path / "runs" / "z-copy")
    ids = list(LiveRuns([tmp_path / "runs"]).runs())
    assert len(ids) == 2
    assert ids[0] == first


def test_only_what_was_looked_at_stays_in_memory(tmp_path: Path) -> None:
    """Beyond the limit the least recently viewed runs leave memory and are read again on demand."""
    for name in "abc":
        make_run(tmp_path / "runs" / name, [{"step": step, "loss": 1.0} for step in range(10)])
    live = LiveRuns([tmp_path / "runs"], series_bytes=1800)
    for run in live.runs().values():
        assert len(live.series(run)["loss"].step) == 10
    assert len(live._series) == 2
    for run in live.runs().values():
        assert len(live.series(run)["loss"].step) == 10


def test_the_metrics_of_a_run_cost_no_look_at_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of metrics come from the registry, and content options select among them."""
    path = make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 4.0, "acc": 1.0}], summary={"loss": 4.0, "acc": 1.0})
    live = LiveRuns([tmp_path / "runs"], content=ContentOptions(exclude_metrics=("acc",)))
    monkeypatch.setattr(live_core, "read_whole", None)
    assert live.metrics(only(live)) == ["loss"]
    assert path.exists()


def test_a_metrics_file_that_comes_later(tmp_path: Path) -> None:
    """A run viewed before its first row shows its points after the next scan."""
    path = tmp_path / "runs" / "a"
    write_sidecar(path, status="running")
    (path / "heartbeat").touch()
    live = LiveRuns([tmp_path / "runs"])
    assert live.series(only(live)) == {}
    write_metrics(path, HEADER, [(1.0, 0, CREATED_S)])
    assert live.series(only(live)) == {}
    os.utime(path / "heartbeat", (time.time(), time.time() + 1))
    live.refresh()
    assert points(live) == [(0, 1.0)]


def test_a_run_of_event_files(tmp_path: Path) -> None:
    """A TensorBoardLogger's run is shown and grows with its file."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "runs" / "version_0")) as writer:
        writer.add_scalar("loss", 0.5, 0)
        writer.flush()
        live = LiveRuns([tmp_path / "runs"])
        assert live.metrics(only(live)) == ["loss"]
        assert points(live) == [(0, 0.5)]
        writer.add_scalar("loss", 0.25, 1)
        writer.flush()
        assert points(live) == [(0, 0.5), (1, 0.25)]


def test_media_are_read_again_when_their_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at unchanged media reads nothing."""
    path = make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 4.0}])
    live = LiveRuns([tmp_path / "runs"])
    assert live.media(only(live)) == ()
    log_image(path, 0, "a.png", picture(1), caption="first")
    assert [event.caption for event in live.media(only(live))] == ["first"]
    log_image(path, 1, "b.png", picture(2))
    assert [event.step for event in live.media(only(live))] == [0, 1]
    monkeypatch.setattr(live_core, "read_media", None)
    assert [event.step for event in live.media(only(live))] == [0, 1]
    assert LiveRuns([tmp_path / "runs"], content=ContentOptions(media=False)).media(only(live)) == ()


def test_a_look_at_many_runs_costs_one_call_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file server that answers slowly is asked once for each run, by several threads; the events are the same."""
    for name in "abc":
        make_run(tmp_path / "runs" / name, [{"step": 0, "loss": 4.0}])
    log_image(tmp_path / "runs" / "b", 0, "a.png", picture(1), caption="first")
    live = LiveRuns([tmp_path / "runs"])
    runs = list(live.runs().values())
    live.media_of(runs)
    asked: list[str] = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **more: asked.append(str(path)) or stat(path, **more))
    found = live.media_of(runs)
    monkeypatch.undo()
    assert {run.record.run_id: len(found[run.id]) for run in runs} == {"a": 0, "b": 1, "c": 0}
    assert sorted(asked) == [str(tmp_path / "runs" / name / "media.jsonl") for name in "abc"]


def test_several_roots_and_a_choice(tmp_path: Path) -> None:
    """Roots may overlap, and `choose` selects among the records."""
    for name in "ab":
        make_run(tmp_path / "runs" / name, [{"step": 0, "loss": 4.0}])
    roots = [tmp_path / "runs" / "b", tmp_path / "runs"]
    assert sorted(run.record.run_id for run in LiveRuns(roots).runs().values()) == ["a", "b"]
    chosen = LiveRuns(roots, choose=lambda records: [one for one in records if one.run_id == "b"])
    assert only(chosen).record.run_id == "b"
    with pytest.raises(UsageError, match="not a directory"):
        LiveRuns([tmp_path / "nowhere"])

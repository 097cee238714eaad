"""Any executor gives the same result, and a dead worker costs at most its own run."""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from bridge.errors import TargetUnavailableError
from bridge.exporters.contract import find_exporter
from bridge.sync import parallel
from bridge.sync.export import Options, export_runs
from bridge.sync.parallel import Workers
from bridge.sync.report import Progress
from bridge.sync.verify import verify_runs
from tests.memory_exporter import MEMORY, MemoryExporter
from tests.run_dirs import make_run
from tests.rundir.event_writing import START, write_events
from tests.sync.accidents import Deadly, Elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bridge.exporters.contract import Exporter
    from bridge.model import Run
    from bridge.options import ContentOptions
    from bridge.sync.report import RunReport
    from tests.fixtures.dask_cluster import DaskCluster
    from tests.memory_exporter import MemoryTarget


class AtRun(Progress):
    """Calls an action when the first run is done."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act, self.done = act, 0

    def run_done(self, report: RunReport) -> None:
        self.done += 1
        if self.done == 1:
            self.act()


@pytest.fixture(autouse=True)
def _small_work_is_shared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "WORTH_WORKERS", 0)
    monkeypatch.setattr(parallel, "CONNECT_TIMEOUT", 2.0)


@pytest.fixture
def tensorboard(tmp_path: Path) -> Exporter:
    return find_exporter("tensorboard")(logdir=tmp_path / "tb")


def tree(root: Path, runs: int, rows: int) -> Path:
    for number in range(runs):
        make_run(root / f"run{number:02}", [{"step": step, "loss": step / 8, "acc": 1.0} for step in range(rows)])
    return root


def verdicts(root: Path, exporter: Exporter) -> dict[str, int]:
    return dict(Counter(str(line.verdict) for line in verify_runs([root], exporter).runs))


def test_a_target_with_one_writer_is_written_here(tmp_path: Path, sqlite_uri: str) -> None:
    """A SQLite file has one writer with any number of workers."""
    root = tree(tmp_path / "runs", 4, 50)
    exporter = find_exporter("mlflow")(tracking_uri=sqlite_uri, experiment="many")
    assert exporter.capabilities.single_writer
    report = export_runs([root], exporter, Options(workers=Workers(processes=2, dask="tcp://127.0.0.1:9")))
    assert [line.reason for line in report.failed] == []
    assert verdicts(root, exporter) == {"=": 4}


def test_a_dask_worker_killed_in_mid_export_loses_nothing(
    tmp_path: Path, dask_cluster: DaskCluster, tensorboard: Exporter
) -> None:
    """The other worker repeats a lost worker's tasks, and nothing is duplicated."""
    root = tree(tmp_path / "runs", 30, 400)
    victim = dask_cluster.workers[0]
    progress = AtRun(lambda: os.killpg(victim.pid, signal.SIGKILL))
    workers = Workers(dask=str(dask_cluster.scheduler_file))
    report = export_runs([root], tensorboard, Options(workers=workers), progress=progress)
    assert victim.wait(10) == -signal.SIGKILL
    assert [line.reason for line in report.failed] == []
    assert verdicts(root, tensorboard) == {"=": 30}


def test_a_run_that_kills_its_worker_is_named_and_the_others_are_done(tmp_path: Path) -> None:
    """The report names the run and what to try, and all other runs are exported."""
    root = tree(tmp_path / "runs", 6, 50)
    report = export_runs([root], Deadly(tmp_path / "boxes"), Options(workers=Workers(processes=2)))
    assert [(line.run_id, line.reason, line.hint) for line in report.failed] == [
        (
            "run03",
            "The worker process died while it had this run (out of memory?).",
            "Try --workers 1, or give the job more memory.",
        )
    ]
    assert (len(report.runs), report.exit_code) == (6, 3)
    assert verdicts(root, MemoryExporter(tmp_path / "boxes")) == {"=": 5, "+": 1}


def test_runs_of_event_files_count_by_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers share them like those of metrics.csv, once there is enough to read."""
    monkeypatch.setattr(parallel, "WORTH_WORKERS", 1)
    (notes := tmp_path / "notes").mkdir()
    for number in range(2):
        write_events(tmp_path / "logs" / f"run{number}", 0, [("loss", 1, 0.5, START)])
    exporter = Elsewhere(tmp_path / "boxes", notes)
    export_runs([tmp_path / "logs"], exporter, Options(workers=Workers(processes=2)))
    assert {note.name for note in notes.iterdir()} == {"run0", "run1"}


def test_a_task_is_a_failure_only_if_its_executor_fails_twice(tmp_path: Path) -> None:
    """A worker that is killed from outside, or any other fault of an executor, loses no run if it happens once."""
    root = tree(tmp_path / "runs", 12, 5)
    exporter = Deadly(tmp_path / "boxes", forgiving=tmp_path)
    report = export_runs([root], exporter, Options(workers=Workers(processes=2)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boxes", "copy", "kill", "runs"]
    assert [line.reason for line in report.failed] == []
    assert verdicts(root, MemoryExporter(tmp_path / "boxes")) == {"=": 12}


def test_a_dask_scheduler_killed_in_mid_export_fails_the_runs_that_are_left(
    tmp_path: Path, dask_cluster: DaskCluster, tensorboard: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report names the remaining runs, and the next export does them."""
    root = tree(tmp_path / "runs", 40, 20)

    def kill() -> None:
        os.killpg(dask_cluster.scheduler.pid, signal.SIGKILL)
        monkeypatch.setattr(parallel, "CONNECT_TIMEOUT", 0.1)  # nobody is there any more

    progress = AtRun(kill)
    report = export_runs([root], tensorboard, Options(workers=Workers(dask=dask_cluster.address)), progress=progress)
    assert (len(report.runs), report.exit_code) == (40, 3)
    assert all(line.retry for line in report.failed)
    reasons = {line.reason.partition(":")[0] for line in report.failed}
    assert reasons == {f"No Dask scheduler answers at {dask_cluster.address.partition(':')[0]}"}
    assert export_runs([root], tensorboard).exit_code == 0
    assert verdicts(root, tensorboard) == {"=": 40}


def test_no_scheduler_is_an_error_that_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong scheduler address stops the export before anything is sent."""
    monkeypatch.setattr(parallel, "CONNECT_TIMEOUT", 0.1)
    root = tree(tmp_path / "runs", 1, 5)
    with pytest.raises(TargetUnavailableError, match=r"No Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        export_runs([root], MemoryExporter(), Options(workers=Workers(dask="tcp://127.0.0.1:9")))


class Remembering(MemoryExporter):
    """An exporter that is to be used for one export only; `earlier` counts the runs that it had before."""

    earlier = 0

    def open(self, run: Run, content: ContentOptions) -> MemoryTarget:
        self.earlier += 1
        if self.earlier > 2:
            raise TargetUnavailableError("What an earlier export met is remembered.")
        return super().open(run, content)


def test_each_export_of_a_process_has_an_exporter_of_its_own(tmp_path: Path) -> None:
    """What one export learnt of its target, such as a store that was down, does not last until the process ends."""
    capabilities = replace(MEMORY, threads=True)
    for name in ("first", "second"):
        root = tree(tmp_path / name, 2, 2)
        exporter = Remembering(tmp_path / "boxes", capabilities=capabilities)
        report = export_runs([root], exporter, Options(workers=Workers(threads=2)))
        assert [line.reason for line in report.failed] == []


class Gone(MemoryExporter):
    """A target that is away from the second run on; `tried` are the runs that asked for it."""

    def __init__(self) -> None:
        super().__init__()
        self.tried: list[str] = []

    def open(self, run: Run, content: ContentOptions) -> MemoryTarget:
        self.tried.append(run.run_id)
        if len(self.tried) > 1:
            raise TargetUnavailableError("The server does not answer.", hint="Start it.")
        return super().open(run, content)


def test_a_fault_of_the_target_is_not_met_by_every_run(tmp_path: Path) -> None:
    """After three failures in a row the other runs fail with the same reason at once."""
    root = tree(tmp_path / "runs", 8, 2)
    exporter = Gone()
    report = export_runs([root], exporter)
    assert exporter.tried == ["run00", "run01", "run02", "run03"]
    assert [(line.run_id, line.reason, line.hint, line.retry) for line in report.failed] == [
        (f"run{number:02}", "The server does not answer.", "Start it.", True) for number in range(1, 8)
    ]
    assert report.exit_code == 3

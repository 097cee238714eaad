"""Many runs at once: the same result whoever works, and a worker that dies costs nothing."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from bridge.exporters import find_exporter
from bridge.sync import together
from bridge.sync.export import Options, export_runs
from bridge.sync.progress import SilentProgress
from bridge.sync.together import Hands
from bridge.sync.verify import verify_runs
from tests.memory_exporter import MemoryExporter
from tests.run_dirs import make_run

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.cursor import ContentOptions
    from bridge.exporters.contract import Exporter
    from bridge.model import Run
    from bridge.sync.report import RunReport
    from tests.fixtures.dask_cluster import DaskCluster
    from tests.memory_exporter import MemoryTarget


class AtRun(SilentProgress):
    """Does something when the first run is done."""

    def __init__(self, act: object) -> None:
        self.act = act
        self.done = 0

    def run_done(self, report: RunReport) -> None:
        self.done += 1
        if self.done == 1:
            assert callable(self.act)
            self.act()


@pytest.fixture
def _small_work_is_shared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "WORTH_A_CREW", 0)


def tree(root: Path, runs: int, rows: int) -> Path:
    for number in range(runs):
        make_run(root / f"run{number:02}", [{"step": step, "loss": step / 8, "acc": 1.0} for step in range(rows)])
    return root


def exporter_of(kind: str, folder: Path) -> Exporter:
    if kind == "memory":
        return MemoryExporter(folder / "boxes")
    if kind == "tensorboard":
        return find_exporter("tensorboard")(logdir=folder / "tb")
    return find_exporter("mlflow")(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}", experiment="many")


def verdicts(root: Path, exporter: Exporter) -> dict[str, int]:
    report = verify_runs([root], exporter)
    return {str(verdict): report.count(verdict) for verdict in {line.verdict for line in report.runs}}


@pytest.mark.usefixtures("_small_work_is_shared_too")
@pytest.mark.parametrize("kind", ["memory", "tensorboard"])
def test_processes_end_with_the_same_target(tmp_path: Path, kind: str) -> None:
    """Two workers export all runs, and verify finds them all the same."""
    root = tree(tmp_path / "runs", 6, 50)
    exporter = exporter_of(kind, tmp_path)
    report = export_runs([root], exporter, Options(hands=Hands(workers=2)))
    assert sorted((line.run_id, str(line.action), line.points) for line in report.runs) == [
        (f"run{number:02}", "new", 100) for number in range(6)
    ]
    assert verdicts(root, exporter) == {"=": 6}


@pytest.mark.usefixtures("_small_work_is_shared_too", "sqlite_uri")
def test_a_target_with_one_writer_is_written_here_while_others_read(tmp_path: Path) -> None:
    """A SQLite file has one writer however many workers there are."""
    root = tree(tmp_path / "runs", 4, 50)
    exporter = exporter_of("mlflow", tmp_path)
    assert exporter.capabilities.single_writer
    report = export_runs([root], exporter, Options(hands=Hands(workers=2)))
    assert [line.reason for line in report.failed] == []
    assert verdicts(root, exporter) == {"=": 4}


@pytest.mark.usefixtures("sqlite_uri")
@pytest.mark.parametrize("kind", ["tensorboard", "mlflow"])
def test_a_dask_worker_killed_in_mid_export_loses_nothing(tmp_path: Path, dask_cluster: DaskCluster, kind: str) -> None:
    """What the lost worker had is done again by the other one, and nothing is doubled."""
    root = tree(tmp_path / "runs", 30, 400)
    exporter = exporter_of(kind, tmp_path)
    victim = dask_cluster.workers[0]
    progress = AtRun(lambda: os.killpg(victim.pid, signal.SIGKILL))
    report = export_runs(
        [root], exporter, Options(hands=Hands(dask=str(dask_cluster.scheduler_file))), progress=progress
    )
    assert victim.wait(10) == -signal.SIGKILL
    assert [line.reason for line in report.failed] == []
    assert verdicts(root, exporter) == {"=": 30}


class Deadly(MemoryExporter):
    """Kills every process but the first that opens the target of run03, as the system does when memory is short."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.parent = os.getpid()

    def open(self, run: Run, content: ContentOptions) -> MemoryTarget:
        if run.run_id == "run03" and os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().open(run, content)


@pytest.mark.usefixtures("_small_work_is_shared_too")
def test_a_run_that_kills_its_worker_is_named_and_the_others_are_done(tmp_path: Path) -> None:
    """The report says which run it was and what to try; nothing else is lost with it."""
    root = tree(tmp_path / "runs", 6, 50)
    report = export_runs([root], Deadly(tmp_path / "boxes"), Options(hands=Hands(workers=2)))
    assert [(line.run_id, line.reason, line.hint) for line in report.failed] == [
        (
            "run03",
            "The worker process died while it had this run (out of memory?).",
            "Try --workers 1, or give the job more memory.",
        )
    ]
    assert (len(report.runs), report.exit_code) == (6, 3)
    assert verdicts(root, MemoryExporter(tmp_path / "boxes")) == {"=": 5, "+": 1}


@pytest.mark.usefixtures("_small_work_is_shared_too")
def test_a_dask_scheduler_killed_in_mid_export_fails_the_runs_that_are_left(
    tmp_path: Path, dask_cluster: DaskCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report names them and says why; the others are done, and the next export does the rest."""
    import bridge.sync.cluster

    monkeypatch.setattr(bridge.sync.cluster, "CONNECT_TIMEOUT", 2.0)
    root = tree(tmp_path / "runs", 40, 20)
    exporter = exporter_of("tensorboard", tmp_path)
    progress = AtRun(lambda: os.killpg(dask_cluster.scheduler.pid, signal.SIGKILL))
    report = export_runs([root], exporter, Options(hands=Hands(dask=dask_cluster.address)), progress=progress)
    assert (len(report.runs), report.exit_code) == (40, 3)
    assert all(line.retry for line in report.failed)
    reasons = {line.reason.partition(":")[0] for line in report.failed}
    assert reasons == {f"No Dask scheduler answers at {dask_cluster.address.partition(':')[0]}"}
    assert export_runs([root], exporter).exit_code == 0
    assert verdicts(root, exporter) == {"=": 40}


def test_no_scheduler_is_an_error_that_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong address stops the export before anything is sent."""
    import bridge.sync.cluster
    from bridge.errors import TargetUnavailableError

    monkeypatch.setattr(bridge.sync.cluster, "CONNECT_TIMEOUT", 0.5)
    root = tree(tmp_path / "runs", 1, 5)
    with pytest.raises(TargetUnavailableError, match=r"No Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        export_runs([root], MemoryExporter(), Options(hands=Hands(dask="tcp://127.0.0.1:9")))

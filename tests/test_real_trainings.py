"""Real trainings are exported by the command line and read back by TensorBoard's and MLflow's own readers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pytest

from tests import oracle
from tests.cli.calling import call
from tests.logger.rows import read_rows, sidecar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Points: TypeAlias = "dict[str, list[tuple[int, float, float]]]"
"""By metric: (step, time, value), by step."""

RUN_IDS = ["diverged", "killed", "preempted", *(f"sweep/lr-{lr}" for lr in (0.003, 0.01, 0.03, 0.1))]


@pytest.fixture(scope="module")
def exported(demo_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `tb` and `m.db`, to which the demo's runs were exported twice."""
    folder = tmp_path_factory.mktemp("out")
    targets = (
        ["--to", "tensorboard", "--logdir", str(folder / "tb")],
        ["--to", "mlflow", "--tracking-uri", f"sqlite:///{folder}/m.db", "--experiment", "demo"],
    )
    for target in targets * 2:
        code, _, err = call("export", demo_runs, *target, BRIDGE_CACHE_DIR=str(folder / "cache"))
        assert code == 0, err
    return folder


def test_demo_leaves_the_runs_that_it_promises(demo_runs: Path) -> None:
    """The demo makes a sweep and runs that diverged, were preempted and killed, with their statuses and sessions."""
    assert sorted(str(path.parent.relative_to(demo_runs)) for path in demo_runs.rglob("sidecar.json")) == RUN_IDS
    found = {run_id: sidecar(demo_runs / run_id) for run_id in RUN_IDS}
    assert {run_id: (run["status"], len(run["sessions"])) for run_id, run in found.items()} == {
        run_id: {"killed": ("running", 1), "preempted": ("completed", 2)}.get(run_id, ("completed", 1))
        for run_id in RUN_IDS
    }


def test_the_demos_runs_show_what_their_notes_say(demo_runs: Path) -> None:
    """The preempted run logs steps twice, the killed one died ten minutes ago by its own clock, and one ends in NaN."""
    logged = [int(row["step"]) for row in read_rows(demo_runs / "preempted") if "train/loss" in row]
    assert [step for step in sorted(set(logged)) if logged.count(step) > 1] == [69, 71, 73, 75, 77, 79]
    heartbeat = (demo_runs / "killed" / "heartbeat").stat().st_mtime
    assert (demo_runs / "preempted" / "heartbeat").stat().st_mtime - heartbeat > 500
    times = [float(row["wall_time"]) for row in read_rows(demo_runs / "killed")]
    assert max(times) < heartbeat + 60
    assert times == sorted(times)
    losses = oracle.read(demo_runs / "diverged").series["train/loss"]
    assert (math.isfinite(losses[0].value), math.isnan(losses[-1].value)) == (True, True)


@pytest.mark.parametrize("run_id", RUN_IDS)
def test_tensorboard_holds_the_points_that_the_overlap_rule_leaves(
    demo_runs: Path, exported: Path, run_id: str
) -> None:
    """TensorBoard's loader finds each point that counts once, in 32 bits."""
    expected = _counting(demo_runs / run_id, value=lambda value: float(np.float32(value)))
    assert repr(_tensorboard_points(exported / "tb" / run_id.rpartition("/")[2])) == repr(expected)


@pytest.mark.parametrize("run_id", RUN_IDS)
def test_mlflow_holds_the_points_that_the_overlap_rule_leaves(demo_runs: Path, exported: Path, run_id: str) -> None:
    """MlflowClient finds each point that counts once, with its time in milliseconds."""
    expected = _counting(demo_runs / run_id, time=lambda time: round(time * 1000) / 1000)
    assert repr(_mlflow_points(f"sqlite:///{exported}/m.db", run_id)) == repr(expected)


def test_status_and_times_arrive_in_mlflow(demo_runs: Path, exported: Path) -> None:
    """The killed run is KILLED at its last sign of life, and others are FINISHED with their own times."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{exported}/m.db")
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    runs = {run.data.tags.get("mlflow.bridge.run_id"): run for run in client.search_runs([experiment.experiment_id])}
    assert {run_id: runs[run_id].info.status for run_id in RUN_IDS} == dict.fromkeys(RUN_IDS, "FINISHED") | {
        "killed": "KILLED"
    }
    for run_id in RUN_IDS:
        times = [float(row["wall_time"]) * 1000 for row in read_rows(demo_runs / run_id)]
        info = runs[run_id].info
        assert info.start_time <= times[0]
        # The killed run ends at the time that its heartbeat holds, which may be older than its last row.
        assert times[-1] <= info.end_time + (5_000 if run_id == "killed" else 10)
        assert info.end_time - times[-1] < 30_000


def _counting(run: Path, *, time: Callable[[float], float] = float, value: Callable[[float], float] = float) -> Points:
    """Return the points of `run` that count, with each time and value as a target holds it."""
    series = oracle.read(run).series
    return {
        name: [(point.step, time(point.time), value(point.value)) for point in series[name]] for name in sorted(series)
    }


def _tensorboard_points(folder: Path) -> Points:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util.tensor_util import make_ndarray

    plugins: dict[str, str] = {}
    points: Points = {}
    for path in sorted(path for path in folder.iterdir() if "tfevents" in path.name):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                plugin = plugins.setdefault(value.tag, value.metadata.plugin_data.plugin_name)
                if plugin == "scalars":
                    point = (event.step, event.wall_time, float(make_ndarray(value.tensor)))
                    points.setdefault(value.tag, []).append(point)
    return dict(sorted(points.items()))


def _mlflow_points(uri: str, run_id: str) -> Points:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`mlflow.bridge.run_id` = '{run_id}'")
    return {
        name: sorted((m.step, m.timestamp / 1000, m.value) for m in client.get_metric_history(run.info.run_id, name))
        for name in sorted(run.data.metrics)
    }

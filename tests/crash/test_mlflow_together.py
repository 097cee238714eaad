"""Several exports at once into one MLflow experiment end with one run for each run directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bridge.sync.report import Action
from tests.crash.test_mlflow_kill import Growing, export
from tests.exporters.mlflow.conftest import Store
from tests.run_dirs import make_run
from tests.zygote import Task

if TYPE_CHECKING:
    from pathlib import Path

    from tests.zygote import Zygote

RUNS = 2
PART = 20
PLACES = ("sqlite", "postgresql", "server")
CHILDREN = 8


@pytest.mark.parametrize(
    ("uri", "count"),
    [
        *((place, 3) for place in PLACES),
        *(pytest.param(place, count, marks=pytest.mark.slow) for place in PLACES for count in (2, 4)),
    ],
    indirect=["uri"],
)
def test_exports_at_once_end_with_one_run_each(heavy: Zygote, uri: str, tmp_path: Path, count: int) -> None:
    """Simultaneous exports make one run per directory, also after every run has grown and rewound."""
    from bridge.exporters.contract import find_exporter
    from bridge.sync.export import export_runs

    runs = [Growing(tmp_path / "runs" / f"job-{number}", uid=f"job-{number}") for number in range(RUNS)]
    for run in runs:
        run.edit(run_id=run.uid)
    experiment = f"together-{count}-{tmp_path.name}"
    for parts in ((0, 1), (2, 3)):
        for run in runs:
            for part in parts:
                run.grow(part, PART)
            if parts[-1] == 3:
                run.end()
        assert heavy.run(*[Task(export, (uri, experiment, tmp_path / "runs"))] * count) == [None] * count
    last = export_runs([tmp_path / "runs"], find_exporter("mlflow")(tracking_uri=uri, experiment=experiment))
    assert [line.action for line in last.runs] == [Action.UNCHANGED] * RUNS
    export(uri, f"clean-{experiment}", tmp_path / "runs")
    together, clean = Store(uri, experiment=experiment), Store(uri, experiment=f"clean-{experiment}")
    assert together.facts() == clean.facts()
    there, wanted = ({run.info.run_name: one.content(run) for run in one.runs()} for one in (together, clean))
    assert (len(together.runs()), there) == (RUNS, wanted)
    assert len(there["job-0"]["points"]["loss"]) == 4 * PART - PART // 2


def test_eight_exports_of_eight_children_end_with_one_parent(heavy: Zygote, uri: str, tmp_path: Path) -> None:
    """The tasks of an array job each export their own run at one moment, and one parent counts them all."""
    experiment = f"children-{tmp_path.name}"
    paths = [tmp_path / "sweep" / f"child-{number}" for number in range(1, CHILDREN + 1)]
    for number, path in enumerate(paths, start=1):
        rows = [{"step": 0, "acc": number / 10}, {"step": 1, "acc": 0.0}]
        make_run(path, rows, uid=f"child-{number}", run_id=f"child-{number}", tags=["sweep:lr-scan"])
    tasks = [Task(export, (uri, experiment, path, ("acc:max",))) for path in paths]
    assert heavy.run(*tasks) == [None] * CHILDREN
    runs = Store(uri, experiment=experiment).runs()
    (parent,) = [run for run in runs if "mlflow.bridge.sweep" in run.data.tags]
    children = {run.info.run_name: run for run in runs if "mlflow.bridge.uid" in run.data.tags}
    assert sorted(children) == [f"child-{number}" for number in range(1, CHILDREN + 1)]
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    assert len(runs) == CHILDREN + 1
    assert parent.data.metrics == {"acc": pytest.approx(0.45), "acc.best": 0.8}
    description = parent.data.tags["mlflow.note.content"]
    assert description.startswith("8 runs: 8 completed")
    assert "[child-8]" in description

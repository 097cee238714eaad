"""Exports that overlap: the second one goes on from what the first has done."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bridge.options import ContentOptions
from bridge.rundir import read_run
from bridge.sync.export import ExportTask, export_run, export_runs
from tests.exporters.mlflow.conftest import Store
from tests.run_dirs import CREATED_S, make_run, write_metrics

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("kind", ["sqlite", "server"])
@pytest.mark.parametrize("is_known", [False, True])
def test_who_comes_second_goes_on_from_what_the_first_has_done(
    kind: str, is_known: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """An export that another one overtook sends what is left, of a new run and of one that has grown."""
    uri = request.getfixturevalue("mlflow_server").uri if kind == "server" else request.getfixturevalue("sqlite_uri")
    store = Store(uri, experiment=tmp_path.name)
    path = make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 1.0, "wall_time": CREATED_S}])

    def grow(step: int) -> None:
        write_metrics(path, (), [[1 / (step + 1), step, CREATED_S + step]], append=True)

    if is_known:
        export_runs([path], store.exporter())
        grow(1)
    run = read_run(path)
    with store.exporter() as exporter:
        task = ExportTask(run, exporter.cursors([run])[run.identity], ContentOptions())
        export_runs([path], store.exporter())
        grow(2)
        report = export_run(task, exporter)
    assert (str(report.action), report.points) == ("changed", 1)
    assert [step for step, _, _ in store.points("loss")] == ([0, 1, 2] if is_known else [0, 2])

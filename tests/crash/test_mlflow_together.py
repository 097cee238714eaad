"""Several exports at once into one MLflow experiment end with one run for each run directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bridge.report import Action
from tests.crash.killing import all_at_once
from tests.crash.test_mlflow_kill import Growing, content, export
from tests.exporters.mlflow.conftest import Store

if TYPE_CHECKING:
    from pathlib import Path

RUNS = 2
PART = 100


@pytest.fixture
def uri(place: str, request: pytest.FixtureRequest) -> str:
    if place == "server":
        return str(request.getfixturevalue("mlflow_server").uri)
    return str(request.getfixturevalue("sqlite_uri" if place == "sqlite" else "postgres_uri"))


@pytest.mark.parametrize(("place", "count"), [("sqlite", 2), ("sqlite", 4), ("postgresql", 4), ("server", 2)])
def test_exports_at_once_end_with_one_run_each(uri: str, tmp_path: Path, count: int) -> None:
    """All of them begin at one moment, twice, the second time after every run has grown and gone back."""
    from bridge.exporters import find_exporter
    from bridge.verbs.export import export_runs

    runs = [Growing(tmp_path / "runs" / str(number), PART) for number in range(RUNS)]
    experiment = f"together-{count}-{tmp_path.name}"
    for parts in ((0, 1), (2, 3)):
        for run in runs:
            for part in parts:
                run.grow(part)
            if parts[-1] == 3:
                run.end()
        all_at_once(count, export, uri, experiment, tmp_path / "runs")
    last = export_runs([tmp_path / "runs"], find_exporter("mlflow")(tracking_uri=uri, experiment=experiment))
    assert [line.action for line in last.runs] == [Action.UNCHANGED] * RUNS
    export(uri, f"clean-{experiment}", tmp_path / "runs")
    together, clean = Store(uri, experiment=experiment), Store(uri, experiment=f"clean-{experiment}")
    there = {run.info.run_name: content(together, run) for run in together.runs()}
    assert len(together.runs()) == RUNS
    assert there == {run.info.run_name: content(clean, run) for run in clean.runs()}
    assert len(there["0"]["points"]["loss"]) == 4 * PART - PART // 2

"""Clients of MLflow 2.22, 3.0 and 3.4 export points and files to the server that they are given, and to no other."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bridge.exporters.contract import find_exporter
from bridge.sync.verify import verify_runs
from tests.exporters.mlflow.compat.conftest import CLIENTS, environment
from tests.exporters.mlflow.conftest import Store
from tests.exporters.mlflow.test_rebuild import log_picture
from tests.run_dirs import make_run

if TYPE_CHECKING:
    from tests.fixtures.mlflow_server import MlflowServer

pytestmark = [pytest.mark.compat, pytest.mark.timeout(1200)]

HOME = Path(__file__).parents[4]
SCRIPT = """
import sys
import mlflow

run, server, experiment = sys.argv[1:]
mlflow.set_tracking_uri("http://127.0.0.1:9")
import bridge

report = bridge.export(run, to="mlflow", target={"tracking_uri": server, "experiment": experiment})
assert not report.failed, report
assert mlflow.get_tracking_uri() == "http://127.0.0.1:9"
"""


@pytest.mark.parametrize("version", CLIENTS)
def test_an_export_by_an_old_client(mlflow_server: MlflowServer, tmp_path: Path, version: str) -> None:
    """A script that logs to another server keeps that server's address after an export."""
    path = make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 1.0}], hparams={"lr": 0.1})
    log_picture(path, step=1, session=0)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    experiment = f"client-{version}-{tmp_path.name}"
    environment_of = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    environment_of |= {"PYTHONPATH": str(HOME), "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [str(environment(version) / "python"), str(script), str(path), mlflow_server.uri, experiment]
    done = subprocess.run(
        command, env=environment_of, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    store = Store(mlflow_server.uri, experiment=experiment)
    assert len(store.files("images")) == 2
    assert "metrics.csv" in store.files()
    exporter = find_exporter("mlflow")(tracking_uri=mlflow_server.uri, experiment=experiment)
    assert [str(line.verdict) for line in verify_runs([path], exporter).runs] == ["="]

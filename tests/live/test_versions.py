"""The live view answers the requests of the pages as a stock server on a clean export does, also in older versions."""

from __future__ import annotations

import contextlib
import json
import sys
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest

from bridge.exporters.mlflow import MlflowExporter
from bridge.exporters.mlflow.saved_view import VIEW_TAG
from bridge.sync.export import export_runs
from tests.environments import BRIDGE_NEEDS, installed
from tests.fixtures.mlflow_server import start_mlflow_server
from tests.live.test_mlflow import make_all_runs, plugin_folder, told
from tests.live.test_tensorboard import answer_code, everything, make_runs
from tests.servers import viewing

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
OLD_MLFLOW = ("mlflow==2.22.*", "sqlalchemy<2.1", *BRIDGE_NEEDS)
MLFLOWS = {"2.22": OLD_MLFLOW, "3.4": ("mlflow==3.4.*", "sqlalchemy<2.1", *BRIDGE_NEEDS)}
"""The oldest, and one of those up to 3.16 that sample the points of charts by another rule than the newest."""

OLD_TENSORBOARD = (
    "tensorboard==2.16.*",
    "google-crc32c",
    "setuptools<81",
    "protobuf<5",
    "numpy<2",
    "pyarrow==18.*",
    *BRIDGE_NEEDS,
)
"""TensorBoard 2.16 needs the other packages of its time."""


@contextlib.contextmanager
def viewed(runs: Path, to: str, python: Path | str = sys.executable) -> Iterator[str]:
    """Yield the address of `bridge view` in the environment of `python`, which finds our plug-ins."""
    path = f"{ROOT}:{plugin_folder(runs.parent)}"
    with viewing(runs.parent, runs, "--to", to, python=python, PYTHONPATH=path) as (link, _):
        yield link.partition("#")[0].rstrip("/")


def ask(address: str, place: str, body: Any = None, **query: Any) -> bytes:
    """Return what a server answers."""
    request = urllib.request.Request(f"{address}/{place}?{urllib.parse.urlencode(query, doseq=True)}")
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=120) as answer:
        data: bytes = answer.read()
    return data


def answers(address: str) -> dict[str, Any]:
    """Return what a server answers of the experiment `runs`, also the bytes of all files and the points of a chart."""
    client = mlflow.MlflowClient(address)
    experiment = client.get_experiment_by_name("runs")
    names = {run.info.run_id: run.info.run_name for run in client.search_runs([experiment.experiment_id])}
    found = {run["info"][0]: run for run in told(client)}
    for run_id, name in names.items():
        files = {path: ask(address, "get-artifact", run_id=run_id, path=path) for path in found[name]["files"]}
        found[name]["files"] = files
    chart = ask(
        address,
        "ajax-api/2.0/mlflow/metrics/get-history-bulk-interval",
        run_ids=list(names),
        metric_key="loss",
        max_results=10,
    )
    found["chart"] = sorted(
        (names[one["run_id"]], one["step"], one["value"], one["timestamp"]) for one in json.loads(chart)["metrics"]
    )
    found["view"] = VIEW_TAG in experiment.tags
    filtered = told(client, filter_string="metrics.loss < 0.1 and params.lr != '0.2'")
    return found | {"filtered": sorted(run["info"][0] for run in filtered)}


IN_OLD_MLFLOW = [pytest.param(one, marks=[pytest.mark.compat, pytest.mark.timeout(1200)]) for one in MLFLOWS]


@dataclass(frozen=True)
class View:
    """A view of `runs` at `address`, in the environment of `python`."""

    runs: Path
    address: str
    python: Path


@pytest.fixture(scope="module", params=["of today", *IN_OLD_MLFLOW])
def view(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[View]:
    """Show runs of every kind in one version of MLflow."""
    version, python = request.param, Path(sys.executable)
    runs = make_all_runs(tmp_path_factory.mktemp("view") / "runs")
    if version in MLFLOWS:
        python = installed(f"mlflow-{version}", MLFLOWS[version]) / "python"
    with viewed(runs, "mlflow", python) as address:
        yield View(runs, address, python)


def test_mlflow_answers_its_pages_as_after_an_export(view: View, tmp_path: Path) -> None:
    """Runs, points, charts, searches and the bytes of all files are those of a stock server of that version."""
    live = answers(view.address)
    program = None if view.python == Path(sys.executable) else str(view.python.parent / "mlflow")
    server = start_mlflow_server(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "server", program=program)
    try:
        assert not export_runs([view.runs], MlflowExporter(server.uri, "runs")).failed
        stock = answers(server.uri)
    finally:
        server.stop()
    assert len(live) == 10 + 3
    for part, said in stock.items():
        assert live[part] == said, part
    assert live.keys() == stock.keys()


@pytest.mark.parametrize("view", ["of today"], indirect=True)
def test_mlflow_refuses_other_names_of_this_machine(view: View) -> None:
    """A web page whose name points to 127.0.0.1 cannot read the runs through a browser."""
    place = f"{view.address}/ajax-api/2.0/mlflow/experiments/search?max_results=1"
    assert [answer_code(place, host) for host in ("localhost", "evil.example")] == [200, 403]


@pytest.mark.compat
@pytest.mark.timeout(1200)
def test_an_old_tensorboard_answers_as_the_one_of_today(tmp_path: Path) -> None:
    """TensorBoard 2.16, the oldest that is supported, has the same data on every dashboard."""
    runs = make_runs(tmp_path)
    with viewed(runs, "tensorboard", installed("tensorboard-2.16", OLD_TENSORBOARD) / "python") as address:
        old = everything(address)
    with viewed(runs, "tensorboard") as address:
        assert old == everything(address)

"""Servers of MLflow 2.22, 3.0 and 3.4 hold what the current release holds, through their API and their database."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bridge.errors import TargetRefusedError
from bridge.exporters.contract import find_exporter
from bridge.sync.export import export_runs
from bridge.sync.report import Action
from tests.crash.test_mlflow_kill import Growing, kill_and_heal
from tests.deltas import make_model_run
from tests.exporters.mlflow.conftest import Store
from tests.fixtures.proxy import Fault, proxy_to

if TYPE_CHECKING:
    from tests.fixtures.mlflow_server import MlflowServer
    from tests.zygote import Zygote

pytestmark = [pytest.mark.compat, pytest.mark.timeout(1200)]

ROWS = 700
"""So many that old servers take several requests for the points of each metric."""
LONG = [{"step": step, "loss": 1.0 / (step + 1), "val/acc": step / ROWS} for step in range(ROWS)]


class OldStore(Store):
    """A client of the old server; the current one would ask it for models."""

    def files(self, folder: str = "", run_id: str | None = None) -> list[str]:
        from mlflow.artifacts import list_artifacts

        root = self.client.get_run(run_id or self.run().info.run_id).info.artifact_uri
        uri = f"{root}/{folder}" if folder else root
        found: list[str] = []
        for file in list_artifacts(artifact_uri=uri, tracking_uri=self.uri):
            path = f"{folder}/{Path(file.path).name}".lstrip("/")
            found += self.files(path, run_id) if file.is_dir else [path]
        return sorted(found)


def export(folder: Path, **options: Any) -> Action:
    """Export one run directory and return the action."""
    (line,) = export_runs([folder], find_exporter("mlflow")(**options)).runs
    assert line.action not in (Action.FAILED, Action.UNREADABLE), line.reason
    return line.action


@pytest.mark.parametrize("road", ["server", "server and database"])
def test_a_growing_run_is_as_in_the_current_release(
    old_server: MlflowServer, mlflow_server: MlflowServer, tmp_path: Path, road: str
) -> None:
    """A run that is new, grows, rewinds and ends is the same on the old and the new server."""
    growing = Growing(tmp_path / "runs" / "run")
    experiment = f"growing-{tmp_path.name}"
    into_old: dict[str, Any] = {"tracking_uri": old_server.uri, "experiment": experiment}
    if road != "server":
        into_old["database_uri"] = old_server.backend
    for part in range(4):
        growing.grow(part, ROWS)
        export(growing.path, **into_old)
    growing.end()
    export(growing.path, **into_old)
    assert export(growing.path, **into_old) is Action.UNCHANGED
    export(growing.path, tracking_uri=mlflow_server.uri, experiment=experiment)
    old, new = OldStore(old_server.uri, experiment=experiment), Store(mlflow_server.uri, experiment=experiment)
    assert (old.facts(), old.content()) == (new.facts(), new.content())


def test_an_old_database_is_not_migrated(old_server: MlflowServer, tmp_path: Path) -> None:
    """A database of the old release is refused before MLflow's client migrates it."""
    old = Path(old_server.backend.removeprefix("sqlite:///"))
    copy = tmp_path / "old.db"
    shutil.copy(old, copy)
    before = copy.read_bytes()
    growing = Growing(tmp_path / "runs" / "run")
    growing.grow(0)
    with pytest.raises(TargetRefusedError, match="another MLflow version") as caught:
        export(growing.path, tracking_uri=f"sqlite:///{copy}", experiment="x")
    assert "mlflow db upgrade" in str(caught.value.hint)
    assert copy.read_bytes() == before


def test_a_killed_export_is_healed_by_the_next(heavy: Zygote, old_server: MlflowServer, tmp_path: Path) -> None:
    """A server up to 3.8 refuses a request that it holds in part, so only missing points are sent again."""
    assert kill_and_heal(heavy, old_server.uri, tmp_path, seed=11, rows=ROWS, store=OldStore) > 0


@pytest.mark.parametrize("fault", [Fault.RESET_AFTER, Fault.STATUS_AFTER, Fault.CUT])
def test_answers_that_are_lost(
    old_server: MlflowServer, tmp_path: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests whose answers are lost leave one run, equal to a clean export."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    run = make_model_run(tmp_path / "run", params={"lr": 0.1}, tags=("project:x",), notes="notes")
    clean = OldStore(old_server.uri, experiment=f"clean-{fault.name}-{tmp_path.name}")
    clean.export(run, LONG)
    with proxy_to(old_server.uri) as proxy:
        store = OldStore(proxy.uri, experiment=f"faulty-{fault.name}-{tmp_path.name}")
        for path in ("experiments/create", "runs/create", "runs/log-batch", "runs/update", "mlflow-artifacts"):
            proxy.plan(fault, path=path)
        store.export(run, LONG)
        proxy.heal()
        assert (store.facts(), store.content()) == (clean.facts(), clean.content())


def test_points_of_a_stopped_export_are_completed(old_server: MlflowServer, tmp_path: Path) -> None:
    """An export continues after a request of several metrics that the server holds in part."""
    from mlflow.entities import Metric

    run = make_model_run(tmp_path / "run")
    store = OldStore(old_server.uri, experiment=f"partly-{tmp_path.name}")
    first = [{"step": 0, "loss": 1.0, "val/acc": 0.5}]
    store.export(run, first)
    rest = [{"step": step, "loss": 1.0 / step, "val/acc": step / 300} for step in range(1, 300)]
    run_id = store.run().info.run_id
    some = [
        Metric(name, row[name], 1775822400000 + 1000 * int(row["step"]), int(row["step"]))
        for row in rest[::2]
        for name in ("loss", "val/acc")
    ]
    for at in range(0, len(some), 100):
        store.client.log_batch(run_id, metrics=some[at : at + 100])
    store.export(run, rest)
    assert [step for step, _, _ in store.points("loss")] == list(range(300))
    assert [value for _, value, _ in store.points("val/acc")[1:]] == [row["val/acc"] for row in rest]

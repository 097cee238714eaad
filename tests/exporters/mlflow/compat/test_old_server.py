"""A server of MLflow 2.22 takes what one of the current release takes, through its API and through its database."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bridge.errors import TargetRefusedError
from bridge.exporters import find_exporter
from bridge.sync.export import export_runs
from bridge.sync.report import Action
from tests.crash.test_mlflow_kill import Growing, content
from tests.exporters.mlflow.conftest import Store

if TYPE_CHECKING:
    from tests.fixtures.mlflow_server import MlflowServer

pytestmark = [pytest.mark.compat, pytest.mark.timeout(1200)]


class OldStore(Store):
    """The old server works with the current client, which would ask it for models."""

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
    """Export one run directory; what was done."""
    (line,) = export_runs([folder], find_exporter("mlflow")(**options)).runs
    assert line.action not in (Action.FAILED, Action.UNREADABLE), line.reason
    return line.action


@pytest.mark.parametrize("road", ["server", "server and database"])
def test_a_growing_run_is_as_in_the_current_release(
    old_server: MlflowServer, mlflow_server: MlflowServer, tmp_path: Path, road: str
) -> None:
    """New, grown, rewound, ended and exported once more: the old server holds what the new one holds."""
    growing = Growing(tmp_path / "runs" / "run")
    experiment = f"growing-{tmp_path.name}"
    into_old: dict[str, Any] = {"tracking_uri": old_server.uri, "experiment": experiment}
    if road != "server":
        into_old["database_uri"] = old_server.backend
    for part in range(4):
        growing.grow(part)
        export(growing.path, **into_old)
    growing.end()
    export(growing.path, **into_old)
    assert export(growing.path, **into_old) is Action.UNCHANGED
    export(growing.path, tracking_uri=mlflow_server.uri, experiment=experiment)
    old, new = OldStore(old_server.uri, experiment=experiment), Store(mlflow_server.uri, experiment=experiment)
    assert content(old, old.run()) == content(new, new.run())


def test_an_old_database_is_not_migrated(old_server: MlflowServer, tmp_path: Path) -> None:
    """A database of the old release as tracking URI is refused before MLflow's client would migrate it."""
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

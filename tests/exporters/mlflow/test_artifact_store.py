"""An unusable artifact store costs no points, and every later export tries it again."""

from __future__ import annotations

import shutil
import sys
import tempfile
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from bridge.errors import TargetRefusedError
from bridge.exporters.mlflow.address import Address
from bridge.exporters.mlflow.media import ArtifactUpload
from bridge.exporters.mlflow.write_api import ApiRuns
from bridge.model import NoticeKind
from bridge.options import ContentOptions
from bridge.sync.export import Options, export_runs
from bridge.sync.verify import verify_runs
from tests.deltas import delta_of, make_model_run, notices_of
from tests.exporters.mlflow.conftest import Store
from tests.exporters.mlflow.test_rebuild import log_picture
from tests.fixtures.proxy import Fault
from tests.run_dirs import CREATED_S, make_run, write_metrics

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fixtures.mlflow_server import MlflowServer
    from tests.fixtures.proxy import FaultyProxy

ROWS = [{"step": step, "loss": 1.0 / (step + 1)} for step in range(3)]
OPTIONS = Options(content=ContentOptions())


def run_with_picture(folder: Path, **fields: str) -> Path:
    """Make an ended run directory with points, a picture and hyperparameters."""
    path = make_run(folder / "runs" / "a", ROWS, hparams={"f(x)": 1}, uid="a")
    log_picture(path, step=1, session=0, **fields)
    return path


def export_without_files(store: Store, path: Path, action: str = "new") -> str:
    """Export, assert that all but the files arrives, and return what the notice says."""
    (line,) = export_runs([path], store.exporter(), OPTIONS).runs
    (notice,) = (notice for notice in notices_of(line) if notice.kind is NoticeKind.REFUSED)
    run, points = store.run(), store.points("loss")
    assert (str(line.action), notice.what) == (action, "artifacts")
    assert (run.info.status, run.data.params, len(points)) == ("FINISHED", {"f_x_": "1"}, 3)
    return notice.detail


def check_healed(store: Store, path: Path) -> None:
    """Assert that the next export sends the files, and that then nothing is new."""
    (line,) = export_runs([path], store.exporter(), OPTIONS).runs
    assert (str(line.action), line.media) == ("changed", 1)
    assert {"sidecar.json", "metrics.csv", "media.jsonl"} <= set(store.files())
    assert len(store.files("images")) == 2
    (line,) = export_runs([path], store.exporter(), OPTIONS).runs
    assert str(line.action) == "unchanged"
    assert [str(line.verdict) for line in verify_runs([path], store.exporter()).runs] == ["="]


def test_a_folder_that_cannot_be_written(store: Store, tmp_path: Path) -> None:
    """Points, params and status arrive, and the files follow once the store is back."""
    blocked = tmp_path / "artifacts"
    blocked.write_text("not a folder")
    store.client.create_experiment("trials", artifact_location=blocked.as_uri())
    path = run_with_picture(tmp_path)
    for action in ("new", "changed"):
        detail = export_without_files(store, path, action)
        assert ("The next export sends them" in detail, "--no-artifacts" in detail) == (True, True)
    (check,) = verify_runs([path], store.exporter()).runs
    pending = {"files that could not be stored", "hparams.yaml", "media.jsonl", "metrics.csv", "sidecar.json"}
    assert (pending <= set(check.behind.facts), check.behind.media_lines) == (True, 1)
    blocked.unlink()
    check_healed(store, path)


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("unknown://bucket/folder", "unknown"),
        ("cloud://bucket/folder", "no credentials"),
        ("mlflow-artifacts:/7", "--database-uri DATABASE"),
    ],
)
@pytest.mark.parametrize("caption", ["", "seen"])
def test_a_store_that_mlflow_cannot_use(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str, says: str, caption: str
) -> None:
    """No plug-in knows the scheme, the library that MLflow loads at the first call fails, or a server has the files."""
    from mlflow.store.artifact import artifact_repository_registry as registry

    class CloudError(Exception):
        """The library's own error."""

    class CloudRepository:
        def __init__(self, *_: object, **__: object) -> None:
            """Take any address."""

        def __getattr__(self, _: str) -> Callable[..., None]:
            """Return a method that fails, for uploads and lists."""
            return self.fail

        def fail(self, *_: object) -> None:
            monkeypatch.setitem(
                sys.modules, "botocore.exceptions", SimpleNamespace(BotoCoreError=CloudError, ClientError=CloudError)
            )
            raise CloudError("no credentials")

    monkeypatch.setattr("bridge.exporters.mlflow.errors.RETRY_PAUSES_S", ())
    monkeypatch.setitem(registry._artifact_repository_registry._registry, "cloud", CloudRepository)
    store.client.create_experiment("trials", artifact_location=location)
    path = run_with_picture(tmp_path, caption=caption)
    assert says in export_without_files(store, path)
    (check,) = verify_runs([path], store.exporter()).runs
    assert (str(check.verdict), "files that could not be stored" in check.behind.facts) == ("=", True)


def test_files_that_a_server_keeps_follow_through_the_server(
    server: Store, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    """After an export that is given only the server's database, one through the server sends the files."""
    server.client.create_experiment(server.experiment)
    path = run_with_picture(tmp_path)
    export_without_files(Store(mlflow_server.backend, experiment=server.experiment), path)
    check_healed(server, path)


def test_a_rebuild_in_a_database_whose_files_a_server_keeps(store: Store) -> None:
    """The run is rebuilt, and a notice says where files that people added are."""
    store.client.create_experiment("trials", artifact_location="mlflow-artifacts:/7")
    run = make_model_run()
    store.export(run, ROWS)
    old = store.run().info.run_id
    done = store.rebuild(run, [delta_of(run, ROWS[:1])])
    assert any(f"the deleted run {old}" in notice.detail for notice in done.notices)
    assert (store.run().info.run_id != old, len(store.points("loss"))) == (True, 1)


def test_a_file_that_the_store_refuses_is_not_looked_for(store: Store) -> None:
    """A refused file is a notice. That the server does not list it is no fault of the others."""
    asked: list[set[str]] = []

    class Api(ApiRuns):
        """A server that stores nothing below `media`."""

        def upload_file(self, run_id: str, file: Path, folder: str | None) -> None:
            """Refuse some files."""
            if folder == "media":
                raise TargetRefusedError("no", hint="")

        def check_visible(self, run_id: str, names: set[str]) -> None:
            """Note the names."""
            asked.append(names)

    upload = ArtifactUpload(api=Api(Address.of(store.uri)), run_id="run")
    for path in ("media/a", "b"):
        upload.add(path, b"")
    assert [notice.what for notice in upload.finish(is_shared_path=True)] == ["media/a"]
    assert asked == [{"b"}]


def test_a_temporary_folder_that_cannot_be_written(
    server: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points and facts arrive, and the files follow once there is room again."""
    path = run_with_picture(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
        export_without_files(server, path)
    check_healed(server, path)


def test_a_file_that_grows_while_it_is_sent(server: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file arrives as it was, since rows that are logged during its request would spoil the next request."""
    path = run_with_picture(tmp_path)
    before = (path / "metrics.csv").read_bytes()
    upload_file = ApiRuns.upload_file

    def grow(self: ApiRuns, run_id: str, file: Path, folder: str | None) -> None:
        if file.name == "metrics.csv":
            write_metrics(path, ("step", "loss", "wall_time"), [(3, 0.1, CREATED_S + 3)], append=True)
        upload_file(self, run_id, file, folder)

    with monkeypatch.context() as patch:
        patch.setattr(ApiRuns, "upload_file", grow)
        export_runs([path], server.exporter(), OPTIONS)
    assert server.artifact("metrics.csv") == before


def test_a_sweep_whose_files_cannot_be_stored_is_whole_otherwise(store: Store, tmp_path: Path) -> None:
    """No parent or child is left empty and RUNNING."""
    blocked = tmp_path / "artifacts"
    blocked.write_text("not a folder")
    store.client.create_experiment("trials", artifact_location=blocked.as_uri())
    for name in ("a", "b"):
        make_run(tmp_path / "runs" / name, ROWS, uid=name, tags=["sweep:lr"])
    export_runs([tmp_path / "runs"], store.exporter(), OPTIONS)
    assert [run.info.status for run in store.runs()] == ["FINISHED"] * 3


def test_a_server_whose_store_is_down(
    faulty_proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that answers 500 for files is tried once, not for each run."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    store = Store(faulty_proxy.uri, experiment=f"store-down-{tmp_path.name}")
    path = run_with_picture(tmp_path)
    faulty_proxy.plan(Fault.STATUS, path="mlflow-artifacts", times=1000, status=500)
    export_without_files(store, path)
    faulty_proxy.heal()
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    check_healed(store, path)


def test_a_server_that_does_not_see_the_path_of_its_files(server: Store, tmp_path: Path) -> None:
    """If files go to a path of this machine, the server's list shows that they did not arrive."""
    root, path = tmp_path / "root", run_with_picture(tmp_path)
    other = Store(server.uri, experiment=f"{server.experiment} elsewhere")
    for store in (server, other):
        store.client.create_experiment(store.experiment, artifact_location=str(root))
    (line,) = export_runs([path], server.exporter(), OPTIONS).runs
    assert "artifacts" not in [notice.what for notice in notices_of(line)]
    # On another machine the same path is another folder. Here the files vanish between upload and list.
    with pytest.MonkeyPatch.context() as patch:
        stored = "mlflow.store.artifact.local_artifact_repo.LocalArtifactRepository.log_artifact"
        patch.setattr(stored, lambda *_: shutil.rmtree(root, ignore_errors=True))
        detail = export_without_files(other, path)
    assert ("does not see the files" in detail, "--artifacts-destination" in detail) == (True, True)
    check_healed(other, path)

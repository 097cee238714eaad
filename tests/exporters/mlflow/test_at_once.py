"""Two exports of one run at once leave the files of the newer one, whichever stores its files last."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from bridge.exporters.mlflow import delta_writer
from bridge.exporters.mlflow.media import ArtifactUpload
from bridge.sync.export import export_runs
from bridge.sync.report import Action
from bridge.sync.verify import verify_runs
from tests.deltas import file_of
from tests.exporters.mlflow.conftest import Store
from tests.property.living_run import LivingRun

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ODD = "odd ~tag#1"


@pytest.fixture(params=["sqlite_uri", "postgres_uri", "server"])
def place(request: pytest.FixtureRequest) -> Store:
    found = request.getfixturevalue(request.param)
    return found if isinstance(found, Store) else Store(found)


def add_pictures(run: LivingRun) -> None:
    """Log a row, a picture, and one under a tag that MLflow refuses."""
    run.log([repr(1.0)], stride=1)
    run.picture("samples")
    run.picture(ODD)


def captions(store: Store) -> list[str]:
    """Return the captions in the table, sorted."""
    return sorted(row[3] for row in json.loads(store.artifact("bridge/captions.json"))["data"])


def check_whole(store: Store, run: LivingRun) -> None:
    """Check that all captions and names are there, that nothing is new, and that verify finds no difference."""
    assert captions(store) == sorted(f"picture {number + 1}" for number in range(run.pictures))
    assert list(json.loads(store.artifact("bridge/media.json")).values()) == [ODD]
    (line,) = export_runs([run.path], store.exporter()).runs
    assert (line.action, line.reason) == (Action.UNCHANGED, "")
    assert [str(check.verdict) for check in verify_runs([run.path], store.exporter()).runs] == ["="]
    assert not {"mlflow.bridge.pending", "mlflow.bridge.pending_media"} & store.run().data.tags.keys()


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "grown"])
def test_an_export_that_stores_its_files_late_loses_none(
    place: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_new: bool
) -> None:
    """An export has read the run and the table in MLflow. Before it stores its own, another one brings in more."""
    run = LivingRun(tmp_path / "run")
    if not is_new:
        add_pictures(run)
        export_runs([run.path], place.exporter())
    add_pictures(run)
    finish: Callable[..., Any] = delta_writer.add_captions
    others = [True]

    def late(*arguments: Any) -> None:
        if others:
            others.clear()
            add_pictures(run)
            run.edit(notes="newer", status="completed")
            export_runs([run.path], place.exporter())
        finish(*arguments)

    monkeypatch.setattr(delta_writer, "add_captions", late)
    export_runs([run.path], place.exporter())
    export_runs([run.path], place.exporter())  # the first one wrote the facts of the run as it had read them
    check_whole(place, run)


@pytest.mark.parametrize("name", ["captions", "media"])
@pytest.mark.parametrize("held", [b"", b'{"columns": ["tag', None], ids=["empty", "torn", "missing"])
def test_a_table_that_cannot_be_read_is_made_from_all_media(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, held: bytes | None
) -> None:
    """A table that a stopped server left torn does not cost the captions or names that it held."""
    monkeypatch.setattr(delta_writer, "RETRY_PAUSES_S", ())
    run = LivingRun(tmp_path / "run")
    for _ in range(2):
        add_pictures(run)
        export_runs([run.path], store.exporter())
    (file,) = tmp_path.glob(f"mlartifacts/*/*/artifacts/bridge/{name}.json")
    file.unlink() if held is None else file.write_bytes(held)
    add_pictures(run)
    (line,) = export_runs([run.path], store.exporter()).runs
    assert not line.failed
    check_whole(store, run)


def test_a_caption_that_is_lost_is_a_difference(store: Store, tmp_path: Path) -> None:
    """An export that is killed beside another one may leave an older table."""
    run = LivingRun(tmp_path / "run")
    add_pictures(run)
    export_runs([run.path], store.exporter())
    (file,) = tmp_path.glob("mlartifacts/*/*/artifacts/bridge/captions.json")
    table = json.loads(file.read_bytes())
    file.write_text(json.dumps(table | {"data": table["data"][1:]}))
    (check,) = verify_runs([run.path], store.exporter()).runs
    assert (str(check.verdict), check.differences.count) == ("*", 1)


def test_a_local_artifact_is_replaced_at_one_instant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that stops while it stores a file leaves the old one whole, and nothing beside it."""
    folder, source = tmp_path / "run" / "artifacts", tmp_path / "model.ckpt"
    source.write_bytes(b"new")
    ArtifactUpload(folder).add("checkpoints/model.ckpt", b"old one")

    def stop(_: Any, copy: Any) -> None:
        copy.write(b"n")
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfileobj", stop)
    with pytest.raises(KeyboardInterrupt):
        ArtifactUpload(folder).add_file("checkpoints/model.ckpt", file_of(source))
    found = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert [(file.name, file.read_bytes()) for file in found] == [("model.ckpt", b"old one")]

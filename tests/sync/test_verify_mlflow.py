"""Verify over a real MLflow database finds changes made behind MLflow's back, and nothing else."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from bridge.exporters.contract import find_exporter
from bridge.exporters.mlflow.client import MlflowApi
from bridge.options import ContentOptions
from bridge.sync.export import Options, export_runs
from bridge.sync.verify import verify_runs
from tests.contract.test_media import run_with_images
from tests.run_dirs import CREATED_S, make_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlflow import MlflowClient

    from bridge.exporters.contract import Exporter

ROWS = [{"step": step, "loss": 0.1 * step, "acc": step} for step in range(20)]
BEST = Options(content=ContentOptions(best=("acc:max", "loss:min")))


@pytest.fixture(scope="module")
def exported(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a folder with a run that was exported, points, params and images, and a copy of the folder."""
    folder = tmp_path_factory.mktemp("verify")
    shutil.copy(sqlite_template, folder / "mlflow.db")
    run = run_with_images(folder / "runs" / "a")
    make_run(run, ROWS, hparams={"lr": 0.1, "n": 3}, tags=["t", "project:x"], notes="n")
    export_runs([run], exporter_of(folder))
    return folder, shutil.copytree(folder, folder / "copy")


@pytest.fixture
def folder(exported: tuple[Path, Path]) -> Iterator[Path]:
    """Yield the folder, and put it back as it was: `runs`, `mlartifacts` and `mlflow.db`."""
    folder, copy = exported
    yield folder
    for name in ("runs", "mlartifacts"):
        shutil.rmtree(folder / name)
        shutil.copytree(copy / name, folder / name)
    # MLflow keeps its connections to the database, so the file must stay the same one.
    with closing(sqlite3.connect(copy / "mlflow.db")) as before, closing(sqlite3.connect(folder / "mlflow.db")) as now:
        before.backup(now)


@pytest.fixture
def exporter(folder: Path) -> Exporter:
    return exporter_of(folder)


@pytest.fixture
def run(folder: Path) -> Path:
    return folder / "runs" / "a"


@pytest.fixture
def client(folder: Path) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def exporter_of(folder: Path) -> Exporter:
    return find_exporter("mlflow")(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}", experiment="verify")


def found(path: Path, exporter: Exporter) -> list[tuple[str, str, int | None, str | None, str | None]]:
    (line,) = verify_runs([path], exporter).runs
    return [(str(one.verdict), one.what, one.step, one.expected, one.found) for one in line.differences.first]


def execute(folder: Path, statement: str) -> None:
    """Change the database directly, by a statement that must affect exactly one row."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection, connection:
        assert connection.execute(statement).rowcount == 1


def test_an_exported_run_is_the_same(run: Path, exporter: Exporter) -> None:
    """After an export every point, param, tag and image is equal, and the metrics of `--best` are no extra series."""
    (line,) = verify_runs([run], exporter).runs
    assert (str(line.verdict), line.reason, line.differences.first) == ("=", "", ())
    assert (line.compared.series, line.compared.points, line.compared.media, line.compared.params) == (2, 40, 3, 2)
    assert not line.behind
    export_runs([run], exporter, BEST)
    assert found(run, exporter) == []


def test_files_are_read_once_for_all_portions(run: Path, exporter: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose metrics are compared in portions has its images and other files read once."""
    monkeypatch.setattr("bridge.sync.verify.READ_AT_ONCE_BYTES", 0)
    monkeypatch.setattr("bridge.sync.verify.PORTION", 1)
    downloaded, download = [], MlflowApi.download

    def note(api: MlflowApi, run_id: str, path: str, into: Path) -> Path:
        downloaded.append(path)
        return download(api, run_id, path, into)

    monkeypatch.setattr(MlflowApi, "download", note)
    (line,) = verify_runs([run], exporter).runs
    assert (str(line.verdict), line.compared.series, line.compared.media) == ("=", 2, 3)
    assert "images" in downloaded
    assert len(downloaded) == len(set(downloaded))


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("DELETE FROM metrics WHERE key = 'acc' AND step = 3", ("+", "acc", 3, "3.0", None)),
        (
            "UPDATE metrics SET value = 0.7000001 WHERE key = 'loss' AND step = 7",
            ("*", "loss", 7, "0.7000000000000001", "0.7000001"),
        ),
        (
            "UPDATE metrics SET timestamp = timestamp + 1000 WHERE key = 'loss' AND step = 7",
            ("*", "loss (time)", 7, str(CREATED_S + 7), str(CREATED_S + 8)),
        ),
        ("UPDATE latest_metrics SET value = -7 WHERE key = 'acc'", ("*", "acc (last)", 19, "19.0", "-7.0")),
        ("UPDATE latest_metrics SET step = step - 5 WHERE key = 'loss'", ("*", "loss (last, step)", 19, "19", "14")),
        (
            "UPDATE latest_metrics SET timestamp = timestamp - 5000 WHERE key = 'loss'",
            ("*", "loss (last, time)", 19, str(CREATED_S + 19), str(CREATED_S + 14)),
        ),
        (
            "UPDATE runs SET end_time = end_time + 5000 WHERE name = 'a'",
            ("*", "end", None, str(CREATED_S + 3600), str(CREATED_S + 3605)),
        ),
        (
            "UPDATE runs SET status = 'FAILED' WHERE name = 'a'",
            ("*", "status", None, "FINISHED (completed)", "FAILED"),
        ),
        ("UPDATE params SET value = '0.2' WHERE key = 'lr'", ("*", "param lr", None, "0.1", "0.2")),
        (
            "UPDATE tags SET value = 'x' WHERE key = 'mlflow.bridge.run_id'",
            ("*", "tag mlflow.bridge.run_id", None, "a", "x"),
        ),
        (
            "DELETE FROM tags WHERE key = 'mlflow.loggedImages'",
            ("+", "tag mlflow.loggedImages", None, "any value", None),
        ),
    ],
)
def test_a_change_in_the_database_is_found(
    folder: Path, run: Path, exporter: Exporter, statement: str, expected: tuple[object, ...]
) -> None:
    """Whatever is not as it was exported is named with both values."""
    execute(folder, statement)
    assert found(run, exporter) == [expected]


@pytest.mark.parametrize(
    ("statement", "sign", "held"),
    [
        ("UPDATE latest_metrics SET value = -7 WHERE key = 'acc.best'", "*", "-7.0"),
        ("DELETE FROM latest_metrics WHERE key = 'acc.best'", "+", None),
    ],
)
def test_a_best_that_is_another_is_found(
    folder: Path, run: Path, exporter: Exporter, statement: str, sign: str, held: str | None
) -> None:
    """A latest value of `--best` that is not the best, or is missing, is named."""
    export_runs([run], exporter, BEST)
    execute(folder, statement)
    assert found(run, exporter) == [(sign, "acc.best (last)", 19, "19.0", held)]


def pictures(folder: Path, ending: str) -> list[Path]:
    """Return the stored files of the image at step 5 whose names end in `ending`."""
    return [file for file in (folder / "mlartifacts").rglob(f"*{ending}") if "+step+5+" in file.name]


@pytest.mark.parametrize("sign", ["+", "*"])
def test_a_picture_that_is_missing_or_another_is_found(folder: Path, run: Path, exporter: Exporter, sign: str) -> None:
    """An image without its files in the artifact store, or with one other byte, is named."""
    (file,) = pictures(folder, ".png")
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    if sign == "+":
        for each in file.parent.glob(f"{file.stem}*"):
            each.unlink()
    assert [one[:3] for one in found(run, exporter)] == [(sign, "media val/samples (media/c.png)", 5)]


@pytest.mark.parametrize("damage", ["gone", "another picture", "no picture"])
def test_a_preview_that_is_missing_or_another_is_found(
    folder: Path, run: Path, exporter: Exporter, damage: str
) -> None:
    """The grid shows previews, so each is compared with its picture."""
    (preview,) = pictures(folder, "+compressed.webp")
    if damage == "another picture":
        with Image.open(preview) as picture:
            size = picture.size
        Image.effect_noise(size, 200).save(preview)
    elif damage == "no picture":
        preview.write_bytes(b"no picture")
    else:
        preview.unlink()
    ((sign, what, *_),) = found(run, exporter)
    assert (sign, what.startswith("the preview of images/")) == ("+" if damage == "gone" else "*", True)


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_copy_of_a_file_that_is_another_is_found(folder: Path, run: Path, exporter: Exporter, damage: str) -> None:
    """Changed copies of metrics.csv and other files are found."""
    (copy,) = (folder / "mlartifacts").rglob("metrics.csv")
    if damage == "gone":
        copy.unlink()
    else:
        copy.write_bytes(copy.read_bytes().replace(b"19", b"91"))
    assert [one[:2] for one in found(run, exporter)] == [("+" if damage == "gone" else "*", "the copy of metrics.csv")]


def test_a_missing_run_is_found(run: Path, exporter: Exporter, client: MlflowClient) -> None:
    """A run that a person deleted, and one that was never exported, are only in the source."""
    client.delete_run(run_id_of(client))
    make_run(run.parent / "b", ROWS)
    first, second = verify_runs([run.parent], exporter).runs
    assert (str(first.verdict), "deleted" in first.reason, str(second.verdict)) == ("+", True, "+")


def test_a_second_target_of_one_run_is_found(run: Path, exporter: Exporter, client: MlflowClient) -> None:
    """A second run of the same identity is extra."""
    first = client.get_run(run_id_of(client))
    client.create_run(first.info.experiment_id, tags=dict(first.data.tags))
    report = verify_runs([run], exporter)
    assert sorted(str(line.verdict) for line in report.runs) in (["-", "="], ["*", "-"])
    assert report.exit_code == 4


def test_runs_that_are_not_ours_are_never_looked_at(run: Path, exporter: Exporter, client: MlflowClient) -> None:
    """Other runs in the experiment are no difference."""
    client.create_run(client.get_run(run_id_of(client)).info.experiment_id, run_name="a")
    assert [str(line.verdict) for line in verify_runs([run], exporter).runs] == ["="]


def test_edits_in_the_ui_are_equal(run: Path, exporter: Exporter, client: MlflowClient) -> None:
    """An edited name, description and tag are named, and the run is equal."""
    run_id = run_id_of(client)
    client.update_run(run_id, name="my name")
    client.set_tag(run_id, "mlflow.note.content", "my notes")
    client.set_tag(run_id, "project", "y")
    client.set_tag(run_id, "mine", "1")
    (line,) = verify_runs([run], exporter).runs
    assert (str(line.verdict), line.differences.first) == ("=", ())
    assert sorted(line.edited) == ["name", "notes", "tags.project"]


def run_id_of(client: MlflowClient) -> str:
    experiment = client.get_experiment_by_name("verify")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return str(run.info.run_id)

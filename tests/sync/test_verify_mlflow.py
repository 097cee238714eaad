"""Verify over a real MLflow database finds changes made behind MLflow's back, and nothing else."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from bridge.exporters import find_exporter
from bridge.options import ContentOptions
from bridge.sync.export import Options, export_runs
from bridge.sync.verify import VerifyOptions, verify_runs
from tests.contract.test_media import run_with_images
from tests.run_dirs import CREATED_S, make_run

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.exporters.contract import Exporter
    from bridge.sync.report import RunCheck, VerifyReport

ROWS = [{"step": step, "loss": 0.1 * step, "acc": step} for step in range(20)]


@pytest.fixture
def exporter(sqlite_uri: str) -> Exporter:
    return find_exporter("mlflow")(tracking_uri=sqlite_uri, experiment="verify")


@pytest.fixture
def run(tmp_path: Path, exporter: Exporter) -> Path:
    """Make and export a run with points, params and images."""
    path = run_with_images(tmp_path / "runs" / "a")
    make_run(path, ROWS, hparams={"lr": 0.1, "n": 3}, tags=["t", "project:x"], notes="n")
    export_runs([path], exporter)
    return path


def verify(path: Path, exporter: Exporter, **options: object) -> VerifyReport:
    return verify_runs([path], exporter, VerifyOptions(**options))  # type: ignore[arg-type]


def found(path: Path, exporter: Exporter) -> list[tuple[str, str, int | None, str | None, str | None]]:
    (line,) = verify(path, exporter).runs
    return [(str(one.verdict), one.what, one.step, one.expected, one.found) for one in line.differences.first]


def execute(uri: str, statement: str, *values: object) -> None:
    """Change the database directly, by a statement that must affect exactly one row."""
    connection = sqlite3.connect(uri.removeprefix("sqlite:///"))
    with connection:
        assert connection.execute(statement, values).rowcount == 1
    connection.close()


def test_an_exported_run_is_the_same(run: Path, exporter: Exporter) -> None:
    """After an export every point, param, tag and image is equal."""
    (line,) = verify(run, exporter).runs
    assert (str(line.verdict), line.reason, line.differences.first) == ("=", "", ())
    assert (line.compared.series, line.compared.points, line.compared.media, line.compared.params) == (2, 40, 3, 2)
    assert not line.behind


def test_a_volatile_param_that_a_resume_no_longer_has_is_equal(tmp_path: Path, exporter: Exporter) -> None:
    """A volatile param that a resume drops stays in MLflow without a difference."""
    path = make_run(tmp_path / "runs" / "a", ROWS, hparams={"lr": 0.1, "ckpt_path": "/a", "job_id": "1"})
    export_runs([path], exporter)
    make_run(path, ROWS, hparams={"lr": 0.1, "job_id": "2"})
    (done,) = export_runs([path], exporter).runs
    (line,) = verify(path, exporter).runs
    assert (str(done.action), str(line.verdict), line.differences.first) == ("changed", "=", ())


def test_a_deleted_point_is_found(run: Path, exporter: Exporter, sqlite_uri: str) -> None:
    """A point deleted from the database is named."""
    execute(sqlite_uri, "DELETE FROM metrics WHERE key = 'acc' AND step = 3")
    assert found(run, exporter) == [("+", "acc", 3, "3.0", None)]


def test_a_value_changed_in_its_7th_digit_is_found(run: Path, exporter: Exporter, sqlite_uri: str) -> None:
    """A value changed in its seventh digit is named with both values."""
    execute(sqlite_uri, "UPDATE metrics SET value = 0.7000001 WHERE key = 'loss' AND step = 7")
    assert found(run, exporter) == [("*", "loss", 7, "0.7000000000000001", "0.7000001")]


def test_a_wrong_last_value_is_found(run: Path, exporter: Exporter, sqlite_uri: str) -> None:
    """A wrong last value in MLflow's table of latest metrics is named."""
    execute(sqlite_uri, "UPDATE latest_metrics SET value = -7 WHERE key = 'acc'")
    assert found(run, exporter) == [("*", "acc (last)", 19, "19.0", "-7.0")]


BEST = Options(content=ContentOptions(best=("acc:max", "loss:min")))


def test_a_running_best_is_the_same(run: Path, exporter: Exporter) -> None:
    """The metric of `--best` is equal, and no extra series."""
    export_runs([run], exporter, BEST)
    assert found(run, exporter) == []


def test_a_best_that_is_another_is_found(run: Path, exporter: Exporter, sqlite_uri: str) -> None:
    """A latest value of `--best` that is not the best is named."""
    export_runs([run], exporter, BEST)
    statement = "UPDATE latest_metrics SET value = -7 WHERE key = 'acc.best'"
    execute(sqlite_uri, f"{statement} AND run_uuid IN (SELECT run_uuid FROM runs WHERE lifecycle_stage = 'active')")
    assert found(run, exporter) == [("*", "acc.best (last)", 19, "19.0", "-7.0")]


def test_a_time_changed_by_a_second_is_found(run: Path, exporter: Exporter, sqlite_uri: str) -> None:
    """A point with another time than its row is named."""
    execute(sqlite_uri, "UPDATE metrics SET timestamp = timestamp + 1000 WHERE key = 'loss' AND step = 7")
    ((verdict, what, step, _, _),) = found(run, exporter)
    assert (verdict, what, step) == ("*", "loss (time)", 7)


def test_a_wrong_end_time_is_found(run: Path, exporter: Exporter, sqlite_uri: str) -> None:
    """Another end time is found."""
    execute(sqlite_uri, "UPDATE runs SET end_time = end_time + 5000 WHERE name = 'a'")
    assert found(run, exporter) == [("*", "end", None, str(CREATED_S + 3600), str(CREATED_S + 3605))]


def test_a_wrong_status_is_found(run: Path, exporter: Exporter, sqlite_uri: str) -> None:
    """Another status is found."""
    execute(sqlite_uri, "UPDATE runs SET status = 'FAILED' WHERE name = 'a'")
    assert [one[:2] for one in found(run, exporter)] == [("*", "status")]


def test_a_changed_param_is_found(run: Path, exporter: Exporter, sqlite_uri: str) -> None:
    """Another param value is found."""
    execute(sqlite_uri, "UPDATE params SET value = '0.2' WHERE key = 'lr'")
    assert found(run, exporter) == [("*", "param lr", None, "0.1", "0.2")]


def test_a_missing_image_is_found(run: Path, exporter: Exporter, tmp_path: Path) -> None:
    """An image without its files in the artifact store is found."""
    images = [file for file in tmp_path.rglob("*.png") if "+step+5+" in file.name]
    assert images
    for file in images:
        for each in file.parent.glob(file.stem + "*"):
            each.unlink()
    differences = found(run, exporter)
    assert [(one[0], one[1], one[2]) for one in differences] == [("+", "media val/samples (media/c.png)", 5)]


def test_a_changed_image_is_found(run: Path, exporter: Exporter, tmp_path: Path) -> None:
    """An image with one other byte is found."""
    (file,) = [file for file in tmp_path.rglob("*.png") if "+step+5+" in file.name]
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    assert [(one[0], one[1], one[2]) for one in found(run, exporter)] == [("*", "media val/samples (media/c.png)", 5)]


def test_a_missing_run_is_found(run: Path, exporter: Exporter, sqlite_uri: str) -> None:
    """A run deleted by a person is only in the source, and the line says so."""
    from mlflow import MlflowClient

    client = MlflowClient(sqlite_uri)
    client.delete_run(run_id_of(client))
    (line,) = verify(run, exporter).runs
    assert str(line.verdict) == "+"
    assert "deleted" in line.reason


def test_a_run_that_was_never_exported_is_found(run: Path, exporter: Exporter) -> None:
    """A run without a target is only in the source."""
    make_run(run.parent / "b", ROWS)
    assert signs(verify(run.parent, exporter)) == {"a": "=", "b": "+"}


def test_a_second_target_of_one_run_is_found(run: Path, exporter: Exporter, sqlite_uri: str) -> None:
    """A second run of the same identity is extra."""
    from mlflow import MlflowClient

    client = MlflowClient(sqlite_uri)
    first = client.get_run(run_id_of(client))
    client.create_run(first.info.experiment_id, tags=dict(first.data.tags))
    report = verify(run, exporter)
    assert sorted(str(line.verdict) for line in report.runs) in (["-", "="], ["*", "-"])
    assert report.exit_code == 4


def test_runs_that_are_not_ours_are_never_looked_at(run: Path, exporter: Exporter, sqlite_uri: str) -> None:
    """Other runs in the experiment are no difference."""
    from mlflow import MlflowClient

    client = MlflowClient(sqlite_uri)
    client.create_run(client.get_run(run_id_of(client)).info.experiment_id, run_name="a")
    assert signs(verify(run, exporter)) == {"a": "="}


def test_edits_in_the_ui_are_equal(run: Path, exporter: Exporter, sqlite_uri: str) -> None:
    """An edited name, description and tag are named, and the run is equal."""
    from mlflow import MlflowClient

    client = MlflowClient(sqlite_uri)
    run_id = run_id_of(client)
    client.update_run(run_id, name="my name")
    client.set_tag(run_id, "mlflow.note.content", "my notes")
    client.set_tag(run_id, "project", "y")
    client.set_tag(run_id, "mine", "1")
    (line,) = verify(run, exporter).runs
    assert (str(line.verdict), line.differences.first) == ("=", ())
    assert {"name", "notes"} <= set(line.edited)


def test_a_sample(run: Path, exporter: Exporter, sqlite_uri: str) -> None:
    """A sample of one compares only the first metric's points."""
    execute(sqlite_uri, "DELETE FROM metrics WHERE key = 'loss' AND step = 3")
    line: RunCheck
    (line,) = verify(run, exporter, sample=1).runs
    assert (str(line.verdict), line.compared.series, line.compared.points) == ("=", 1, 20)


def run_id_of(client: object) -> str:
    """Return the id of the one run named a."""
    experiment = client.get_experiment_by_name("verify")  # type: ignore[attr-defined]
    runs = client.search_runs([experiment.experiment_id])  # type: ignore[attr-defined]
    (run,) = [run for run in runs if run.info.run_name == "a"]
    return str(run.info.run_id)


def signs(report: VerifyReport) -> dict[str, str]:
    return {line.run_id: str(line.verdict) for line in report.runs}


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE tags SET value = 'x' WHERE key = 'mlflow.bridge.run_id'", ("*", "tag mlflow.bridge.run_id")),
        ("DELETE FROM tags WHERE key = 'mlflow.bridge.source'", ("+", "tag mlflow.bridge.source")),
        ("DELETE FROM tags WHERE key = 'mlflow.loggedImages'", ("+", "tag mlflow.loggedImages")),
    ],
)
def test_a_tag_of_the_bridge_that_is_not_as_written_is_found(
    run: Path, exporter: Exporter, sqlite_uri: str, statement: str, expected: tuple[str, str]
) -> None:
    """Tags by which the bridge and MLflow's pages find content are compared too."""
    execute(sqlite_uri, statement)
    assert [one[:2] for one in found(run, exporter)] == [expected]


def test_a_missing_preview_is_found(run: Path, exporter: Exporter, tmp_path: Path) -> None:
    """An image without its preview is not in the grid, and is found."""
    preview = next(file for file in tmp_path.rglob("*+compressed.webp") if "+step+5+" in file.name)
    preview.unlink()
    ((sign, what, *_),) = found(run, exporter)
    assert (sign, what.startswith("the preview of images/"), "+step+5+" in what) == ("+", True, True)


def test_a_preview_that_shows_something_else_is_found(run: Path, exporter: Exporter, tmp_path: Path) -> None:
    """A preview is compared with its picture, and not only looked for."""
    preview = next(file for file in tmp_path.rglob("*+compressed.webp") if "+step+5+" in file.name)
    with Image.open(preview) as picture:
        size = picture.size
    Image.effect_noise(size, 200).save(preview)
    assert [one[0] for one in found(run, exporter)] == ["*"]
    preview.write_bytes(b"no picture")
    ((sign, what, *_),) = found(run, exporter)
    assert (sign, what.startswith("the preview of images/")) == ("*", True)


@pytest.mark.parametrize(("column", "word"), [("step", "step"), ("timestamp", "time")])
def test_a_latest_value_at_another_step_or_time_is_found(
    run: Path, exporter: Exporter, sqlite_uri: str, column: str, word: str
) -> None:
    """Step and time of the value that MLflow's table shows are compared too."""
    execute(sqlite_uri, f"UPDATE latest_metrics SET {column} = {column} - 5 WHERE key = 'loss'")
    assert [one[:2] for one in found(run, exporter)] == [("*", f"loss (last, {word})")]


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_copy_of_a_file_that_is_another_is_found(run: Path, exporter: Exporter, tmp_path: Path, damage: str) -> None:
    """Changed copies of metrics.csv and other files are found."""
    (copy,) = [file for file in tmp_path.rglob("metrics.csv") if file.parent != run]
    if damage == "gone":
        copy.unlink()
    else:
        copy.write_bytes(copy.read_bytes().replace(b"19", b"91"))
    assert [one[:2] for one in found(run, exporter)] == [("+" if damage == "gone" else "*", "the copy of metrics.csv")]

"""Export directories of TensorBoardLogger."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from bridge.exporters.contract import find_exporter
from bridge.options import ContentOptions, SelectionOptions
from bridge.registry import open_registry
from bridge.rundir import read_run
from bridge.sync.export import Options, export_runs
from bridge.sync.select import Selection
from bridge.sync.verify import verify_runs
from tests.cli.calling import call
from tests.exporters.tensorboard.event_files import file_of, rows
from tests.memory_exporter import MemoryExporter
from tests.pictures import png
from tests.rundir.event_writing import START, age, append, picture, scalar, write_events

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """Write a log directory with two runs, the first of them requeued."""
    folder = tmp_path / "logs"
    write_events(folder / "version_0", 0, [("loss", step, step / 8, START + step) for step in range(10)])
    write_events(folder / "version_0", 1, [("loss", step, step / 4, START + 100 + step) for step in range(5, 12)])
    write_events(folder / "version_1", 0, [("acc", step, step / 8, START + step) for step in range(3)])
    append(
        min((folder / "version_0").iterdir()),
        picture("samples", 3, START + 3, png(1)),
        picture("samples", 9, START + 9, png(2), png(3), is_tensor=True),
    )
    age(folder)
    return folder


def test_growth_is_seen_by_the_registry_and_by_verify(logs: Path) -> None:
    """`ls` reads an old run again once a later start writes to it; verify takes new records of any file for behind."""
    exporter = MemoryExporter()
    export_runs([logs], exporter)
    assert open_registry(logs)["version_0"].summary == {"loss": 2.75}
    first, second = sorted((logs / "version_0").iterdir())
    append(first, scalar("acc", 20, 0.5, START + 500))
    append(second, scalar("loss", 12, 3.0, START + 500))
    age(logs, 3000)
    assert open_registry(logs)["version_0"].summary == {"loss": 3.0, "acc": 0.5}
    (check, _) = verify_runs([logs], exporter).runs
    assert (str(check.verdict), check.behind.rows, check.differences.first) == ("=", 2, ())


def test_deleted_event_files_cost_the_target_nothing(logs: Path) -> None:
    """The target keeps points, images and start of a file that is deleted; verify says so and finds no difference."""
    exporter = MemoryExporter()
    export_runs([logs], exporter)
    first, second = sorted((logs / "version_0").iterdir())
    first.unlink()
    for _ in range(2):
        append(second, scalar("loss", 12, 3.0, START + 500))
        age(logs, 3000)
        export_runs([logs], exporter)
        held = exporter.open(read_run(logs / "version_0"), ContentOptions()).read()
        assert (held.start, held.series["loss"].step.tolist(), len(held.media)) == (START, list(range(13)), 3)
        (check, _) = verify_runs([logs], exporter).runs
        assert (str(check.verdict), check.differences.first) == ("=", ())
        assert check.reason == "the target keeps 10 rows of event files that are deleted"


def test_verify_finds_bytes_that_changed_in_an_event_file(logs: Path) -> None:
    """A value that changed in a file of the same size is a difference in the event files."""
    exporter = MemoryExporter()
    export_runs([logs], exporter)
    write_events(logs / "version_1", 0, [("acc", step, max(step, 0.5) / 8, START + step) for step in range(3)])
    (_, check) = verify_runs([logs], exporter).runs
    assert [(one.file, one.what, one.step, one.expected, one.found) for one in check.differences.first] == [
        ("event files", "acc", 0, "0.0625", "0.0")
    ]


def test_a_kind_of_run_directory_selects(logs: Path) -> None:
    """`--kind` chooses by who wrote the directory, in every command; `ls` shows the kinds if there are several."""
    (logs / "csv").mkdir()
    (logs / "csv" / "metrics.csv").write_text("loss,step\n2.0,0\n")
    age(logs)
    kinds = ["--kind", "CSVLogger"]

    def said(*words: str) -> str:
        return call(*words)[1]

    columns = [line.split()[2] for line in said("ls", str(logs)).splitlines()]
    assert sorted(columns) == ["CSVLogger", "TensorBoardLogger", "TensorBoardLogger", "kind"]
    shown = said("ls", str(logs), *kinds)
    assert [line.split()[0] for line in shown.splitlines()] == ["name", "csv"]
    assert "kind" not in shown
    best = json.loads(said("best", "loss", str(logs), *kinds, "--json"))
    assert [run["name"] for run in best["runs"]] == ["csv"]
    selection = Selection.of(SelectionOptions(kinds=["TensorBoardLogger"], where="kind = TensorBoardLogger"))
    exporter = MemoryExporter()
    report = export_runs([logs], exporter, Options(selection=selection))
    assert [line.run_id for line in report.runs] == ["version_0", "version_1"]
    report = export_runs([logs], exporter, Options(selection=Selection.of(SelectionOptions(kinds=["RegistryLogger"]))))
    assert (report.runs, report.exit_code) == ((), 0)
    assert report.no_match == "0 of 3 runs match --kind RegistryLogger."


def test_tensorboard_reads_them_itself(logs: Path, tmp_path: Path) -> None:
    """An export to TensorBoard skips them with one line, unless a run directory is named."""
    exporter = find_exporter("tensorboard")(logdir=tmp_path / "tb")
    report = export_runs([logs], exporter)
    assert (report.runs, report.exit_code) == ((), 0)
    assert report.warnings == (
        f"2 runs of event files are left out: `tensorboard --logdir {logs}` shows them already.",
    )
    assert verify_runs([logs], exporter).runs == ()
    report = export_runs([logs / "version_0"], exporter)
    assert [(line.run_id, line.points, line.media) for line in report.runs] == [("version_0", 12, 3)]
    assert [str(line.verdict) for line in verify_runs([logs / "version_0"], exporter).runs] == ["="]


def test_a_file_beside_leaves_the_order_of_each_metric(tmp_path: Path) -> None:
    """If an older file grew beside that of `add_scalars`, each metric's records are appended in their order."""
    run_dir = tmp_path / "resnet"
    oldest = write_events(run_dir, 0, [("loss", 0, 0.5, START)])
    write_events(run_dir / "both_a", 1, [("both", 0, 0.25, START + 1)])
    age(tmp_path)

    def exported(name: str) -> Path:
        assert export_runs([run_dir], find_exporter("tensorboard")(logdir=tmp_path / name)).exit_code == 0
        return file_of(tmp_path / name / "resnet", "scalars")

    before = exported("logs").read_bytes()
    append(oldest, scalar("loss", 1, 0.25, START + 2), scalar("loss", 2, 0.125, START + 3))
    age(tmp_path, 3000)
    assert exported("logs").read_bytes().startswith(before)
    kept, clean = (sorted(rows(exported(name)), key=lambda row: list(row[2])) for name in ("logs", "clean"))
    assert kept == clean
    assert [step for step, *_ in kept] == [0, 0, 1, 2]


def test_mlflow_holds_them(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow gets the exact float32 values with their own times, and the images as they are."""
    monkeypatch.chdir(tmp_path)
    exporter = find_exporter("mlflow")(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    report = export_runs([logs], exporter)
    assert [(line.media, line.points, line.reason) for line in report.runs] == [(3, 12, ""), (0, 3, "")]
    held = exporter.open(read_run(logs / "version_0"), ContentOptions()).read()
    series = held.series["loss"]
    assert dict(zip(series.step.tolist(), series.value.tolist(), strict=True))[11] == 2.75
    assert dict(zip(series.step.tolist(), series.time.tolist(), strict=True))[11] == START + 111
    assert [(item.tag, item.step, item.index) for item in held.media] == [
        ("samples", 3, 0),
        ("samples", 9, 0),
        ("samples", 9, 1),
    ]
    stored = sorted(path.read_bytes() for path in (tmp_path / "mlruns").rglob("images/*.png"))
    assert stored == sorted([png(1), png(2), png(3)])
    assert sorted(path.name for path in logs.rglob("*.png")) == []
    assert [str(line.verdict) for line in verify_runs([logs], exporter).runs] == ["=", "="]
    assert {str(line.action) for line in export_runs([logs], exporter).runs} == {"unchanged"}

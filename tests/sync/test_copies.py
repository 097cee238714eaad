"""Of several copies of a run directory the original is exported."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from bridge.exporters.tensorboard import TensorBoardExporter
from bridge.model import Status
from bridge.rundir import read_run
from bridge.sync.export import export_runs
from bridge.sync.report import Verdict
from bridge.sync.verify import verify_runs
from tests.run_dirs import CREATED_S, make_run, write_metrics

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.sync.report import Report

ROWS = [{"step": step, "loss": 1.0 / (step + 1)} for step in range(5)]


def export(root: Path, *runs: Path) -> Report:
    return export_runs(runs or [root / "runs"], TensorBoardExporter(root / "tb"))


def actions(report: Report, root: Path) -> dict[str, str]:
    return {run.path.removeprefix(f"{root}/"): str(run.action) for run in report.runs}


def copy(run: Path, to: Path, *, rows: int | None = None) -> Path:
    """Copy a run directory with only its first rows."""
    shutil.copytree(run, to)
    if rows is not None:
        lines = (to / "metrics.csv").read_bytes().splitlines(keepends=True)
        (to / "metrics.csv").write_bytes(b"".join(lines[: rows + 1]))
    return to


def test_a_backup_beside_the_original(tmp_path: Path) -> None:
    """The directory at its run_dir is exported, and the copy is named without a failure."""
    run = make_run(tmp_path / "runs" / "a", ROWS)
    copy(run, tmp_path / "runs" / "a.bak", rows=2)
    report = export(tmp_path)
    assert actions(report, tmp_path) == {"runs/a": "new", "runs/a.bak": "copy"}
    assert report.runs[1].reason == f"a copy of {run}"
    assert (report.exit_code, report.totals.points) == (0, 5)
    assert actions(export(tmp_path), tmp_path) == {"runs/a": "unchanged", "runs/a.bak": "copy"}


def test_copies_of_a_run_that_moved(tmp_path: Path) -> None:
    """If none is at its run_dir, the path that shares the most trailing parts with it decides."""
    run = make_run(tmp_path / "runs" / "sweep" / "a", ROWS, run_dir="/elsewhere/sweep/a")
    copy(run, tmp_path / "runs" / "backup" / "a")
    report = export(tmp_path)
    assert actions(report, tmp_path) == {"runs/sweep/a": "new", "runs/backup/a": "copy"}


@pytest.mark.parametrize("is_moved", [True, False])
def test_copies_that_nothing_tells_apart(tmp_path: Path, is_moved: bool) -> None:
    """If none or both of two directories are at their run_dir, none is exported, and each names the other."""
    run = make_run(tmp_path / "runs" / "one", ROWS, **{"run_dir": "/elsewhere/a"} if is_moved else {})
    two = copy(run, tmp_path / "runs" / "two")
    (two / "sidecar.json").write_text((two / "sidecar.json").read_text().replace(str(run), str(two)))
    report = export(tmp_path)
    assert actions(report, tmp_path) == {"runs/one": "failed", "runs/two": "failed"}
    assert f"{run} and {two} hold the same run" in report.runs[0].reason
    assert "nothing tells which of them is the original" in report.runs[0].reason
    assert (report.exit_code, (tmp_path / "tb" / "one").exists()) == (1, False)


def test_an_older_copy_alone_is_left_alone(tmp_path: Path) -> None:
    """A backup exported alone removes nothing that the original sent."""
    run = make_run(tmp_path / "runs" / "a", ROWS)
    backup = copy(run, tmp_path / "backup" / "a", rows=2)
    export(tmp_path)
    report = export(tmp_path, backup)
    assert actions(report, tmp_path) == {"backup/a": "copy"}, report.runs
    assert "the target holds more rows" in report.runs[0].reason
    check = verify_runs([backup], TensorBoardExporter(tmp_path / "tb")).runs[0]
    assert (check.verdict, check.reason) == (Verdict.DIFFERENT, report.runs[0].reason)
    assert actions(export(tmp_path), tmp_path) == {"runs/a": "unchanged"}


def test_a_copy_without_times_of_a_run_that_states_no_status(tmp_path: Path) -> None:
    """The files of a CSVLogger run look new after `cp -r`, and that is no change; new rows are one."""
    run = tmp_path / "runs" / "version_0"
    run.mkdir(parents=True)
    write_metrics(run, ["loss", "step"], [(1.0 / (step + 1), step) for step in range(5)])
    (run / "hparams.yaml").write_text("lr: 0.1\n")
    os.utime(run / "metrics.csv", (CREATED_S, CREATED_S))
    os.utime(run / "hparams.yaml", (CREATED_S - 3600, CREATED_S - 3600))
    assert actions(export(tmp_path), tmp_path) == {"runs/version_0": "new"}
    for path in run.iterdir():
        os.utime(path)
    assert read_run(run).status is Status.RUNNING
    assert actions(export(tmp_path), tmp_path) == {"runs/version_0": "unchanged"}
    assert verify_runs([run], TensorBoardExporter(tmp_path / "tb")).equal
    write_metrics(run, ["loss", "step"], [(0.1, 5)], append=True)
    assert export(tmp_path).runs[0].reason == "changed: status, end"

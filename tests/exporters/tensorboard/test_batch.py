"""Several runs written together: all data are on the disk before the first state, and no run is lost silently."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from bridge.exporters.tensorboard import TensorBoardExporter, target
from bridge.sync.export import export_runs
from tests.run_dirs import make_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bridge.exporters.tensorboard.target import TensorBoardTarget
    from bridge.model import Run
    from bridge.options import ContentOptions

RUNS = 5


class Interrupted(TensorBoardExporter):
    """Raises KeyboardInterrupt at the third run."""

    def open(self, run: Run, content: ContentOptions) -> TensorBoardTarget:
        if run.run_id == "run2":
            raise KeyboardInterrupt
        return super().open(run, content)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(RUNS):
        make_run(tmp_path / "runs" / f"run{number}", [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}])
    return tmp_path / "runs"


def test_data_first_states_second(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event files of all runs are flushed while no run has a state, then the states, before they get their name."""
    flushed: list[tuple[int, int, int]] = []

    def flush(paths: Sequence[str]) -> None:
        events = [path for path in paths if "tfevents" in path]
        states = len(list((tmp_path / "logs").rglob("bridge-state.json")))
        flushed.append((len(events), len(paths) - len(events), states))

    monkeypatch.setattr(target, "flush_files", flush)
    assert export_runs([root], TensorBoardExporter(tmp_path / "logs")).exit_code == 0
    assert flushed == [(2 * RUNS, 0, 0), (0, RUNS, 0)]
    assert len(list((tmp_path / "logs").rglob("bridge-state.json"))) == RUNS


def test_a_disk_that_fails_at_the_end(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the data cannot be flushed, every run of the batch has failed; the next export brings them all in."""

    def fail(paths: Sequence[str]) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(target, "flush_files", fail)
    report = export_runs([root], TensorBoardExporter(tmp_path / "logs"))
    assert [line.action for line in report.runs] == ["failed"] * RUNS
    assert all(line.reason.endswith("Input/output error.") and line.retry for line in report.runs)
    assert not list((tmp_path / "logs").rglob("bridge-state.json"))
    monkeypatch.undo()
    report = export_runs([root], TensorBoardExporter(tmp_path / "logs"))
    assert ([line.points for line in report.runs], report.exit_code) == ([2] * RUNS, 0)


def test_an_interrupt_keeps_what_was_written(root: Path, tmp_path: Path) -> None:
    """Ctrl-C within a batch: runs that were written whole are acknowledged, and the next export sends the others."""
    with pytest.raises(KeyboardInterrupt):
        export_runs([root], Interrupted(tmp_path / "logs"))
    actions = [line.action for line in export_runs([root], TensorBoardExporter(tmp_path / "logs")).runs]
    assert sorted(actions) == ["new", "new", "new", "unchanged", "unchanged"]

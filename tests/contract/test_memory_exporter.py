"""The reference exporter: that its failures happen where they were ordered, and that nothing is lost by any of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bridge.errors import TargetRefusedError, TargetUnavailableError
from bridge.options import ContentOptions
from bridge.rundir import read_run
from bridge.sync.export import export_runs
from bridge.sync.verify import verify_runs
from tests.deltas import make_block, make_delta
from tests.memory_exporter import MEMORY, Failure, MemoryExporter
from tests.run_dirs import make_run

ROWS = [{"step": step, "loss": 1.0 / (step + 1), "acc": step} for step in range(6)]

DIE = """
import sys
from pathlib import Path
from tests.memory_exporter import Failure, MemoryExporter
from bridge.sync.export import export_runs
at = sys.argv[3] if sys.argv[3] == "cursor" else int(sys.argv[3])
exporter = MemoryExporter(Path(sys.argv[2]), failure=Failure(at=at, after=sys.argv[4] == "after", die=True))
export_runs([Path(sys.argv[1])], exporter)
"""


def held(folder: Path) -> list[tuple[int, float]]:
    run = read_run(folder.parent / "runs" / "a")
    series = MemoryExporter(folder).open(run, ContentOptions()).read().series["loss"]
    return list(zip(series.step.tolist(), series.value.tolist(), strict=True))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", [1, 2, 3, 4, 5, "cursor"])
def test_a_failure_at_any_write_is_healed(tmp_path: Path, at: int | str, after: bool) -> None:
    """Whichever write fails, before or after it took place, the next export ends equal to a clean one."""
    path = make_run(tmp_path / "runs" / "a", ROWS)
    failing = MemoryExporter(tmp_path / "boxes", failure=Failure(at=at, after=after))  # type: ignore[arg-type]
    export_runs([path], failing)
    export_runs([path], failing)
    assert held(tmp_path / "boxes") == [(row["step"], row["loss"]) for row in ROWS]
    assert [str(run.verdict) for run in verify_runs([path], failing).runs] == ["="]


def test_the_failure_is_reported(tmp_path: Path) -> None:
    """A write that fails is that run's failure, and its cursor is not written."""
    path = make_run(tmp_path / "runs" / "a", ROWS)
    exporter = MemoryExporter(failure=Failure(at="cursor"))
    report = export_runs([path], exporter)
    assert [str(run.action) for run in report.runs] == ["failed"]
    assert exporter.cursors([read_run(path)])["uid-a"].cursor is None
    assert exporter.cursors([read_run(path)])["uid-a"].exists


@pytest.mark.parametrize("when", ["before", "after"])
def test_death_at_the_cursor_is_healed(tmp_path: Path, when: str) -> None:
    """A process that is killed just before or after its cursor leaves a target that the next export completes."""
    path = make_run(tmp_path / "runs" / "a", ROWS)
    command = [sys.executable, "-c", DIE, str(path), str(tmp_path / "boxes"), "cursor", when]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(root)}, check=False)
    assert done.returncode == -signal.SIGKILL
    exporter = MemoryExporter(tmp_path / "boxes")
    cursor = exporter.cursors([read_run(path)])["uid-a"].cursor
    assert (cursor is not None) == (when == "after")
    export_runs([path], exporter)
    assert held(tmp_path / "boxes") == [(row["step"], row["loss"]) for row in ROWS]


def test_processes_share_a_folder(tmp_path: Path) -> None:
    """What one exporter writes into a folder another one reads, and its cursor is strict JSON."""
    path = make_run(tmp_path / "runs" / "a", ROWS)
    export_runs([path], MemoryExporter(tmp_path / "boxes"))
    box = MemoryExporter(tmp_path / "boxes").box("uid-a")
    assert box is not None
    assert box.cursor is not None
    assert json.loads(box.cursor)["rows"] == 6


def test_edits_stay(tmp_path: Path) -> None:
    """What a person edited is reported and survives exports and rebuilds."""
    path = make_run(tmp_path / "runs" / "a", ROWS, notes="mine")
    exporter = MemoryExporter()
    export_runs([path], exporter)
    exporter.edit("uid-a", notes="theirs")
    make_run(path, ROWS[:2], notes="changed")
    export_runs([path], exporter)
    read = exporter.open(read_run(path), ContentOptions()).read()
    assert (read.notes, len(read.series["loss"].step)) == ("theirs", 2)
    (check,) = verify_runs([path], exporter).runs
    assert (str(check.verdict), check.edited) == ("=", ("notes",))


def test_steps_that_fall_are_refused_where_they_must_rise(tmp_path: Path) -> None:
    """A target of ordered steps takes no delta that was read for another kind of target."""
    path = make_run(tmp_path / "runs" / "a", [{"step": 4, "loss": 1.0}, {"step": 2, "loss": 2.0}])
    run = read_run(path)
    exporter = MemoryExporter(capabilities=replace(MEMORY, ordered_steps=True))
    delta = make_delta(run, [make_block([4, 2], {"loss": [1.0, 2.0]})])
    with pytest.raises(TargetRefusedError, match="do not increase"):
        exporter.open(run, ContentOptions()).apply(delta)


def test_an_ordered_failure_happens_once() -> None:
    """A failure counts writes down, happens at its own and then no more."""
    failure = Failure(at=2)
    assert [failure.is_due(cursor=False) for _ in range(4)] == [False, True, False, False]
    with pytest.raises(TargetUnavailableError):
        failure.happen()
    cursor = Failure(at="cursor")
    assert [cursor.is_due(cursor=carries) for carries in (False, True, True)] == [False, True, False]

"""An export reports progress to a terminal, a log file or a callback, also from other processes."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from io import StringIO
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from bridge.cli import progress
from bridge.cli.output import Output
from bridge.cli.progress import BarProgress, LineProgress
from bridge.options import ExportOptions
from bridge.sync import parallel
from bridge.sync.export import Options, export_runs
from bridge.sync.follow import follow
from bridge.sync.parallel import Workers
from bridge.sync.report import Action, Progress, RunReport
from tests.cli.calling import on_a_terminal
from tests.memory_exporter import MEMORY, MemoryExporter
from tests.run_dirs import make_run

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Recorded(Progress):
    """Records all calls of a progress as words."""

    told: list[str] = field(default_factory=list)
    points: int = 0

    def start(self, runs: int) -> None:
        self.told.append(f"{runs} runs")

    def moved(self, points: int) -> None:
        self.told.append("moved")
        self.points += points

    def run_done(self, report: RunReport) -> None:
        self.told.append(f"{report.run_id} done")


def rows(count: int) -> list[dict[str, object]]:
    return [{"step": step, "loss": step / 8} for step in range(count)]


@pytest.mark.parametrize(
    ("changes", "processes", "moves"),
    [({}, 1, 10), ({"single_writer": True}, 2, 10), ({}, 2, 1), ({"threads": True}, 2, 1)],
    ids=["here", "one writer", "processes", "threads"],
)
def test_progress_within_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], processes: int, moves: int
) -> None:
    """In this process each delta is reported before its run ends; elsewhere all points come at the end."""
    monkeypatch.setattr(parallel, "WORTH_WORKERS", 0)
    for name, count in (("large", 1000), ("small", 10)):
        make_run(tmp_path / "runs" / name, rows(count))
    told = Recorded()
    # A run of a thousand points is many deltas here.
    exporter = MemoryExporter(tmp_path / "boxes", capabilities=replace(MEMORY, points_a_delta=100, **changes))
    export_runs([tmp_path / "runs"], exporter, Options(workers=Workers(processes=processes)), progress=told)
    assert (told.told[0], told.points) == ("2 runs", 1010)
    assert told.told[: told.told.index("large done")].count("moved") >= moves


def test_each_pass_of_a_follow_has_its_progress(tmp_path: Path) -> None:
    """A follow reports progress like an export."""
    make_run(tmp_path / "runs" / "a", rows(10))
    told = Recorded()
    follow(
        [tmp_path / "runs"],
        MemoryExporter(tmp_path / "boxes"),
        Options(),
        ExportOptions(until_done=True),
        told=lambda _report: None,
        say=lambda _message: None,
        progress=lambda: told,
    )
    assert told.told == ["1 runs", "moved", "a done"]


def test_lines_say_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log file gets runs, points with their rate, and the remaining time once a run is done."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = StringIO()
    lines = LineProgress(stream)
    lines.start(3)
    for second in (4, 10, 15):
        now[0] = 1000.0 + second
        lines.moved(2500)
    now[0] = 1020.0
    lines.run_done(RunReport(path="/runs/a", run_id="a", action=Action.NEW))
    assert stream.getvalue() == (
        "0 of 3 runs done, 5,000 points, 500 points/s\n1 of 3 runs done, 7,500 points, 375 points/s, about 40 s left\n"
    )


class Terminal(StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_a_log_lines_and_quiet_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream decides the form unless --quiet is given. An export that takes a moment draws no bar."""
    for stream, quiet, kind in (
        (Terminal(), False, BarProgress),
        (StringIO(), False, LineProgress),
        (Terminal(), True, Progress),
    ):
        monkeypatch.setattr(sys, "stderr", stream)
        with Output(quiet=quiet).progress(after=60) as progress:
            assert type(progress) is kind
            progress.start(1)
            progress.moved(10)
        assert stream.getvalue() == ""


def test_a_real_terminal_shows_a_bar(tmp_path: Path) -> None:
    """The bar shows runs, points and the remaining time, and disappears at the end."""
    make_run(tmp_path / "runs" / "a", rows(20_000))
    words = ("-m", "bridge", "export", "runs", "--to", "tensorboard")
    seen = on_a_terminal(*words, stream="stderr", cwd=tmp_path, env={"TERM": "xterm", "COLUMNS": "100"})
    frame = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    assert re.search(r"runs +━+ +1/1 +0:00:00 +20,000 points, [\d,]+ points/s", frame), frame
    assert seen.endswith("\x1b[2K")

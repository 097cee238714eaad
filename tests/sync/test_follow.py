"""Follow passes over a growing tree while target and source come and go."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from bridge.errors import TargetRefusedError, TargetUnavailableError
from bridge.options import ExportOptions
from bridge.sync.export import Options
from bridge.sync.follow import follow
from tests.memory_exporter import MemoryExporter
from tests.run_dirs import make_run, write_metrics, write_sidecar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from bridge.exporters.contract import TargetState
    from bridge.model import Run
    from bridge.options import ContentOptions
    from bridge.sync.report import Report
    from tests.memory_exporter import MemoryTarget


class Over(BaseException):
    """Ends a scripted follow, as a signal's exception ends a real one."""


@dataclass
class Script:
    """What happens between the passes of a follow instead of waiting, and the messages."""

    events: list[Callable[[], object]]
    waits: list[float] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def pause(self, seconds: float) -> None:
        self.waits.append(seconds)
        if not self.events:
            raise Over
        self.events.pop(0)()

    def lines(self) -> list[list[tuple[str, str, int]]]:
        return [[(line.run_id, str(line.action), line.points) for line in report.runs] for report in self.reports]


def run_script(
    root: Path | list[Path], script: Script, exporter: MemoryExporter | None = None, **following: Any
) -> int | None:
    """Follow into a new target by default. Return the exit code of a follow that ends by itself."""
    roots = root if isinstance(root, list) else [root]
    how = ExportOptions(**following)
    target = exporter or MemoryExporter()
    try:
        return follow(
            roots, target, Options(), how, told=script.reports.append, say=script.said.append, pause=script.pause
        )
    except Over:
        return None


class Flaky(MemoryExporter):
    """An exporter whose target can be taken away."""

    away = False
    asked = 0

    def cursors(self, runs: Sequence[Run]) -> Mapping[str, TargetState]:
        self.asked += 1
        if self.away:
            raise TargetUnavailableError("The server does not answer.")
        return super().cursors(runs)


def rows(first: int, last: int) -> list[dict[str, object]]:
    return [{"step": step, "loss": step / 8} for step in range(first, last)]


def append(run: Path, first: int, last: int) -> None:
    write_metrics(run, (), [[step / 8, step, 1775822400.0 + step] for step in range(first, last)], append=True)


def nothing() -> None:
    """Do nothing."""


def test_new_rows_and_new_runs_are_found_and_only_they_are_sent(tmp_path: Path) -> None:
    """Each pass sends what changed since the last one."""
    first = make_run(tmp_path / "a", rows(0, 4), status="running")
    script = Script([lambda: append(first, 4, 6), nothing, lambda: make_run(tmp_path / "b", rows(0, 2))])
    run_script(tmp_path, script)
    assert script.lines() == [[("a", "new", 4)], [("a", "changed", 2)], [("b", "new", 2)]]


def test_a_pass_over_finished_runs_asks_the_target_nothing(tmp_path: Path) -> None:
    """Finished, unchanged runs cost only stats."""
    make_run(tmp_path / "a", rows(0, 4))
    exporter = Flaky()
    run_script(tmp_path, Script([nothing, nothing, nothing]), exporter)
    assert exporter.asked == 1


def test_an_outage_of_the_target_is_reported_once_and_ends(tmp_path: Path) -> None:
    """An outage is reported once, tries are spaced out, and afterwards everything is sent."""
    run = make_run(tmp_path / "a", rows(0, 4), status="running")
    exporter = Flaky()

    def leave() -> None:
        exporter.away = True
        append(run, 4, 8)

    def come_back() -> None:
        exporter.away = False

    script = Script([leave, nothing, nothing, come_back])
    run_script(tmp_path, script, exporter, interval=10)
    assert script.said == ["The server does not answer. Trying again until it works.", "It works again."]
    assert script.waits == [10, 20, 40, 80, 10]
    assert script.lines() == [[("a", "new", 4)], [("a", "changed", 4)]]


class Refusing(MemoryExporter):
    """An exporter whose target refuses the run `a`."""

    def open(self, run: Run, content: ContentOptions) -> MemoryTarget:
        if run.run_id == "a":
            raise TargetRefusedError("It is not accepted.")
        return super().open(run, content)


def test_a_run_that_the_target_refuses_delays_no_other(tmp_path: Path) -> None:
    """It is tried in each pass and reported once. A follow until all is done ends with the code of an export."""
    make_run(tmp_path / "a", rows(0, 1))
    other = make_run(tmp_path / "b", rows(0, 2), status="running")
    end = [lambda: append(other, 2, 4), nothing, lambda: write_sidecar(other, status="completed")]
    script = Script(end)
    assert run_script(tmp_path, script, Refusing(), interval=10, until_done=True, grace=0) == 3
    assert script.waits == [10, 10, 10]
    assert script.said == []
    assert script.lines() == [[("a", "failed", 0), ("b", "new", 2)], [("b", "changed", 2)], [("b", "changed", 0)]]


def test_a_source_that_disappears_and_returns_is_followed_on(tmp_path: Path) -> None:
    """A file system that disappears and returns is followed again."""
    root, away = tmp_path / "runs", tmp_path / "away"
    run = make_run(root / "a", rows(0, 4), status="running")

    def come_back() -> None:
        shutil.move(away, root)
        append(run, 4, 5)

    script = Script([lambda: shutil.move(root, away), nothing, come_back])
    run_script(root, script)
    assert [said.split(":")[0] for said in script.said] == ["The runs cannot be found", "The runs are there."]
    assert script.lines() == [[("a", "new", 4)], [("a", "changed", 1)]]


def test_a_run_that_fails_is_reported_once_and_tried_when_it_moves(tmp_path: Path) -> None:
    """A broken run is reported once, and tried again when it changes; one that turns out to be a copy is named so."""
    run = make_run(tmp_path / "a", rows(0, 4))
    copy = shutil.copytree(run, tmp_path / "b")
    whole = (run / "sidecar.json").read_text()
    for path in (run, copy):
        (path / "sidecar.json").write_text("[")
    script = Script([nothing, *(lambda path=path: (path / "sidecar.json").write_text(whole) for path in (run, copy))])
    run_script(tmp_path, script)
    assert script.lines() == [[("a", "unreadable", 0), ("b", "unreadable", 0)], [("a", "new", 4)], [("a", "copy", 0)]]


def test_until_done_ends_when_every_run_is_over(tmp_path: Path) -> None:
    """Completed runs are done at once, and killed ones after the grace, since a requeue may follow."""
    make_run(tmp_path / "a", rows(0, 4))
    killed = make_run(tmp_path / "b", rows(0, 2), status="running", heartbeat_age=1000)
    then = time.time() - 1000
    os.utime(killed / "metrics.csv", (then, then))
    assert run_script(tmp_path, Script([nothing, nothing]), until_done=True, grace=3600) is None
    assert run_script(tmp_path, Script([]), until_done=True, grace=500) == 0


def test_until_done_follows_a_requeued_run_to_its_end(tmp_path: Path) -> None:
    """A requeued run is done when it has completed."""
    run = make_run(tmp_path / "a", rows(0, 4), status="running")

    def end() -> None:
        append(run, 4, 6)
        write_sidecar(run, status="completed")

    exporter = MemoryExporter()
    assert run_script(tmp_path, Script([nothing, end]), exporter, until_done=True) == 0
    with exporter.opened() as box:
        assert box.facts["status"] == "completed"


@pytest.mark.parametrize(("names", "code"), [("good bad", 3), ("bad", 1), ("good", 0)])
def test_until_done_ends_with_the_code_of_an_export(tmp_path: Path, names: str, code: int) -> None:
    """An unreadable run sets the exit code of the whole follow."""
    for name in names.split():
        make_run(tmp_path / name, rows(0, 4))
    if "bad" in names:
        (tmp_path / "bad" / "sidecar.json").write_text("[")
    assert run_script(tmp_path, Script([nothing, nothing]), until_done=True, grace=0) == code


def test_a_run_that_cannot_be_read_is_waited_for_during_the_grace(tmp_path: Path) -> None:
    """An unreadable run is done after the grace without a change."""
    run = make_run(tmp_path / "a", rows(0, 4))
    (run / "sidecar.json").write_text("[")
    assert run_script(tmp_path, Script([nothing]), until_done=True, grace=500) is None
    for file in run.iterdir():
        os.utime(file, (time.time() - 1000, time.time() - 1000))
    assert run_script(tmp_path, Script([]), until_done=True, grace=500) == 1


def test_runs_that_are_not_there_yet_are_waited_for(tmp_path: Path) -> None:
    """A missing path is reported once and waited for while other paths are followed."""
    first, second = tmp_path / "first", tmp_path / "second"
    make_run(second / "b", rows(0, 2))
    script = Script([nothing, lambda: make_run(first / "a", rows(0, 4))])
    assert run_script([first, second], script, until_done=True, interval=10) == 0
    assert script.said == [
        f"The runs cannot be found: {first} does not exist. Waiting for them.",
        "The runs are there.",
    ]
    assert script.waits == [10, 10]
    assert script.lines() == [[("b", "new", 2)], [("a", "new", 4)]]


def test_a_path_that_the_file_server_refuses_is_waited_for(tmp_path: Path) -> None:
    """Any answer of the file system but "a folder" is waited through, as that of a server that is away for a while."""
    make_run(tmp_path / "b", rows(0, 2))
    script = Script([nothing])
    refused = tmp_path / ("x" * 300)
    assert run_script([refused, tmp_path], script, until_done=True) is None
    assert script.said == [f"The runs cannot be found: {refused} does not exist. Waiting for them."]
    assert script.lines() == [[("b", "new", 2)]]


def test_the_command_waits_for_its_runs_when_it_follows(tmp_path: Path) -> None:
    """--follow accepts a path that does not exist yet, which is wrong usage otherwise."""
    command = [sys.executable, "-m", "bridge", "export", "runs", "--to", "tensorboard"]
    once = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (once.returncode, "runs does not exist" in once.stderr) == (2, True)
    following = [*command, "--follow", "--until-done", "--interval", "0.1"]
    with subprocess.Popen(
        following, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        make_run(tmp_path / "made", rows(0, 4)).parent.joinpath("runs").symlink_to(tmp_path / "made")
        out, _ = process.communicate(timeout=60)
    assert said == "The runs cannot be found: runs does not exist. Waiting for them.\n"
    assert (process.returncode, out.splitlines()[0]) == (0, "+ made: new, 4 points")

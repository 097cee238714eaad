"""After exports to TensorBoard are killed, the next one leaves the files of one clean export, byte for byte.

Only the generation in a file's name may differ.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from bridge.exporters.tensorboard import TensorBoardExporter
from bridge.rundir import deltas
from bridge.sync.export import export_runs
from tests.property.living_run import LivingRun
from tests.run_dirs import CREATED_S, make_run
from tests.zygote import Kill, Task

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.exporters.contract import Capabilities
    from tests.zygote import Zygote


class InDeltas(TensorBoardExporter):
    """Gets a run in several deltas."""

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, points_a_delta=40)


def export(runs: Path, logdir: Path) -> list[str]:
    """Export in deltas and return the actions."""
    deltas.BETWEEN_LOOKS = 0.0
    return [str(line.action) for line in export_runs([runs], InDeltas(logdir)).runs]


def content(logdir: Path) -> dict[str, bytes]:
    """Return the event files by their paths without the generation."""
    paths = [path for path in logdir.rglob("*") if path.is_file()]
    assert [path for path in paths if path.suffix == ".new"] == []
    events = [path for path in paths if "tfevents" in path.name]
    found = {re.sub(r"\.g\d+$", "", str(path.relative_to(logdir))): path.read_bytes() for path in events}
    assert len(found) == len(events), sorted(events)
    return found


def kills(zygote: Zygote, stride: int, runs: Path, logdir: Path) -> int:
    """Kill an export at each `stride`-th use of the file system and repair it, from what `logdir` holds.

    Return the number of kills. `logdir` holds a clean export in the end.
    """
    before, clean = (logdir.with_name(name) for name in ("before", "clean"))
    for folder in (before, clean):
        shutil.rmtree(folder, ignore_errors=True)
    if logdir.exists():
        shutil.copytree(logdir, before)
    (expected,) = zygote.run(Task(export, (runs, clean)))
    assert expected == ["new"] * len(expected)
    for number in itertools.count():
        shutil.rmtree(logdir, ignore_errors=True)
        if before.exists():
            shutil.copytree(before, logdir)
        killed = zygote.is_killed(Kill(use=stride * (number + 1)), export, runs, logdir)
        zygote.is_killed(None, export, runs, logdir)
        assert content(logdir) == content(clean), number
        if not killed:
            return number
    raise AssertionError


@pytest.mark.parametrize(("stride", "at_least"), [(3, 25), pytest.param(1, 80, marks=pytest.mark.slow)])
def test_killed_at_steps_that_it_takes(light: Zygote, tmp_path: Path, stride: int, at_least: int) -> None:
    """An export killed before any system call, new, growing or rebuilding, is repaired by the next.

    The ordinary suite tries every third.
    """
    run = LivingRun(tmp_path / "runs" / "abc", columns=["loss", "acc"])
    found = 0
    for rows, back in ((60, 0), (30, 0), (90, 90)):
        if back:
            run.requeue(back)
        for at in range(rows):
            if at % 30 == 0:
                run.picture("samples")
            run.log([repr((1 + back) / (at + 1)), "" if at % 3 else repr(at)], stride=1)
        if rows + back != 60:
            run.edit(status="completed")
        os.utime(run.path / "metrics.csv", (CREATED_S, CREATED_S))  # so that no rows wait for later ones
        found += kills(light, stride, tmp_path / "runs", tmp_path / "logs")
    assert found > at_least


def test_an_export_of_several_runs_is_killed(light: Zygote, tmp_path: Path) -> None:
    """An export of several runs, killed before any call: the next one leaves the files of one clean export."""
    for name in ("red", "green", "blue"):
        make_run(tmp_path / "runs" / name, [{"step": step, "loss": step / 8} for step in range(20)])
    found = kills(light, 3, tmp_path / "runs", tmp_path / "logs")
    assert found > 20


def test_two_exports_at_once(light: Zygote, tmp_path: Path) -> None:
    """Two processes that export one new run into one log directory make one complete run without a failure."""
    make_run(tmp_path / "runs" / "a", [{"step": step, "loss": 1 / (step + 1)} for step in range(1_000)])
    export(tmp_path / "runs", tmp_path / "clean")
    both = light.run(*[Task(export, (tmp_path / "runs", tmp_path / "logs"))] * 2)
    assert [done for done in both if done not in (["new"], ["changed"], ["unchanged"])] == []
    assert content(tmp_path / "logs") == content(tmp_path / "clean")

"""After exports to MLflow are killed at random instants, the next one ends equal to one clean export."""

from __future__ import annotations

import logging
import os
import random
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from bridge.exporters.contract import find_exporter
from bridge.exporters.mlflow import write_api
from bridge.exporters.mlflow.tables import Tables
from bridge.sync.verify import verify_runs
from tests.exporters.mlflow.conftest import Store
from tests.property.living_run import LivingRun
from tests.run_dirs import CREATED_S, make_run
from tests.zygote import Kill

if TYPE_CHECKING:
    from pathlib import Path

    from tests.zygote import Zygote

ROWS = 70


def export(uri: str, experiment: str, folder: Path, best: tuple[str, ...] = ()) -> None:
    """Run `bridge export FOLDER --to mlflow`."""
    from bridge.options import ContentOptions
    from bridge.sync.export import Options, export_runs
    from bridge.sync.report import Action

    logging.disable(logging.WARNING)
    exporter = find_exporter("mlflow")(tracking_uri=uri, experiment=experiment)
    report = export_runs([folder], exporter, Options(content=ContentOptions(best=best)))
    failed = [line.reason for line in report.runs if line.action in (Action.FAILED, Action.UNREADABLE)]
    if failed:
        raise AssertionError(failed)


def export_in_parts(uri: str, experiment: str, folder: Path) -> None:
    """Export through a server as if a part of a run were too much for one request. For a process of its own."""
    write_api.POINTS_A_REQUEST = 100
    export(uri, experiment, folder)


@dataclass
class Growing(LivingRun):
    """A run that grows in parts; the third begins with a requeue at an earlier step."""

    columns: list[str] = field(default_factory=lambda: ["loss", "val/acc"])
    facts: dict[str, Any] = field(default_factory=lambda: {"status": "running", "hparams": {"lr": 0.1}, "notes": "n"})

    def grow(self, part: int, rows: int = ROWS) -> None:
        """Append rows and an image with a caption."""
        if part == 2:
            self.requeue(rows // 2)
        for at in range(rows):
            self.log([repr(1 / (self.step + 1)), repr(at / rows)], stride=1)
        self.picture("samples")

    def end(self) -> None:
        """End the training."""
        self.edit(status="completed")


def kill_and_heal(
    zygote: Zygote, uri: str, tmp_path: Path, seed: int, *, rows: int = ROWS, store: type[Store] = Store
) -> int:
    """Export a run that grows by `rows` at a time, killed each time at some instant, then once without a kill.

    Return the number of kills.
    """
    chance = random.Random(seed)
    growing = Growing(tmp_path / "runs" / "run")
    arguments = (uri, f"killed-{tmp_path.name}", growing.path)
    kills, span = 0, 0.5 + rows / 1000
    for part in range(4):
        growing.grow(part, rows)
        if zygote.is_killed(Kill(seconds=chance.uniform(span / 12, span)), export_in_parts, *arguments):
            kills += 1
        else:
            span /= 3  # this machine is faster than that
    growing.end()
    export(*arguments)
    clean = store(uri, experiment=f"clean-{tmp_path.name}")
    export(uri, clean.experiment, growing.path)
    killed = store(uri, experiment=f"killed-{tmp_path.name}")
    assert (killed.facts(), killed.content()) == (clean.facts(), clean.content())
    assert len(killed.points("loss")) == 4 * rows - rows // 2
    return kills


def test_a_killed_export_is_healed_by_the_next(heavy: Zygote, uri: str, tmp_path: Path) -> None:
    """Exports killed while the run grows and rewinds end with one run, equal to a clean export."""
    assert kill_and_heal(heavy, uri, tmp_path, seed=11) > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_many_kills(heavy: Zygote, uri: str, tmp_path: Path, seed: int) -> None:
    """Exports of more rows, killed at many more instants, end the same."""
    kill_and_heal(heavy, uri, tmp_path, seed, rows=10 * ROWS)


SMALL = 3
"""Runs that one export brings in together, in one transaction of a database."""


def add_small_runs(folder: Path, part: int) -> None:
    """Write finished runs that one export brings in together."""
    for number in range(SMALL):
        name, start = f"{part}-{number}", CREATED_S + 100 * number
        rows = [{"step": step, "loss": 1 / (step + 1), "wall_time": start + step} for step in range(9)]
        make_run(folder / name, rows, run_id=name, uid=name, hparams={"lr": 0.1}, tags=["project:x"])


def export_until_the_commit(uri: str, experiment: str, folder: Path) -> None:
    """Export, and kill the process after the last row of a transaction over several runs, before its commit."""
    write_held, runs = Tables.write_held, [0]

    def write_and_die(tables: Tables) -> None:
        held = len({run_id for _, run_id in tables._held.get("tags", ())})
        write_held(tables)
        runs[0] = max(runs[0], held)
        if held > 1:
            os.kill(os.getpid(), signal.SIGKILL)

    Tables.write_held = write_and_die  # type: ignore[method-assign]
    export(uri, experiment, folder)
    raise AssertionError(f"no transaction over several runs was seen, but one over {runs[0]}")


def check_small_runs(uri: str, experiment: str, folder: Path) -> None:
    """Check that every run is in MLflow once, as after a clean export, and that verify finds its points and files."""
    clean = f"clean-{experiment}"
    export(uri, clean, folder)
    killed, whole = (Store(uri, experiment=name).facts() for name in (experiment, clean))
    assert len(killed) == len(list(folder.iterdir()))
    assert killed == whole
    checks = verify_runs([folder], find_exporter("mlflow")(tracking_uri=uri, experiment=experiment)).runs
    assert {str(check.verdict) for check in checks} == {"="}


def kill_small_runs(zygote: Zygote, uri: str, tmp_path: Path, seed: int, parts: int) -> int:
    """Add small runs and kill the export, `parts` times; let the last export end. Return the number of kills."""
    chance, folder, experiment = random.Random(seed), tmp_path / "runs", f"small-{tmp_path.name}"
    kills, span = 0, 0.1
    for part in range(parts):
        add_small_runs(folder, part)
        if zygote.is_killed(Kill(seconds=chance.uniform(0.0001, span)), export, uri, experiment, folder):
            kills += 1
        else:
            span *= 0.6  # this machine is faster than that
    export(uri, experiment, folder)
    check_small_runs(uri, experiment, folder)
    return kills


def test_several_new_runs_survive_a_kill_in_their_transaction(heavy: Zygote, uri: str, tmp_path: Path) -> None:
    """Small runs that were on their way together when the export was killed are there once and whole in the end."""
    assert kill_small_runs(heavy, uri, tmp_path, seed=5, parts=3) > 0


@pytest.mark.parametrize("uri", ["sqlite", "postgresql"], indirect=True)
def test_a_kill_before_the_commit_of_several_runs_writes_none(heavy: Zygote, uri: str, tmp_path: Path) -> None:
    """A transaction over several runs is all or nothing, and the next export brings them all in."""
    folder, experiment = tmp_path / "runs", f"small-{tmp_path.name}"
    add_small_runs(folder, 0)
    assert heavy.is_killed(None, export_until_the_commit, uri, experiment, folder)
    assert Store(uri, experiment=experiment).runs() == []
    export(uri, experiment, folder)
    check_small_runs(uri, experiment, folder)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_many_kills_of_several_new_runs(heavy: Zygote, uri: str, tmp_path: Path, seed: int) -> None:
    """The same at many more instants."""
    kill_small_runs(heavy, uri, tmp_path, seed, parts=10)

"""The runs listed are the runs exported, whatever happened on disk since the last scan."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from bridge.registry import open_registry
from bridge.rundir import discover
from bridge.sync.select import gather
from tests.memory_exporter import MemoryExporter
from tests.run_dirs import make_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Make a tree with a logger's run and a stock CSVLogger's, each in its own folder."""
    runs = tmp_path / "runs"
    make_run(runs / "group" / "ours", [{"step": 0, "acc": 0.5}])
    stock = make_run(runs / "stocks" / "stock", [{"step": 0, "acc": 0.5}])
    (stock / "sidecar.json").unlink()
    return runs


def _move(old: str, new: str) -> Callable[[Path], object]:
    return lambda runs: (runs / old).rename(runs / new)


def _write(name: str, text: str = "") -> Callable[[Path], object]:
    return lambda runs: (runs / name).write_text(text)


CHANGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "nothing": (lambda runs: None, ["ours", "stock"]),
    "a stock run loses its hparams": (lambda runs: (runs / "stocks/stock/hparams.yaml").unlink(), ["ours", "stock"]),
    "a stock run loses its step column": (_write("stocks/stock/metrics.csv", "acc\n1\n"), ["ours"]),
    "a run becomes a target": (_write("group/ours/.bridge-target"), ["stock"]),
    "a folder of runs becomes a target": (_write("group/.bridge-target"), ["stock"]),
    "a folder of runs becomes a run": (lambda runs: make_run(runs / "group"), ["group", "ours", "stock"]),
    "a run loses its sidecar": (lambda runs: (runs / "group/ours/sidecar.json").unlink(), ["ours", "stock"]),
    "a run gets a sidecar": (lambda runs: make_run(runs / "stocks/stock"), ["ours", "stock"]),
    "a folder is renamed": (_move("group", "other"), ["ours", "stock"]),
    "a folder is hidden": (_move("group", ".group"), ["stock"]),
    "a folder gets a name that is never entered": (_move("group", "mlruns"), ["stock"]),
    "a folder is gone": (lambda runs: shutil.rmtree(runs / "group"), ["stock"]),
    "a file takes a run's place": (
        lambda runs: (shutil.rmtree(runs / "group/ours"), (runs / "group/ours").touch()),
        ["stock"],
    ),
    "a run lies behind a link now": (
        lambda runs: ((runs / "group").rename(runs.parent / "far"), (runs / "group").symlink_to(runs.parent / "far")),
        ["ours", "stock"],
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_listed_is_what_is_exported(runs: Path, change: str) -> None:
    """After any change the registry holds the runs that a walk finds, and after undoing it those from before."""
    before = {run.run_dir for run in open_registry(runs)}
    shutil.copytree(runs, runs.parent / "kept", symlinks=True)
    act, expected = CHANGES[change]
    act(runs)
    assert sorted(run.name for run in open_registry(runs)) == expected
    assert {run.run_dir for run in open_registry(runs)} == {str(path) for path in discover([runs])}
    shutil.rmtree(runs)
    shutil.move(runs.parent / "kept", runs)
    assert {run.run_dir for run in open_registry(runs)} == {str(path) for path in discover([runs])} == before


def test_hparams_of_a_file_of_their_own_are_followed(tmp_path: Path) -> None:
    """Without hyperparameters in the sidecar, those of hparams.yaml are as fresh as in an export."""
    run = make_run(tmp_path / "runs" / "a")
    (run / "hparams.yaml").write_text("lr: 0.1\n")
    assert open_registry(tmp_path / "runs")["a"].hparams == {"lr": 0.1}
    (run / "hparams.yaml").write_text("lr: 0.25\n")
    registry = open_registry(tmp_path / "runs")
    assert registry["a"].hparams == gather([tmp_path / "runs"], MemoryExporter()).runs[0].params == {"lr": 0.25}
    again = open_registry(tmp_path / "runs").report
    assert again is not None
    assert again.unchanged == 1

"""Directories of Lightning's CSVLogger from real trainings are found, named and exported."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from bridge.exporters.tensorboard import TensorBoardExporter
from bridge.rundir import discover, read_run
from bridge.sync.export import export_runs
from bridge.sync.verify import verify_runs
from tests.environments import ROOT, fresh_environment

if TYPE_CHECKING:
    from pathlib import Path

OLDEST = "2.4.0"

PROGRAM = """
import sys, warnings
import lightning, torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
sys.path.append(sys.argv[1])
from tests.logger.models import data
warnings.simplefilter("ignore")

class Plain(LightningModule):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(width, 1)
    def training_step(self, batch, index):
        loss = self.layer(batch[0]).square().mean()
        self.log("loss", loss)
        return loss
    def train_dataloader(self):
        return data()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

class WithHparams(Plain):
    def __init__(self, width: int = 4) -> None:
        super().__init__(width)
        self.save_hyperparameters()

quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False,
         "log_every_n_steps": 1, "accelerator": "cpu", "devices": 1, "max_epochs": 2}
for name, model in (("plain", Plain()), ("hparams", WithHparams())):
    Trainer(logger=CSVLogger(name), **quiet).fit(model)

from lightning.fabric.loggers import CSVLogger as FabricLogger
fabric = FabricLogger("fabric", name="logs")
for step in range(4):
    fabric.log_metrics({"loss": 1.0 / (step + 1)}, step)
fabric.finalize("success")

from lightning.pytorch.cli import LightningCLI
logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "cli"}}
LightningCLI(WithHparams, args=["fit"], trainer_defaults={**quiet, "logger": logger})
"""


def check(python: str | Path, folder: Path) -> None:
    """Train with `python` in `folder`, export all runs, and verify them."""
    runs = folder / "runs"
    runs.mkdir()
    done = subprocess.run([python, "-c", PROGRAM, str(ROOT)], cwd=runs, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for file in runs.rglob("*"):
        os.utime(file, (file.stat().st_mtime - 3600,) * 2)  # over, since nothing else says that they ended
    found = {run.name: run for run in map(read_run, discover([runs]).runs)}
    names = {"plain/version_0", "hparams/version_0", "fabric/version_0", "cli/version_0"}
    assert (found.keys(), discover([runs]).skipped) == (names, [])
    assert (dict(found["plain/version_0"].params), dict(found["hparams/version_0"].params)) == ({}, {"width": 4})
    assert found["cli/version_0"].params["width"] == 4
    assert "config.yaml" in found["cli/version_0"].files
    assert all(run.end is not None and run.end >= run.start for run in found.values())
    exporter = TensorBoardExporter(folder / "tb")
    report = export_runs([runs], exporter)
    assert {run.name: run.action.value for run in report.runs} == dict.fromkeys(names, "new")
    assert all(run.points >= 4 for run in report.runs)
    assert verify_runs([runs], exporter).equal


def test_runs_of_the_installed_lightning(tmp_path: Path) -> None:
    """Runs with and without hyperparameters, by Fabric and by LightningCLI, verify as equal."""
    check(sys.executable, tmp_path)


@pytest.mark.compat
@pytest.mark.timeout(1800)  # half a gigabyte is unpacked
@pytest.mark.parametrize("versions", [(f"lightning=={OLDEST}", "fsspec<2026", "packaging<25"), ("lightning",)])
def test_runs_of_the_oldest_and_the_newest_lightning(tmp_path: Path, versions: tuple[str, ...]) -> None:
    """Runs of the oldest and newest Lightning verify as equal."""
    python = fresh_environment(tmp_path, *versions, "jsonargparse[signatures]>=4.27", extra="logger")
    check(python, tmp_path)

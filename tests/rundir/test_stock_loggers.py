"""Directories of CSVLogger, TensorBoardLogger and SummaryWriters from real trainings are read, exported, verified."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from bridge.exporters.contract import find_exporter
from bridge.live import LiveOptions, LiveRuns
from bridge.options import ExportOptions
from bridge.rundir import discover, read_run
from bridge.sync.export import Options, export_runs
from bridge.sync.follow import follow
from bridge.sync.verify import verify_runs
from tests.environments import ROOT, fresh_environment
from tests.memory_exporter import MemoryExporter
from tests.rundir.event_writing import age
from tests.rundir.targets import series_of

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.sync.report import Report

OLDEST = "2.4.0"

PROGRAM = """
import os, sys, warnings
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
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
        if isinstance(self.logger, TensorBoardLogger):
            self.write(self.logger.experiment, index, loss.item())
        return loss
    def train_dataloader(self):
        return data()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

class Model(Plain):
    def __init__(self, width: int = 4, lr: float = 0.01, name: str = "linear", extra: str = "") -> None:
        super().__init__(width)
        self.save_hyperparameters(ignore="extra")
        self.extra = extra
    def write(self, writer, index, loss):
        if index == 0:
            writer.add_image("samples", torch.full((3, 4, 4), self.current_epoch / 9), self.global_step)
            writer.add_text("note", "hello", self.global_step)
            writer.add_histogram("weights", self.layer.weight, self.global_step)
        if self.extra == "scalars":
            writer.add_scalars("both", {"a": loss, "b": 2 * loss}, self.global_step)
        if self.extra == "killed" and self.current_epoch == 1:
            writer.flush()
            os.kill(os.getpid(), 9)

class Paced(Callback):
    def on_train_epoch_end(self, trainer, model):
        model.logger.experiment.flush()
        print("epoch", flush=True)
        sys.stdin.readline()

quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False,
         "log_every_n_steps": 1, "accelerator": "cpu", "devices": 1}

def train(logger, extra="", epochs=2, checkpoint=None, model=None, **options):
    trainer = Trainer(logger=logger, max_epochs=epochs, **quiet, **options)
    trainer.fit(model or Model(extra=extra), ckpt_path=checkpoint)
    return trainer

def others():
    from lightning.fabric.loggers import CSVLogger as FabricLogger
    fabric = FabricLogger("fabric", name="logs")
    for step in range(4):
        fabric.log_metrics({"loss": 1.0 / (step + 1)}, step)
    fabric.finalize("success")
    from lightning.pytorch.cli import LightningCLI
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "cli"}}
    LightningCLI(Model, args=["fit"], trainer_defaults={**quiet, "logger": logger, "max_epochs": 2})

def writers():
    from torch.utils.tensorboard import SummaryWriter
    made = {"torch": SummaryWriter}
    try:
        from tensorboardX import SummaryWriter as Other
        made["tensorboardX"] = Other
    except ImportError:
        pass
    for name, kind in made.items():
        with kind(f"writers/{name}") as writer:
            for step in range(3):
                writer.add_scalar("loss", 0.1 * step, step)
                writer.add_image("samples", torch.full((3, 4, 4), step / 3).numpy(), step)
    with SummaryWriter("writers/tensors") as writer:
        for step in range(3):
            writer.add_scalar("loss", 0.1 * step, step, new_style=True)

what = sys.argv[2]
if what == "paced":
    train(TensorBoardLogger(".", name="paced"), epochs=3, callbacks=[Paced()])
else:
    killed = os.fork()
    if not killed:
        train(TensorBoardLogger(".", name="killed"), "killed")
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(killed, 0)[1]) == -9
    train(CSVLogger("bare"), model=Plain())
    train(CSVLogger("csv"))
    others()
    train(TensorBoardLogger(".", name="plain"))
    train(TensorBoardLogger(".", name="scalars"), "scalars")
    train([TensorBoardLogger(".", name="two"), CSVLogger(".", name="two")])
    os.environ |= {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_PROCID": "0",
                   "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "node", "SLURM_NTASKS_PER_NODE": "1"}
    train(True, epochs=2, default_root_dir="requeued").save_checkpoint("requeued/last.ckpt")
    train(True, epochs=3, default_root_dir="requeued")  # from the beginning: the steps are logged again
    train(True, epochs=4, default_root_dir="requeued", checkpoint="requeued/last.ckpt")
    writers()
"""


def start(python: str | Path, folder: Path, what: str) -> subprocess.Popen[str]:
    """Start a training in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [str(python), "-c", PROGRAM, str(ROOT), what]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=folder, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def check(python: str | Path, folder: Path) -> None:
    """Train with `python` in `folder`, export all runs to MLflow, and verify them."""
    runs = folder / "runs"
    with start(python, runs, "all") as training:
        _, said = training.communicate(timeout=900)
    assert training.returncode == 0, said
    age(runs)
    found = {run.name: run for run in map(read_run, discover([runs]).runs)}
    kinds = {name: run.kind for name, run in found.items()}
    names = {"plain/version_0", "scalars/version_0", "two/version_0", "killed/version_0", "requeued/version_4711"}
    names |= {"torch", "tensors"} | ({"tensorboardX"} if "tensorboardX" in found else set())
    tables = {"bare/version_0", "csv/version_0", "fabric/version_0", "cli/version_0", "two/version_1"}
    assert kinds == dict.fromkeys(names, "TensorBoardLogger") | dict.fromkeys(tables, "CSVLogger")
    params = {"width": 4, "lr": 0.01, "name": "linear"}
    assert [dict(found[f"{name}/version_0"].params) for name in ("plain", "csv", "bare")] == [params, params, {}]
    assert found["cli/version_0"].params["width"] == 4
    assert "config.yaml" in found["cli/version_0"].files
    assert all(run.end is not None and run.end >= run.start for run in found.values())
    requeued = series_of(found["requeued/version_4711"], "loss")
    per_epoch = len(series_of(found["plain/version_0"], "loss").step) // 2
    assert len(found["requeued/version_4711"].event_files) == 3
    assert requeued.step.tolist() == list(range(4 * per_epoch))
    assert len(series_of(found["scalars/version_0"], "both/a").step) == 2 * per_epoch
    assert series_of(found["tensors"], "loss").step.tolist() == [0, 1, 2]
    assert len(series_of(found["killed/version_0"], "loss").step) >= per_epoch
    exporter = find_exporter("mlflow")(tracking_uri=f"sqlite:///{folder}/mlflow.db", experiment="real")
    report = export_runs([runs], exporter)
    assert {run.name: str(run.action) for run in report.runs} == dict.fromkeys(kinds, "new")
    assert all(run.points >= 3 for run in report.runs)
    media = {run.name: run.media for run in report.runs}
    assert (media["plain/version_0"], media["torch"], media["requeued/version_4711"]) == (2, 3, 4)
    assert verify_runs([runs], exporter).equal


@pytest.mark.usefixtures("sqlite_uri")
def test_runs_of_the_installed_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that Lightning, Fabric, LightningCLI and other writers leave verifies as equal, also after a kill."""
    monkeypatch.chdir(tmp_path)
    check(sys.executable, tmp_path)
    assert (tmp_path / "runs" / "writers" / "tensorboardX").is_dir()


@pytest.mark.compat
@pytest.mark.timeout(1800)  # half a gigabyte is unpacked
@pytest.mark.parametrize("versions", [(f"lightning=={OLDEST}", "fsspec<2026", "packaging<25"), ("lightning",)])
def test_runs_of_the_oldest_and_the_newest_lightning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, versions: tuple[str, ...]
) -> None:
    """Runs of the oldest and newest Lightning verify as equal."""
    monkeypatch.chdir(tmp_path)
    check(
        fresh_environment(tmp_path, *versions, "jsonargparse[signatures]>=4.27", "tensorboard", extra="logger"),
        tmp_path,
    )


def test_a_training_is_followed_while_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pass of `--follow` sends the points and images of the epoch before, and the live view shows them."""
    monkeypatch.setenv("BRIDGE_CACHE_DIR", str(tmp_path / "cache"))
    exporter, runs, shown = MemoryExporter(tmp_path / "boxes"), tmp_path / "runs", []
    reports: list[Report] = []
    with start(sys.executable, runs, "paced") as training:
        assert training.stdin is not None
        assert training.stdout is not None
        live: LiveRuns | None = None

        def next_epoch(_: float) -> None:
            nonlocal live
            if training.poll() is not None:
                raise KeyboardInterrupt
            live = live or LiveRuns(LiveOptions(roots=[str(runs)]))
            (run,) = live.runs().values()
            shown.append((len(live.series(run)["loss"].step), len(live.media(run))))
            training.stdin.write("\n")
            training.stdin.flush()
            if training.stdout.readline() != "epoch\n":
                training.wait()
                age(runs)

        assert training.stdout.readline() == "epoch\n", training.stderr.read()
        with pytest.raises(KeyboardInterrupt):
            follow([runs], exporter, Options(), ExportOptions(), told=reports.append, say=print, pause=next_epoch)
    per_epoch = shown[0][0]
    assert shown[:3] == [(per_epoch * epoch, epoch) for epoch in (1, 2, 3)]
    assert [run.points > 0 for report in reports for run in report.runs][:3] == [True] * 3
    assert sum(run.media for report in reports for run in report.runs) == 3
    assert verify_runs([runs], exporter).equal

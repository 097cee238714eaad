"""Train for real, ready to be killed at any instant and started again.

`python -m tests.torture.training RUN_DIR STOP_FILE`.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402 - after the warnings are silenced
import torch  # noqa: E402
from lightning.pytorch import LightningModule, Trainer  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from logger import RegistryLogger  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

PAUSE = 0.01
"""Seconds of each step: so that a run lasts while others are killed."""


class Model(LightningModule):
    """A line with a logger that gets everything it can store."""

    def __init__(self, stop: Path) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.stop = stop

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        time.sleep(PAUSE)
        loss = (self.layer(batch[0]) - batch[1]).square().mean()
        self.log("train/loss", loss)
        if self.global_step % 7 == 0:
            self.log("grad/norm", loss.sqrt() * float("nan" if self.global_step % 21 == 0 else 1))
        if self.global_step % 40 == 0 and isinstance(self.logger, RegistryLogger):
            picture = np.full((8, 8, 3), self.global_step % 256, np.uint8)
            self.logger.log_image("samples", [picture, picture[::-1]], step=self.global_step)
        if self.stop.exists():
            self.trainer.should_stop = True
        return loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.log("val/loss", (self.layer(batch[0]) - batch[1]).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def main(run_dir: Path, stop: Path) -> None:
    """Train until `stop` exists, from the last checkpoint if there is one."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    x = torch.randn(320, 4)
    data = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8)
    checkpoints = run_dir / "checkpoints"
    trainer = Trainer(
        max_epochs=-1,
        logger=RegistryLogger(run_dir, f"torture/{run_dir.name}", tags=["project:torture"], flush_logs_every_n_steps=5),
        callbacks=[ModelCheckpoint(checkpoints, every_n_train_steps=25, save_last=True, save_top_k=0)],
        log_every_n_steps=1,
        accelerator="cpu",
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = sorted(checkpoints.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    trainer.fit(Model(stop), data, data, ckpt_path=last[-1] if last else None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""A training in two processes on the CPU: `python ddp_program.py RUN_DIR STRATEGY [FAILS]`."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import lightning.pytorch
import torch
from torch.utils.data import DataLoader, TensorDataset

from logger import RegistryLogger
from tests.logger.models import trainer


class Model(lightning.pytorch.LightningModule):
    """Logs an image from every rank; fails in its second step if asked to."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch: Any, index: int) -> Any:
        self.logger.log_image("rank", [torch.full((2, 2), self.global_rank, dtype=torch.uint8)], step=index)
        if self.hparams.fails and index == 1:
            raise RuntimeError("as asked")
        loss = self.layer(batch[0]).square().mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any) -> None:
        self.log("val", self.layer(batch[0]).square().mean(), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def main(run_dir: str, strategy: str) -> None:
    warnings.simplefilter("ignore")
    logger = RegistryLogger(run_dir, "r1", on_existing="new")
    fit = trainer(lightning.pytorch, logger, strategy=strategy, devices=2, max_epochs=1)
    rows = DataLoader(TensorDataset(torch.randn(8, 4)), batch_size=1)
    fit.fit(Model(fails=len(sys.argv) > 3), rows, rows)
    print(f"rank {fit.global_rank} of {fit.world_size} in process {os.getpid()} is done")


if __name__ == "__main__":
    main(*sys.argv[1:3])

"""Train in two processes on the CPU: `python ddp_program.py RUN_DIR STRATEGY`.

Every rank logs an image, and the first process logs before and after the training.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import lightning.pytorch
import torch
from torch.utils.data import DataLoader, TensorDataset

from logger import RegistryLogger
from tests.logger.models import small_model, trainer


def log_rank(model: Any, batch: int) -> None:
    model.logger.log_image("rank", [torch.full((2, 2), model.global_rank, dtype=torch.uint8)], step=batch)


def main(run_dir: str, strategy: str) -> None:
    warnings.simplefilter("ignore")
    logger = RegistryLogger(run_dir, "r1", on_existing="new")
    logger.log_hyperparams({"seed": 1})
    fit = trainer(lightning.pytorch, logger, strategy=strategy, devices=2, max_epochs=1)
    rows = DataLoader(TensorDataset(torch.randn(8, 4)), batch_size=1)
    fit.fit(small_model(lightning.pytorch, each_step=log_rank), rows, rows)
    logger.log_metrics({"final": 1.0})
    print(f"rank {fit.global_rank} of {fit.world_size} in process {os.getpid()} is done")


if __name__ == "__main__":
    main(*sys.argv[1:])

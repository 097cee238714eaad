"""Train the smallest model for real, with either of Lightning's two packages."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import lightning.pytorch
import torch
from torch.utils.data import DataLoader, TensorDataset

from logger import RegistryLogger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def small_model(lightning: Any, *, each_step: Callable[[Any, int], None] = lambda model, batch: None) -> Any:
    """Return a LightningModule of the package `lightning` that calls `each_step(model, batch)` in every step."""

    class Small(lightning.LightningModule):
        def __init__(self, width: int = 4) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.layer = torch.nn.Linear(width, 1)

        def training_step(self, batch: Any, index: int) -> Any:
            each_step(self, index)
            loss = self.layer(batch[0]).square().mean()
            self.log("loss", loss)
            return loss

        def validation_step(self, batch: Any) -> None:
            self.log("val", self.layer(batch[0]).square().mean())

        def test_step(self, batch: Any) -> None:
            self.log("test", self.layer(batch[0]).square().mean())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    return Small()


def data() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(4, 4)), batch_size=1)


def trainer(lightning: Any, logger: Any, **options: Any) -> Any:
    """Return a quiet Trainer of the package `lightning` that logs every step on the CPU."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1, "accelerator": "cpu"}
    return lightning.Trainer(**{**quiet, "logger": logger, "max_epochs": 2, "devices": 1} | options)


def fit(
    logger: RegistryLogger | Path,
    each_step: Callable[[Any, int], None] | BaseException = lambda model, batch: None,
    package: Any = lightning.pytorch,
    **options: Any,
) -> None:
    """Train one epoch of four steps, without checkpoints, with `logger` or that of a run in the directory `logger`.

    An exception in the place of `each_step` is raised in the third step, as the whole of Lightning lets it through.
    """
    error = each_step if isinstance(each_step, BaseException) else None

    def step(model: Any, batch: int) -> None:
        if error is None:
            each_step(model, batch)  # type: ignore[operator]
        elif batch == 2:
            raise error

    logger = logger if isinstance(logger, RegistryLogger) else RegistryLogger(logger, "r")
    before = signal.getsignal(signal.SIGINT)  # Lightning ignores SIGINT after a Ctrl-C
    try:
        options = {"max_epochs": 1, "enable_checkpointing": False} | options
        trainer(package, logger, **options).fit(small_model(package, each_step=step), data())
    finally:
        signal.signal(signal.SIGINT, before)


def evaluate(what: str, logger: RegistryLogger | Path, package: Any = lightning.pytorch, **options: Any) -> None:
    """Validate or test the model, with `logger` or that of a run in the directory `logger`."""
    logger = logger if isinstance(logger, RegistryLogger) else RegistryLogger(logger, "r")
    getattr(trainer(package, logger, **options), what)(small_model(package), data(), verbose=False)

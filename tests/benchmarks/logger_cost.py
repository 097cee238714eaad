"""Compare the cost of logging for a training: CSVLogger, TensorBoardLogger and RegistryLogger side by side.

There are three measures: `log_metrics` of 10 values followed by `save()`, as Lightning's Trainer does it; a whole small
training; and the part of that training inside the logger. RegistryLogger may take at most twice CSVLogger's time.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.rows import OURS, row

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

CALLS = "logger: log_metrics of 10 values + save"
TRAINING = "logger: a whole small training"
INSIDE = "logger: of that training, inside the logger"


def run(quick: bool) -> list[dict[str, Any]]:
    """Take the three measures for every logger in turn, and keep the best of several rounds."""
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    from logger import RegistryLogger

    loggers = {
        "CSVLogger": lambda path: CSVLogger(path, name="", version=""),
        OURS: lambda path: RegistryLogger(path / "run", "run"),
        "TensorBoardLogger": lambda path: TensorBoardLogger(str(path), name="", version=""),
    }
    rounds, calls, steps = (3, 1000, 200) if quick else (7, 5000, 1500)
    best: dict[tuple[str, str], float] = {}
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(rounds):
                with tempfile.TemporaryDirectory() as folder:
                    for who, make in loggers.items():
                        found = {CALLS: _calls(make(Path(folder) / "calls" / who), calls)}
                        found |= _training(make(Path(folder) / "fit" / who), steps)
                        for work, seconds in found.items():
                            best[work, who] = min(seconds, best.get((work, who), seconds))
    finally:
        logging.disable(logging.NOTSET)
    amounts = {CALLS: (calls, "calls"), TRAINING: (steps, "steps"), INSIDE: (steps, "steps")}
    return [
        row(work, who, seconds, *amounts[work], **({"at_least": 0.5} if who == "CSVLogger" else {}))
        for (work, who), seconds in sorted(best.items())
    ]


def _calls(logger: Logger, count: int) -> float:
    """Return the seconds that `count` rows of 10 values take, each saved, with the end of the run."""
    values = [{f"metric_{number}": float(step * number) / 7 for number in range(10)} for step in range(count)]
    _ = logger.experiment  # type: ignore[attr-defined]
    began = time.perf_counter()
    for step, metrics in enumerate(values):
        logger.log_metrics(metrics, step)
        logger.save()
    logger.finalize("success")
    return time.perf_counter() - began


def _training(logger: Logger, steps: int) -> dict[str, float]:
    """Return the seconds of a training that logs 10 values a step, and how many of them the logger's hooks spent."""
    import torch
    from lightning.pytorch import LightningModule, Trainer

    class Small(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(32, 2)

        def training_step(self, batch: Any, _: int) -> Any:
            loss = self.layer(batch).square().mean()
            self.log_dict({f"metric_{number}": loss.detach() * number for number in range(9)})
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    torch.manual_seed(0)
    data = torch.utils.data.DataLoader(torch.randn(steps, 32), batch_size=None)
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(max_epochs=1, logger=logger, log_every_n_steps=1, accelerator="cpu", **quiet)
    inside: list[float] = []
    for name in ("log_hyperparams", "log_metrics", "save", "finalize"):
        _watch(logger, name, inside)
    began = time.perf_counter()
    trainer.fit(Small(), data)
    return {TRAINING: time.perf_counter() - began, INSIDE: sum(inside)}


def _watch(logger: Logger, name: str, inside: list[float]) -> None:
    """Add the seconds of every call of a logger's method to `inside`."""
    method = getattr(logger, name)

    def call(*args: Any, **kwargs: Any) -> None:
        began = time.perf_counter()
        method(*args, **kwargs)
        inside.append(time.perf_counter() - began)

    setattr(logger, name, call)

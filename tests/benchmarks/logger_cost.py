"""Compare the cost of logging for a training: CSVLogger, TensorBoardLogger and RegistryLogger side by side.

    python -m tests.benchmarks.logger_cost [--quick]        python -m tests.benchmarks logger_cost

There are three measures: `log_metrics` of 10 values followed by `save()`, as Lightning's Trainer does it; a whole small
training; and the part of that training inside the logger. RegistryLogger may take at most twice CSVLogger's time.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.rows import OURS, row

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.pytorch.loggers import Logger

__all__ = ["run"]

CALLS = "logger: log_metrics of 10 values + save"
TRAINING = "logger: a whole small training"
INSIDE = "logger: of that training, inside the logger"


def _loggers() -> dict[str, Callable[[Path], Logger]]:
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    from logger import RegistryLogger

    makers: dict[str, Callable[[Path], Logger]] = {
        "CSVLogger": lambda path: CSVLogger(path, name="", version=""),
        OURS: lambda path: RegistryLogger(path / "run", "run"),
    }
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        return makers
    return {**makers, "TensorBoardLogger": lambda path: TensorBoardLogger(str(path), name="", version="")}


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


def _training(logger: Logger, steps: int) -> tuple[float, float]:
    """Return the seconds of a training that logs 10 values a step, and how many of them the logger spent."""
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
    trainer = Trainer(
        max_epochs=1,
        logger=logger,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    inside = _stopwatch(logger)
    began = time.perf_counter()
    trainer.fit(Small(), data)
    return time.perf_counter() - began, sum(inside)


def _stopwatch(logger: Logger) -> list[float]:
    """Return a list that takes the seconds of every call of the logger's hooks."""
    inside: list[float] = []

    def watch(name: str) -> None:
        method = getattr(logger, name)

        def call(*args: Any, **kwargs: Any) -> None:
            began = time.perf_counter()
            method(*args, **kwargs)
            inside.append(time.perf_counter() - began)

        setattr(logger, name, call)

    for name in ("log_hyperparams", "log_metrics", "save", "finalize"):
        watch(name)
    return inside


def run(quick: bool) -> list[dict[str, Any]]:
    """Take the three measures for every logger in turn, and keep the best of several rounds."""
    rounds, calls, steps = (3, 1000, 200) if quick else (7, 5000, 1500)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _measure(rounds, calls, steps)
    finally:
        logging.disable(logging.NOTSET)


def _measure(rounds: int, calls: int, steps: int) -> list[dict[str, Any]]:
    makers = _loggers()
    best: dict[tuple[str, str], float] = {}

    def note(work: str, who: str, seconds: float) -> None:
        best[work, who] = min(seconds, best.get((work, who), seconds))

    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for who, make in makers.items():
                note(CALLS, who, _calls(make(Path(folder) / "calls" / who), calls))
                whole, inside = _training(make(Path(folder) / "fit" / who), steps)
                note(TRAINING, who, whole)
                note(INSIDE, who, inside)
    amounts = {CALLS: (calls, "call"), TRAINING: (steps, "step"), INSIDE: (steps, "step")}
    return [
        # At most twice CSVLogger's time, on the calls alone and over a whole training.
        row(work, who, seconds, *amounts[work], **({"at_least": 0.5} if who == "CSVLogger" else {}))
        for (work, who), seconds in sorted(best.items())
    ]


def main() -> None:
    """Print the measures."""
    for line in run(quick="--quick" in sys.argv):
        each = line["seconds"] / line["amount"] * 1e6
        print(f"{line['work']:<44} {line['who']:<18} {each:>10.1f} us a {line['unit']}")


if __name__ == "__main__":
    main()

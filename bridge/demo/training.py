"""The trainings of `bridge demo`.

A small network that learns scikit-learn's handwritten digits, logged by RegistryLogger.
`python -m bridge.demo.training` reads a JSON list from stdin, each item the fields of `Training`, and does one training
after another. A training that is to be preempted or killed gets the real signal.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bridge.demo import Training
from logger import RegistryLogger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

SAMPLES = (5, 17, 42, 77)
"""The pictures of the validation set that are logged after every epoch."""

CLASSES = 10
EPOCHS = 12


def main() -> None:
    """Do the trainings that stdin asks for and write each one's run id to stdout as soon as it is done."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    for fields in json.load(sys.stdin):
        training = Training(**fields)
        train(training)
        sys.stdout.write(f"{training.run_id}\n")
        sys.stdout.flush()


def train(training: Training) -> None:
    """Train one network into its run directory, until the end or until the training's signal ends the process."""
    seed_everything(7, verbose=False)
    if training.clock_behind:
        real = time.time
        time.time = lambda: real() - training.clock_behind
    train_set, validation_set = _digits()
    run_dir = Path(training.run_dir)
    resumed = run_dir / "checkpoints" / "last.ckpt"
    resumes = resumed.exists()
    logger = RegistryLogger(
        str(run_dir),
        training.run_id,
        tags=list(training.tags),
        notes=training.notes,
        flush_logs_every_n_steps=10,
    )
    callbacks: list[Callback] = [
        ModelCheckpoint(run_dir / "checkpoints", monitor="val/acc", mode="max", save_last=True),
        Pictures(logger),
    ]
    if training.signal is not None:
        callbacks.append(SignalAt(signal.Signals[training.signal], training.signal_at))
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=1,
        logger=logger,
        callbacks=callbacks,
        default_root_dir=run_dir,
        log_every_n_steps=2,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = DataLoader(train_set, batch_size=64, shuffle=True, generator=torch.Generator().manual_seed(7))
    trainer.fit(
        Digits(lr=training.lr, lr_growth=training.lr_growth),
        batches,
        DataLoader(validation_set, batch_size=len(validation_set)),
        ckpt_path=str(resumed) if resumes else None,
    )


class Digits(LightningModule):
    """One hidden layer on 8 x 8 pixels.

    The learning rate starts at `lr` and is multiplied by `lr_growth` every step.
    """

    def __init__(self, *, lr: float, lr_growth: float = 1.0, hidden: int = 48, momentum: float = 0.9) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr, self.lr_growth, self.momentum = lr, lr_growth, momentum
        self.layers = nn.Sequential(nn.Linear(64, hidden), nn.LeakyReLU(0.1), nn.Linear(hidden, CLASSES))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the logits, (n, 10), of pictures, (n, 64)."""
        logits: torch.Tensor = self.layers(pixels)
        return logits

    def training_step(self, batch: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the loss of one batch."""
        loss, accuracy = self._judge(batch)
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log_dict({"train/loss": loss, "train/acc": accuracy, "lr": rate})
        return loss

    def validation_step(self, batch: Sequence[torch.Tensor]) -> None:
        """Log loss and accuracy of the validation set."""
        loss, accuracy = self._judge(batch)
        self.log_dict({"val/loss": loss, "val/acc": accuracy})

    def configure_optimizers(self) -> Any:
        """Use plain SGD: a learning rate that grows without end makes it diverge."""
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=self.momentum)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, self.lr_growth)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _judge(self, batch: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, labels = batch
        logits = self(pixels)
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        return nn.functional.cross_entropy(logits, labels), accuracy


class Pictures(Callback):
    """Log samples with what the network reads in them, a confusion matrix, and a video of the weights."""

    def __init__(self, logger: RegistryLogger) -> None:
        self._logger = logger
        self._frames: list[NDArray[np.uint8]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what the untrained network reads: a page with a slider over the steps starts at 0."""
        if trainer.global_step == 0:
            self.on_validation_epoch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Keep a frame of the video every few steps."""
        if trainer.global_step % 6 == 0:
            self._frames.append(_weights(pl_module))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the samples, captioned, and the confusion matrix of this epoch."""
        pixels, labels = _digits()[1].tensors
        with torch.no_grad():
            read = pl_module(pixels).argmax(dim=1)
        samples = [_enlarge(_shades(pixels[i].numpy().reshape(8, 8)), 12) for i in SAMPLES]
        captions = [f"reads {int(read[i])}, is {int(labels[i])}" for i in SAMPLES]
        self._logger.log_image("val/samples", samples, step=trainer.global_step, caption=captions)
        confusion = np.zeros((CLASSES, CLASSES))
        np.add.at(confusion, (labels.numpy(), read.numpy()), 1)
        picture = _enlarge(_shades(np.log1p(confusion)), 16)
        self._logger.log_image("val/confusion", [picture], step=trainer.global_step, caption=["row: is, column: reads"])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the video of the first layer's weights."""
        video = np.stack([*self._frames, _weights(pl_module)])
        caption = "the first layer while it learns"
        self._logger.log_video("weights", video, step=trainer.global_step, caption=caption, fps=8, format="mp4")


class SignalAt(Callback):
    """Send this process a signal once a step is reached: what a cluster's scheduler does to a job."""

    def __init__(self, number: signal.Signals, step: int) -> None:
        self._number, self._step = number, step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Send it."""
        if trainer.global_step == self._step:
            os.kill(os.getpid(), self._number)


@functools.cache
def _digits() -> tuple[TensorDataset, TensorDataset]:
    """Return the training and the validation set: pixels float32 (n, 64) in [0, 1], labels int64 (n,)."""
    from sklearn.datasets import load_digits

    bundle: Mapping[str, Any] = load_digits()
    order = np.random.default_rng(7).permutation(len(bundle["target"]))
    pixels = torch.tensor(bundle["data"][order] / 16.0, dtype=torch.float32)
    labels = torch.tensor(bundle["target"][order], dtype=torch.int64)
    return TensorDataset(pixels[:1437], labels[:1437]), TensorDataset(pixels[1437:], labels[1437:])


def _weights(module: LightningModule) -> NDArray[np.uint8]:
    """Return the first layer's weights, 8 x 8 for each of 48 hidden units, as one picture of 6 rows."""
    assert isinstance(module, Digits)
    first = module.layers[0]
    assert isinstance(first, nn.Linear)
    weights = np.nan_to_num(first.weight.detach().numpy(), posinf=0.0, neginf=0.0)
    tiles = np.pad(weights.reshape(6, 8, 8, 8), ((0, 0), (0, 0), (1, 1), (1, 1)))
    return _enlarge(_shades(tiles.transpose(0, 2, 1, 3).reshape(60, 80)), 4)


def _shades(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Return values as shades of grey from the least to the greatest."""
    low, high = float(values.min()), float(values.max())
    return np.asarray((values - low) / max(high - low, 1e-12) * 255, dtype=np.uint8)


def _enlarge(picture: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


if __name__ == "__main__":
    main()

"""Only a fit changes a run's status, end and heartbeat."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import lightning.pytorch
import pytest
import pytorch_lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.tuner import Tuner

from logger import RegistryLogger, RunWriter
from logger.heartbeat import Beat, read_beat, restore_beat
from tests.logger.models import data, small_model, trainer
from tests.logger.rows import read_rows, sidecar

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.logger.conftest import Clock

ROOT = Path(__file__).parents[2]

# Lightning's advice about a model whose validation is not always used, and about the tuner's own checkpoint.
pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]

PACKAGES = pytest.mark.parametrize(
    "lightning_", [lightning.pytorch, pytorch_lightning], ids=["lightning", "pytorch_lightning"]
)


class Shown(NamedTuple):
    """The facts that only a fit may change."""

    status: str
    ended_at: float | None
    beat: Beat | None


def shown(run_dir: Path) -> Shown:
    found = sidecar(run_dir)
    return Shown(found["status"], found["ended_at"], read_beat(run_dir))


def sessions(run_dir: Path) -> list[bool]:
    """Return for each start whether it was a fit."""
    return [session.get("fit", False) for session in sidecar(run_dir)["sessions"]]


def raise_at(step: int, error: BaseException) -> Callable[[Any, int], None]:
    def each_step(_: Any, batch: int) -> None:
        if batch == step:
            raise error

    return each_step


def fitted(run_dir: Path, error: BaseException | None = None, lightning_: Any = lightning.pytorch) -> Shown:
    """Train a run in `run_dir` an hour ago, and let it end with `error` if given."""
    model = small_model(lightning_, each_step=raise_at(2, error) if error else lambda _model, _batch: None)
    fit = trainer(lightning_, RegistryLogger(run_dir, "r"), max_epochs=1, enable_checkpointing=False)
    before = signal.getsignal(signal.SIGINT)
    try:
        fit.fit(model, data())
    except (RuntimeError, SystemExit):
        assert error is not None
    finally:
        signal.signal(signal.SIGINT, before)
    beat = read_beat(run_dir)
    assert beat is not None
    restore_beat(run_dir, Beat(b"1775822400.000000\n", 1775822400_000000000))
    return shown(run_dir)


@PACKAGES
def test_a_crashed_run_that_is_validated_stays_failed(tmp_path: Path, lightning_: Any) -> None:
    """A validation adds rows and a session to a crashed run, and keeps status, end and heartbeat."""
    before = fitted(tmp_path / "run", RuntimeError("x"), lightning_)
    assert before.status == "failed"
    logger = RegistryLogger(tmp_path / "run", "r")
    trainer(lightning_, logger).validate(small_model(lightning_), data(), verbose=False)
    assert shown(tmp_path / "run") == before
    assert sessions(tmp_path / "run") == [True, False]
    assert "val" in read_rows(tmp_path / "run")[-1]


KILLED = """
import os, signal, sys, warnings
import lightning.pytorch
from logger import RegistryLogger
from tests.logger.models import data, small_model, trainer

warnings.simplefilter("ignore")
kill = lambda model, batch: os.kill(os.getpid(), signal.SIGKILL) if batch == 2 else None
fit = trainer(lightning.pytorch, RegistryLogger(sys.argv[1], "r"), enable_checkpointing=False)
fit.fit(small_model(lightning.pytorch, each_step=kill), data())
"""


def test_a_killed_run_that_is_validated_a_week_later_stays_killed(tmp_path: Path) -> None:
    """A validation in another process keeps the heartbeat of the killed training."""
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "run"], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    week_ago = Beat(b"1775822400.000000\n", 1775822400_000000000)
    restore_beat(tmp_path / "run", week_ago)
    logger = RegistryLogger(tmp_path / "run", "r")
    trainer(lightning.pytorch, logger).validate(small_model(lightning.pytorch), data(), verbose=False)
    assert shown(tmp_path / "run") == Shown("running", None, week_ago)
    assert sessions(tmp_path / "run") == [True, False]


class Dies(Callback):
    def __init__(self, hook: str) -> None:
        setattr(self, hook, self._die)

    def _die(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("no data")


@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "on_train_start", "on_train_batch_start"])
@pytest.mark.parametrize("error", [None, RuntimeError("x"), KeyboardInterrupt()])
def test_a_start_that_dies_before_its_first_step_changes_nothing(
    tmp_path: Path, hook: str, error: BaseException | None
) -> None:
    """A start without a training step is no fit and keeps the run's status."""
    before = fitted(tmp_path / "run", error)
    logger = RegistryLogger(tmp_path / "run", "r")
    with pytest.raises(RuntimeError, match="no data"):
        trainer(lightning.pytorch, logger, callbacks=[Dies(hook)]).fit(small_model(lightning.pytorch), data())
    assert shown(tmp_path / "run") == before
    assert sessions(tmp_path / "run") == [True, False]


def test_a_completed_training_that_is_resumed_at_its_end_keeps_its_end(tmp_path: Path) -> None:
    """A requeued job that resumes the last checkpoint keeps the run's end."""
    model = small_model(lightning.pytorch)
    trainer(lightning.pytorch, RegistryLogger(tmp_path / "run", "r")).fit(model, data())
    before = shown(tmp_path / "run")
    checkpoint = sidecar(tmp_path / "run")["checkpoint_path"]
    logger = RegistryLogger(tmp_path / "run", "r")
    fit = trainer(lightning.pytorch, logger, callbacks=[])
    fit.fit(small_model(lightning.pytorch), data(), ckpt_path=checkpoint, weights_only=False)
    assert shown(tmp_path / "run") == before
    assert sessions(tmp_path / "run") == [True, False]


@PACKAGES
def test_a_run_that_is_resumed_is_running_and_ends_again(tmp_path: Path, lightning_: Any) -> None:
    """A requeued run is interrupted while it waits, running from its fit on, and completed at the end."""
    run_dir = tmp_path / "run"
    first = RegistryLogger(run_dir, "r")
    trainer(lightning_, first, max_epochs=1).fit(small_model(lightning_), data())
    first.experiment.finalize("interrupted")
    before = shown(run_dir)
    seen: list[str] = []

    class Looks(lightning_.Callback):
        def setup(self, *_: Any, **__: Any) -> None:
            seen.append(shown(run_dir).status)

        def on_train_start(self, *_: Any) -> None:
            seen.append(shown(run_dir).status)

    logger = RegistryLogger(run_dir, "r")
    _ = logger.experiment
    assert shown(run_dir) == before
    fit = trainer(lightning_, logger, max_epochs=2, callbacks=[Looks()])
    fit.fit(small_model(lightning_), data(), ckpt_path=sidecar(run_dir)["checkpoint_path"], weights_only=False)
    after = shown(run_dir)
    assert (before.status, seen, after.status) == ("interrupted", ["interrupted", "running"], "completed")
    assert after.ended_at is not None
    assert before.ended_at is not None
    assert after.ended_at > before.ended_at
    assert sessions(run_dir) == [True, True]


def test_the_learning_rate_finder_alone_changes_nothing(tmp_path: Path) -> None:
    """The tuner fits without the logger, so the run is unchanged."""
    before = fitted(tmp_path / "run", RuntimeError("x"))
    fit = trainer(lightning.pytorch, RegistryLogger(tmp_path / "run", "r"), default_root_dir=tmp_path)
    model = small_model(lightning.pytorch)
    model.lr = 0.1
    Tuner(fit).lr_find(model, data(), num_training=3)
    assert shown(tmp_path / "run") == before


def test_a_directory_that_was_only_tested_is_completed(tmp_path: Path) -> None:
    """The first start of a directory always counts, and a later test changes nothing."""
    logger = RegistryLogger(tmp_path / "run", "r")
    trainer(lightning.pytorch, logger).test(small_model(lightning.pytorch), data(), verbose=False)
    before = shown(tmp_path / "run")
    assert before.status == "completed"
    again = RegistryLogger(tmp_path / "run", "r")
    trainer(lightning.pytorch, again).test(small_model(lightning.pytorch), data(), verbose=False)
    assert shown(tmp_path / "run") == before
    assert sessions(tmp_path / "run") == [True, False]


@PACKAGES
def test_a_fit_that_logs_no_hyperparameters_is_a_fit(tmp_path: Path, lightning_: Any) -> None:
    """With `enable_autolog_hparams=False` the first row begins the fit, as no hook runs before."""
    before = fitted(tmp_path / "run", RuntimeError("x"), lightning_)
    seen: list[str] = []
    model = small_model(lightning_, each_step=lambda _model, batch: seen.append(shown(tmp_path / "run").status))
    logger = RegistryLogger(tmp_path / "run", "r")
    trainer(lightning_, logger, max_epochs=1, enable_autolog_hparams=False).fit(model, data())
    after = shown(tmp_path / "run")
    assert (seen[-1], after.status, after.beat != before.beat) == ("running", "completed", True)
    assert sessions(tmp_path / "run") == [True, True]


def test_a_loop_without_a_trainer_is_a_fit_from_its_first_row(tmp_path: Path) -> None:
    """A resumed loop shows the old status until its first row, then running, then completed."""
    before = fitted(tmp_path / "run", RuntimeError("x"))
    logger = RegistryLogger(tmp_path / "run", "r")
    logger.log_hyperparams({"lr": 0.1})
    assert shown(tmp_path / "run") == before
    logger.log_metrics({"loss": 1.0})
    assert (shown(tmp_path / "run").status, shown(tmp_path / "run").ended_at) == ("running", None)
    logger.finalize("success")
    assert shown(tmp_path / "run").status == "completed"


def test_a_writer_without_lightning_ends_as_its_block_ends(tmp_path: Path) -> None:
    """A RunWriter block ends completed, failed after an exception, interrupted after Ctrl-C."""
    ends: list[tuple[BaseException | None, str]] = [
        (None, "completed"),
        (ValueError("x"), "failed"),
        (KeyboardInterrupt(), "interrupted"),
    ]
    for error, status in ends:
        try:
            with RunWriter.open(tmp_path / "run", "r", tags=["a"], notes="n", display_name="d") as run:
                run.log_hyperparams({"lr": 0.1})
                run.log_metrics({"loss": 0.5}, step=3)
                assert shown(tmp_path / "run").status == "running"
                if error is not None:
                    raise error
        except (ValueError, KeyboardInterrupt):
            pass
        assert shown(tmp_path / "run").status == status
    found = sidecar(tmp_path / "run")
    assert (found["tags"], found["notes"], found["display_name"], found["hparams"]) == (["a"], "n", "d", {"lr": 0.1})
    assert len(read_rows(tmp_path / "run")) == 3


def test_a_second_fit_of_one_logger_that_dies_early_keeps_the_first_ones_end(tmp_path: Path) -> None:
    """A second fit without a step keeps the end of the first."""
    logger = RegistryLogger(tmp_path / "run", "r")
    trainer(lightning.pytorch, logger, max_epochs=1).fit(small_model(lightning.pytorch), data())
    before = shown(tmp_path / "run")
    with pytest.raises(RuntimeError, match="no data"):
        trainer(lightning.pytorch, logger, callbacks=[Dies("on_train_start")]).fit(
            small_model(lightning.pytorch), data()
        )
    assert shown(tmp_path / "run") == before
    assert sessions(tmp_path / "run") == [True]


def test_the_heartbeat_of_a_validation_is_not_touched_in_its_course(tmp_path: Path, clock: Clock) -> None:
    """A start that is no fit never touches the heartbeat."""
    before = fitted(tmp_path / "run", RuntimeError("x"))

    class Looks(Callback):
        def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
            writer = trainer.logger.experiment
            clock.now += 60
            writer.on_timer()

    logger = RegistryLogger(tmp_path / "run", "r")
    trainer(lightning.pytorch, logger, callbacks=[Looks()]).validate(
        small_model(lightning.pytorch), data(), verbose=False
    )
    assert shown(tmp_path / "run") == before

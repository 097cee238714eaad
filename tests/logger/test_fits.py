"""Only a fit changes a run's status, end and heartbeat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import lightning.pytorch
import pytest
import pytorch_lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.tuner import Tuner

from logger import RegistryLogger, RunWriter, run_writer
from logger.heartbeat import Beat, read_beat, restore_beat
from tests.logger.models import data, evaluate, fit, small_model, trainer
from tests.logger.rows import edit_sidecar, read_rows, sidecar

if TYPE_CHECKING:
    from pathlib import Path

# Lightning's advice about a model whose validation is not always used, and about the tuner's own checkpoint.
pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]

PACKAGES = pytest.mark.parametrize("package", [lightning.pytorch, pytorch_lightning], ids=["new", "old"])
LONG_AGO = Beat(b"1775822400.000000\n", 1775822400_000000000)


class Shown(NamedTuple):
    """The facts that only a fit may change."""

    status: str
    ended_at: float | None
    beat: Beat | None


def shown(run_dir: Path) -> Shown:
    found = sidecar(run_dir)
    return Shown(found["status"], found.get("ended_at"), read_beat(run_dir))


def sessions(run_dir: Path) -> list[bool]:
    """Return for each start whether it was a fit."""
    return [session.get("fit", False) for session in sidecar(run_dir)["sessions"]]


ENDS = {"completed": None, "failed": RuntimeError("x"), "interrupted": KeyboardInterrupt(), "running": None}


@pytest.fixture(params=ENDS)
def before(tmp_path: Path, request: pytest.FixtureRequest) -> Shown:
    """Train a run in `tmp_path` long ago, which ended with the status of the parameter, and return what it shows.

    One whose status stays running was killed.
    """
    try:
        fit(tmp_path, ENDS[request.param] or (lambda _model, _batch: None))
    except (RuntimeError, SystemExit):
        assert ENDS[request.param] is not None
    if request.param == "running":
        edit_sidecar(tmp_path, status="running", ended_at=None)
    restore_beat(tmp_path, LONG_AGO)
    assert shown(tmp_path).status == request.param
    return shown(tmp_path)


FAILED = pytest.mark.parametrize("before", ["failed"], indirect=True)


@PACKAGES
def test_an_evaluation_only_adds_rows(
    tmp_path: Path, before: Shown, package: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A validation adds rows and a session; status, end and heartbeat stay, also while it runs."""
    monkeypatch.setattr(run_writer, "JSON_PAUSE", 0.0)

    class Ticks(package.Callback):
        def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.logger.experiment.on_timer()

    evaluate("validate", tmp_path, package, callbacks=[Ticks()])
    assert shown(tmp_path) == before
    assert sessions(tmp_path) == [True, False]
    assert "val" in read_rows(tmp_path)[-1]


class Dies(Callback):
    def __init__(self, hook: str) -> None:
        setattr(self, hook, self._die)

    def _die(self, *_: Any, **__: Any) -> None:
        raise ZeroDivisionError


@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "on_train_start", "on_train_batch_start"])
def test_a_start_that_dies_before_its_first_step_changes_nothing(tmp_path: Path, before: Shown, hook: str) -> None:
    """A start without a training step is no fit and keeps the run's status."""
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, callbacks=[Dies(hook)])
    assert shown(tmp_path) == before
    assert sessions(tmp_path) == [True, False]


def test_a_second_fit_of_one_logger_that_dies_early_keeps_the_first_ones_end(tmp_path: Path) -> None:
    """A second fit without a step keeps the end of the first."""
    logger = RegistryLogger(tmp_path, "r")
    fit(logger)
    before = shown(tmp_path)
    with pytest.raises(ZeroDivisionError):
        fit(logger, callbacks=[Dies("on_train_start")])
    assert (shown(tmp_path), sessions(tmp_path)) == (before, [True])


def test_a_completed_training_that_is_resumed_at_its_end_keeps_its_end(tmp_path: Path) -> None:
    """A requeued job that resumes the last checkpoint keeps the run's end."""
    fit(tmp_path, enable_checkpointing=True)
    before = shown(tmp_path)
    again = trainer(lightning.pytorch, RegistryLogger(tmp_path, "r"), max_epochs=1)
    checkpoint = sidecar(tmp_path)["checkpoint_path"]
    again.fit(small_model(lightning.pytorch), data(), ckpt_path=checkpoint, weights_only=False)
    assert (shown(tmp_path), sessions(tmp_path)) == (before, [True, False])


@PACKAGES
def test_a_run_that_is_resumed_is_running_and_ends_again(tmp_path: Path, package: Any) -> None:
    """A requeued run is interrupted while it waits, running from its fit on, and completed at the end."""
    first = RegistryLogger(tmp_path, "r")
    fit(first, package=package, enable_checkpointing=True)
    first.experiment.finalize("interrupted")
    before = shown(tmp_path)
    seen: list[str] = []

    class Looks(package.Callback):
        def setup(self, *_: Any, **__: Any) -> None:
            seen.append(shown(tmp_path).status)

        def on_train_start(self, *_: Any) -> None:
            seen.append(shown(tmp_path).status)

    logger = RegistryLogger(tmp_path, "r")
    _ = logger.experiment
    assert shown(tmp_path) == before
    again = trainer(package, logger, callbacks=[Looks()])
    checkpoint = sidecar(tmp_path)["checkpoint_path"]
    again.fit(small_model(package), data(), ckpt_path=checkpoint, weights_only=False)
    after = shown(tmp_path)
    assert (before.status, seen, after.status) == ("interrupted", ["interrupted", "running"], "completed")
    assert (after.ended_at or 0) > (before.ended_at or 0)
    assert sessions(tmp_path) == [True, True]


@FAILED
def test_the_learning_rate_finder_alone_changes_nothing(tmp_path: Path, before: Shown) -> None:
    """The tuner fits without the logger, so the run is unchanged, and the next training is logged."""
    logger = RegistryLogger(tmp_path, "r")
    tuned = trainer(lightning.pytorch, logger, default_root_dir=tmp_path / "tuner", max_epochs=1)
    model = small_model(lightning.pytorch)
    model.lr = 0.1
    Tuner(tuned).lr_find(model, data(), num_training=3)
    assert (tuned.logger, shown(tmp_path)) == (logger, before)
    tuned.fit(model, data())
    assert (shown(tmp_path).status, len(read_rows(tmp_path))) == ("completed", 2 + 4)


def test_a_directory_that_was_only_tested_is_completed(tmp_path: Path) -> None:
    """The first start of a directory always counts, and a later test changes nothing."""
    evaluate("test", tmp_path)
    before = shown(tmp_path)
    evaluate("test", tmp_path)
    assert (before.status, shown(tmp_path), sessions(tmp_path)) == ("completed", before, [True, False])


@FAILED
@PACKAGES
def test_a_fit_that_logs_no_hyperparameters_is_a_fit(tmp_path: Path, before: Shown, package: Any) -> None:
    """With `enable_autolog_hparams=False` the first row begins the fit, as no hook runs before."""
    seen: list[str] = []
    fit(tmp_path, lambda *_: seen.append(shown(tmp_path).status), package, enable_autolog_hparams=False)
    after = shown(tmp_path)
    assert (seen[-1], after.status, after.beat != before.beat) == ("running", "completed", True)
    assert sessions(tmp_path) == [True, True]


@pytest.mark.parametrize(
    ("error", "status"), [(None, "completed"), (ValueError("x"), "failed"), (KeyboardInterrupt(), "interrupted")]
)
def test_a_writer_without_lightning_ends_as_its_block_ends(
    tmp_path: Path, error: BaseException | None, status: str
) -> None:
    """A RunWriter block ends completed, failed after an exception, interrupted after Ctrl-C.

    A second one shows the old status until its first row, which makes it a fit.
    """
    before = None
    for _ in range(2):
        try:
            with RunWriter.open(tmp_path, "r", tags=["a"], notes="n", display_name="d") as run:
                run.log_hyperparams({"lr": 0.1})
                assert before in (None, shown(tmp_path))
                run.log_metrics({"loss": 0.5}, step=3)
                assert shown(tmp_path)[:2] == ("running", None)
                if error is not None:
                    raise error
        except (ValueError, KeyboardInterrupt):
            pass
        before = shown(tmp_path)
        assert before.status == status
    found = sidecar(tmp_path)
    assert (found["tags"], found["notes"], found["display_name"], found["hparams"]) == (["a"], "n", "d", {"lr": 0.1})
    assert len(read_rows(tmp_path)) == 2

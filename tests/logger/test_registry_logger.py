"""RegistryLogger works under Lightning's Trainer as its own loggers do, with true statuses."""

from __future__ import annotations

import copy
import os
import pickle
import signal
from typing import TYPE_CHECKING, Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyExperiment
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

import logger as package_logger
from logger import RegistryLogger
from tests.logger.models import data, evaluate, fit, small_model, trainer
from tests.logger.rows import edit_sidecar, in_child, read_rows, sidecar, steps, summary, without_time

if TYPE_CHECKING:
    from pathlib import Path

# Lightning's advice about a model whose validation is not always used.
pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")

PACKAGES = pytest.mark.parametrize("package", [lightning.pytorch, pytorch_lightning], ids=["new", "old"])


@PACKAGES
def test_a_training_is_logged_whole(logger: RegistryLogger, package: Any) -> None:
    """Fit and test in either package log every row, with hparams, checkpoint and status."""
    whole = trainer(package, logger)
    assert whole.log_dir == str(logger.run_dir)
    model = small_model(package)
    whole.fit(model, data(), data())
    found = sidecar(logger.run_dir)
    assert (found["status"], found["hparams"]) == ("completed", {"width": 4})
    assert found["checkpoint_path"] == str(logger.run_dir / "checkpoints/epoch=1-step=8.ckpt")
    assert found["ended_at"] is not None
    whole.test(model, data(), verbose=False)
    rows = read_rows(logger.run_dir)
    assert [(row["step"], row["epoch"], *sorted(row.keys() - {"step", "epoch", "wall_time"})) for row in rows] == [
        *[(str(step), "0", "loss") for step in range(4)],
        ("3", "0", "val"),
        *[(str(step), "1", "loss") for step in range(4, 8)],
        ("7", "1", "val"),
        ("8", "2", "test"),
    ]
    times = [float(row["wall_time"]) for row in rows]
    assert times == sorted(times)
    assert yaml.safe_load((logger.run_dir / "hparams.yaml").read_text()) == {"width": 4}
    metrics = summary(logger.run_dir)["metrics"]
    assert {name: stats["count"] for name, stats in metrics.items()} == {"loss": 8, "epoch": 11, "val": 2, "test": 1}
    assert (sidecar(logger.run_dir)["status"], len(sidecar(logger.run_dir)["sessions"])) == ("completed", 1)


@PACKAGES
def test_a_second_fit_is_running_again(logger: RegistryLogger, package: Any) -> None:
    """A second fit is running with a heartbeat until it ends.

    Test and validate keep the status, as does `log_graph` outside of a fit.
    """
    seen: list[tuple[str, bool, bool]] = []

    def look(_: Any, batch: int) -> None:
        if batch == 0:
            found = sidecar(logger.run_dir)
            beat = (logger.run_dir / "heartbeat").stat().st_mtime > 1.0
            seen.append((found["status"], found["ended_at"] is None, beat))
            os.utime((logger.run_dir / "heartbeat"), (1.0, 1.0))

    for _ in range(2):
        fit(logger, look, package)
        ended = sidecar(logger.run_dir)
        assert (ended["status"], ended["ended_at"] is not None) == ("completed", True)
        evaluate("test", logger, package)
        evaluate("validate", logger, package)
        assert sidecar(logger.run_dir)["status"] == "completed"
    assert seen == [("running", True, True)] * 2
    logger.log_graph(torch.nn.Linear(1, 1))
    logger.log_graph(small_model(package))
    assert sidecar(logger.run_dir)["status"] == "completed"


def test_it_is_a_csvlogger_of_both_packages(tmp_path: Path) -> None:
    """Both packages accept it as their CSVLogger, and nothing is written before the first use."""
    logger = RegistryLogger(tmp_path / "run", "r1", tags=["a"])
    assert isinstance(logger, CSVLogger)
    assert isinstance(logger, pytorch_lightning.loggers.CSVLogger)
    assert (logger.log_dir, logger.save_dir, logger.root_dir) == (str(tmp_path / "run"),) * 3
    assert (logger.run_dir, logger.run_id, logger.name, logger.version) == (tmp_path / "run", "r1", "", "")
    logger.finalize("success")  # as the main process of a spawned training does, which logs nothing
    assert not (tmp_path / "run").exists()
    assert package_logger.RegistryLogger is RegistryLogger
    with pytest.raises(AttributeError, match="nothing"):
        _ = package_logger.nothing


class TrialPruned(Exception):  # noqa: N818 - Optuna's name
    pass


@PACKAGES
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("x"), "failed"),
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(0), "interrupted"),
        (SystemExit(3), "failed"),
        (SIGTERMException(), "interrupted"),
        (pytorch_lightning.utilities.exceptions.SIGTERMException(), "interrupted"),
        (TrialPruned(), "interrupted"),
    ],
)
def test_the_status_tells_a_failure_from_an_interruption(
    logger: RegistryLogger, package: Any, error: BaseException, status: str
) -> None:
    """The exception in flight distinguishes a failure from a preemption, Ctrl-C and a pruned trial."""
    with pytest.raises((type(error), SystemExit)):
        fit(logger, error, package)
    found = sidecar(logger.run_dir)
    assert (found["status"], found["tags"]) == (status, ["pruned"] * isinstance(error, TrialPruned))
    assert steps(logger.run_dir) == [0, 1]
    logger.experiment.release()


def test_a_real_sigterm_interrupts(logger: RegistryLogger) -> None:
    """SLURM's preemption signal ends the training, and the run is interrupted."""
    with pytest.raises(SIGTERMException):
        fit(logger, lambda _, batch: os.kill(os.getpid(), signal.SIGTERM) if batch == 1 else None)
    assert sidecar(logger.run_dir)["status"] == "interrupted"


def test_slurms_requeue_signal_interrupts(logger: RegistryLogger) -> None:
    """A requeue in mid-run is an interruption, and a completion if the run continues to its end."""
    statuses = []

    def _slurm_sigusr_handler_fn() -> None:
        logger.finalize("finished")

    def each_step(model: Any, batch: int) -> None:
        assert hasattr(model.trainer._signal_connector, "_slurm_sigusr_handler_fn")
        if batch == 1:
            _slurm_sigusr_handler_fn()
            statuses.append(sidecar(logger.run_dir)["status"])

    fit(logger, each_step)
    assert (statuses, sidecar(logger.run_dir)["status"]) == (["interrupted"], "completed")
    assert steps(logger.run_dir) == [0, 1, 2, 3]


def test_a_later_end_decides(logger: RegistryLogger) -> None:
    """Each finalize sets status and end again by Lightning's word, and rows after it keep them."""
    ended = 0.0
    for value, word in enumerate(("success", "failed", "finished", "aborted", "odd")):
        status = "failed" if word in ("failed", "aborted") else "completed"
        logger.log_metrics({"a": value})
        logger.finalize(word)
        found = sidecar(logger.run_dir)
        assert (found["status"], found["ended_at"] > ended, found["summary"]) == (status, True, {"a": value})
        ended = found["ended_at"]
    logger.log_metrics({"a": -1})
    logger.experiment.release()
    found = sidecar(logger.run_dir)
    assert (found["status"], found["ended_at"], found["summary"]) == ("completed", ended, {"a": -1})


def _log(logger: RegistryLogger) -> None:
    logger.log_metrics({"a": 1.0})


def test_a_spawned_training_that_failed_is_failed(logger: RegistryLogger) -> None:
    """If a child died without ending its run, the parent's finalize ends it as failed."""
    in_child(_log, logger)
    assert sidecar(logger.run_dir)["status"] == "running"
    logger.finalize("failed")
    found = sidecar(logger.run_dir)
    assert (found["status"], len(found["sessions"]), len(read_rows(logger.run_dir))) == ("failed", 1, 1)


@pytest.mark.parametrize("copies", [lambda logger: pickle.loads(pickle.dumps(logger)), copy.deepcopy, copy.copy])
def test_copies_share_one_writer(logger: RegistryLogger, copies: Any) -> None:
    """A pickled or copied logger continues the same rows, heartbeat and session."""
    logger.log_metrics({"a": 1.0})
    other = copies(logger)
    other.log_metrics({"a": 2.0})
    logger.log_metrics({"a": 3.0})
    logger.finalize("success")
    assert (other.run_id, other.save_dir, other.experiment) == (logger.run_id, logger.save_dir, logger.experiment)
    assert steps(logger.run_dir) == [0, 1, 2]
    assert len(sidecar(logger.run_dir)["sessions"]) == 1


def test_a_pickled_logger_may_write_the_run_elsewhere(logger: RegistryLogger) -> None:
    """After it was pickled for a spawned child the logger goes on from the newer state that it finds."""
    logger.log_hyperparams({"seed": 1})
    pickle.dumps(logger)
    child = {"hparams": {"seed": 1, "lr": 0.1}, "updated_at": sidecar(logger.run_dir)["updated_at"] + 1}
    edit_sidecar(logger.run_dir, **child)
    logger.finalize("success")
    found = sidecar(logger.run_dir)
    assert (found["status"], found["hparams"]) == ("completed", child["hparams"])


def _log_pickled(pickled: bytes, strange: bool) -> None:
    if strange:
        in_child(_log_pickled, pickled, False)  # the child of a child did not make the logger, nor did its parent
    else:
        _log(pickle.loads(pickled))


@pytest.mark.parametrize("strange", [False, True])
def test_a_copy_in_an_unrelated_process_is_a_new_start(logger: RegistryLogger, strange: bool) -> None:
    """A logger unpickled by an unrelated program starts a new session, one in a child continues its own."""
    _log(logger)
    logger.finalize("failed")
    in_child(_log_pickled, pickle.dumps(logger), strange)
    assert len(sidecar(logger.run_dir)["sessions"]) == 1 + strange


def test_experiment_offers_what_lightnings_writer_does(logger: RegistryLogger) -> None:
    """`logger.experiment` has the methods of Lightning's ExperimentWriter, and says where it writes."""
    experiment = logger.experiment
    experiment.log_hparams({"a": 1})
    experiment.log_metrics({"b": 1.0}, 4)
    experiment.save()
    assert (experiment.hparams, experiment.log_dir) == ({"a": 1}, str(logger.run_dir))
    assert experiment.metrics_file_path == str(logger.run_dir / "metrics.csv")
    assert steps(logger.run_dir) == [4]


def test_other_ranks_touch_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank one reads and writes nothing, and its experiment accepts any call."""
    RegistryLogger(tmp_path / "held", "r1").log_metrics({"a": 1.0})
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    for run_dir, existing in ((tmp_path / "run", "resume"), (tmp_path / "held", "new"), (tmp_path / "held", "error")):
        logger = RegistryLogger(run_dir, "r1", on_existing=existing)
        assert isinstance(logger.experiment, DummyExperiment)
        logger.log_hyperparams({"a": 1})
        logger.log_metrics({"a": 1.0}, 1)
        logger.log_image("a", [[[1]]], step=1)
        logger.save()
        logger.finalize("success")
    assert [path.name for path in tmp_path.iterdir()] == ["held"]


def test_on_existing_decides_before_the_training(tmp_path: Path) -> None:
    """A directory with a run is resumed, renamed or refused, as asked.

    A folder without a run is used as it is.
    """
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text("")
    logger = RegistryLogger(run_dir, "r1", on_existing="error")
    logger.log_metrics({"a": 1.0})
    logger.finalize("success")
    with pytest.raises(FileExistsError, match="on_existing"):
        RegistryLogger(run_dir, "r1", on_existing="error")
    for _ in range(2):
        logger = RegistryLogger(run_dir, "r1", on_existing="new")
        logger.log_metrics({"b": 2.0})
        logger.finalize("success")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["run", "run.old-1", "run.old-2"]
    assert [list(row)[-1] for name in names for row in read_rows(tmp_path / name)] == ["b", "a", "b"]
    assert len({sidecar(tmp_path / name)["uid"] for name in names}) == 3
    RegistryLogger(run_dir, "r1").log_metrics({"b": 3.0})
    assert len(sidecar(run_dir)["sessions"]) == 2
    with pytest.raises(ValueError, match="on_existing"):
        RegistryLogger(run_dir, "r1", on_existing="overwrite")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="s3://"):
        RegistryLogger("s3://bucket/run", "r1")


def test_a_job_array_is_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM_ARRAY_JOB_ID becomes the tag sweep:<id> once, also after a requeue."""
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "42")
    for _ in range(2):
        RegistryLogger(tmp_path / "run", "r1", tags=["a", "sweep:42"]).log_metrics({"a": 1.0})
        assert sidecar(tmp_path / "run")["tags"] == ["a", "sweep:42"]
        RegistryLogger(tmp_path / "other", "r2").log_metrics({"a": 1.0})
        assert sidecar(tmp_path / "other")["tags"] == ["sweep:42"]


def test_odd_hyperparameters_are_yaml_that_is_safe_to_read(logger: RegistryLogger) -> None:
    """Objects, enums, tuples, aliases and any script become plain values in hparams.yaml.

    Collisions warn.
    """
    shared = [1, 2]
    same = {"one": shared, "two": shared, "名": None}
    with pytest.warns(UserWarning, match=r"'a\.b'"):
        logger.log_hyperparams({"a": {"b": 1}, "a.b": 2, "t": (1, "é"), "o": object(), "nan": float("inf")} | same)
    logger.log_hyperparams()
    same |= {"t": [1, "é"], "o": "<object object>"}
    nested = yaml.safe_load((logger.run_dir / "hparams.yaml").read_text())
    assert nested == {"a": {"b": 1}, "a.b": 2, "nan": float("inf")} | same
    assert sidecar(logger.run_dir)["hparams"] == {"a.b": 1, "a.b_2": 2, "nan": "Infinity"} | same


def test_names_of_any_script_are_kept(tmp_path: Path) -> None:
    """A column is called as its metric in any script, with commas, quotes and emoji, behind the `prefix` and a dash."""
    names = ["потеря", "損失", "acc@5", "a,b", 'say "x"', "🙂", " lead", "tab\t", "\ud800"]
    logger = RegistryLogger(tmp_path, "r1", prefix="tmp")
    logger.log_metrics(dict.fromkeys(names, 1.0), 0)
    logger.finalize("success")
    (row,) = without_time(read_rows(tmp_path))
    assert list(row) == ["step", *(f"tmp-{name}" for name in names[:-1]), "tmp-\\ud800"]
    assert list(summary(tmp_path)["metrics"]) == [f"tmp-{name}" for name in names]


def test_a_failing_hook_does_not_end_a_training(logger: RegistryLogger) -> None:
    """Arguments that a hook cannot handle cause a warning, not an exception."""
    with pytest.warns(UserWarning, match="log_metrics of RegistryLogger failed"):
        logger.log_metrics(5)  # type: ignore[arg-type]
    logger.log_metrics({"a": 1.0})
    logger.finalize("success")
    assert len(read_rows(logger.run_dir)) == 1

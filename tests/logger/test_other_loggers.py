"""Calls for other loggers, pruned trials and failing disks never end a training.

Calls that have a place in a run directory are stored, others are ignored with a warning.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch
import numpy as np
import pytest
import torch
from PIL import Image

from logger import RegistryLogger, RegistryLoggerWarning, RunWriter
from tests.logger.models import data, fit, small_model, trainer
from tests.logger.rows import media, read_rows, sidecar, without_time

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


@pytest.mark.parametrize(
    "name", ["log_text", "watch", "experiment.add_histogram", "experiment.log", "experiment.track"]
)
def test_methods_of_other_loggers_warn_once(logger: RegistryLogger, name: str) -> None:
    """Methods of other loggers, and those of their experiments, warn once and return None, whatever their arguments."""
    on_experiment, _, last = name.rpartition(".")
    holder = logger.experiment if on_experiment else logger
    with pytest.warns(RegistryLoggerWarning, match=f"{name} is not supported"):
        assert getattr(holder, last)("key", [1], step=3) is None
    assert getattr(holder, last)(model=None) is None  # a second warning would be an error
    with pytest.warns(RegistryLoggerWarning, match=r"experiment\.config\.update"):
        logger.experiment.config.update({"a": 1})
    with pytest.warns(RegistryLoggerWarning, match=r"experiment\.summary"):
        logger.experiment.summary["best"] = 1


def test_misspelt_attributes_are_errors(logger: RegistryLogger) -> None:
    """A name that no logger has raises AttributeError."""
    assert not hasattr(logger, "run_directory")
    with pytest.raises(AttributeError, match="run_directory"):
        _ = logger.run_directory
    assert not hasattr(logger.experiment, "_private")


def test_calls_of_a_summary_writer_are_stored(logger: RegistryLogger) -> None:
    """SummaryWriter's scalars become rows; its images, figures and videos become media with exact pixels."""
    from matplotlib.figure import Figure

    writer = logger.experiment
    writer.add_scalar("a", torch.tensor(0.5), 3, new_style=True)
    writer.add_scalars("b", {"x": 1.0, "y": 2.0}, global_step=4)
    pixels = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)
    writer.add_image("chw", torch.from_numpy(pixels).permute(2, 0, 1), 5)
    writer.add_image("hwc", pixels, 5, dataformats="HWC")
    writer.add_image("hw", pixels[:, :, 0], 5, dataformats="HW")
    writer.add_image("float", torch.ones(3, 2, 2), 5)
    writer.add_images("batch", np.zeros((2, 1, 4, 4), np.uint8), 6)
    writer.add_figure("figure", Figure(figsize=(1, 1), dpi=20), 7)
    writer.add_figure("figures", [Figure(figsize=(1, 1), dpi=20)] * 2, 7, close=False)
    writer.add_video("video", torch.zeros(2, 3, 3, 4, 4, dtype=torch.uint8), 8, fps=5)
    writer.flush()
    writer.close()
    assert without_time(read_rows(logger.run_dir)) == [
        {"step": "3", "a": "0.5"},
        {"step": "4", "b/x": "1.0", "b/y": "2.0"},
    ]
    events = media(logger.run_dir)
    assert [(event["tag"], event["step"], event["type"]) for event in events] == [
        *[(tag, 5, "image") for tag in ("chw", "hwc", "hw", "float")],
        *[("batch", 6, "image")] * 2,
        ("figure", 7, "image"),
        *[("figures", 7, "image")] * 2,
        *[("video", 8, "video")] * 2,
    ]
    for event, expected in zip(events[:3], (pixels, pixels, pixels[:, :, 0]), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(logger.run_dir / event["path"])), expected)
    assert [event["fps"] for event in events[-2:]] == [5.0, 5.0]


def test_tags_and_notes_can_be_read_and_set(tmp_path: Path) -> None:
    """Tags and notes can be read and set before and after the first use, and follow people's edits."""
    logger = RegistryLogger(tmp_path / "run", "r", tags=["a"], notes="n", display_name="shown")
    assert (logger.tags, logger._tags, logger.notes) == (["a"], ["a"], "n")
    assert not (tmp_path / "run").exists()
    logger.log_metrics({"a": 1.0})
    assert sidecar(tmp_path / "run")["display_name"] == "shown"
    logger.tags = ["b", "b", "c"]
    logger.notes = "other"
    found = sidecar(tmp_path / "run")
    assert (found["tags"], found["notes"]) == (["b", "c"], "other")
    assert (logger.tags, logger._tags, logger.notes) == (["b", "c"], ["b", "c"], "other")
    logger.finalize("success")
    again = RegistryLogger(tmp_path / "run", "r", tags=["a"])
    assert (again.tags, again.notes) == (["b", "c"], "other")
    again.log_metrics({"a": 1.0})
    assert again.tags == ["b", "c"]


def test_paths_do_not_move_with_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative run_dir is that of the moment when the logger is made, and a relative checkpoint becomes absolute."""
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    logger = RegistryLogger("run", "r")
    monkeypatch.chdir("other")

    class Checkpoint:
        best_model_path = "checkpoints/best.ckpt"

    logger.after_save_checkpoint(Checkpoint())
    assert sidecar(tmp_path / "run")["checkpoint_path"] == str(tmp_path / "other/checkpoints/best.ckpt")
    logger.experiment.set_checkpoint("s3://bucket/best.ckpt")
    assert sidecar(tmp_path / "run")["checkpoint_path"] == "s3://bucket/best.ckpt"


def test_a_dry_run_moves_nothing_aside(tmp_path: Path) -> None:
    """With `fast_dev_run` nothing is written, so `on_existing="new"` moves nothing."""
    RegistryLogger(tmp_path / "run", "r").log_metrics({"a": 1.0})
    logger = RegistryLogger(tmp_path / "run", "r", on_existing="new")
    trainer(lightning.pytorch, logger, fast_dev_run=True).fit(small_model(lightning.pytorch), data())
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    logger.log_metrics({"b": 1.0})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.old-1"]


@pytest.mark.parametrize(
    ("place", "run_id"),
    [("copied", "forked"), ("copied", "r"), ("renamed", "r"), ("linked", "r")],
    ids=["a copy under another run id", "a copy under the same run id", "renamed", "another path"],
)
def test_a_copy_under_another_run_id_is_a_fork(tmp_path: Path, place: str, run_id: str) -> None:
    """A copy under another run id gets a new identity, keeps its history, and leaves the original unchanged.

    A copy under the same id is warned about with both paths; a renamed directory, or another path to it, is no copy.
    """
    run_dir, other = tmp_path / "run", tmp_path / "other"
    with RunWriter.open(run_dir, "r", tags=["a"]) as run:
        run.log_metrics({"a": 1.0}, 0)
    before = sidecar(run_dir)
    match place:
        case "copied":
            shutil.copytree(run_dir, other)
        case "renamed":
            run_dir.rename(other)
        case "linked":
            other.symlink_to("run")
    for step in (1, 2):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            with RunWriter.open(other, run_id) as run:
                run.log_metrics({"a": 2.0}, step)
        said = [f"{other} and {run_dir} hold the same run" in str(warning.message) for warning in told]
        assert said == [True] * (place == "copied" and run_id == "r" and step == 1)
        found = sidecar(other)
        forked = run_id == "forked"
        assert (found["run_id"], found.get("forked_from")) == (run_id, before["uid"] if forked else None)
        assert (found["uid"] != before["uid"], len(read_rows(other))) == (forked, 1 + step)
    if place == "copied":
        assert sidecar(run_dir) == before


def test_without_lightning_an_import_error_says_what_to_install(tmp_path: Path) -> None:
    """Without Lightning, RunWriter works and RegistryLogger's ImportError has the pip line."""
    program = (
        "import sys; sys.modules['lightning'] = sys.modules['lightning.fabric'] = None\n"
        "from logger import RunWriter\n"
        "with RunWriter.open(sys.argv[1], 'r') as run: run.log_metrics({'a': 1.0})\n"
        "from logger import RegistryLogger\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "run"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "ImportError: RegistryLogger needs the package lightning: pip" in done.stderr
    assert 'pip install "registry-bridge[logger]"' in done.stderr
    assert sidecar(tmp_path / "run")["status"] == "completed"


def test_a_full_disk_in_a_training_is_reported_at_its_end(
    tmp_path: Path, limit_files: Callable[[int | None], None]
) -> None:
    """A training on a full disk continues, and its last warning counts the missing rows."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    def each_step(model: Any, batch: int) -> None:
        model.logger.log_metrics({"filler": "x" * 3000}, batch)
        limit_files(5000)

    logger = RegistryLogger(tmp_path / "run", "r", flush_logs_every_n_steps=1)
    with pytest.warns(RegistryLoggerWarning) as caught:
        fit(logger, each_step)
    limit_files(None)
    told = [str(warning.message) for warning in caught]
    assert sum("cannot be written" in sentence for sentence in told) == 1
    assert "rows of" in told[-1]
    assert "could not be written" in told[-1]
    assert sidecar(tmp_path / "run")["status"] == "completed"
    logger.experiment.release()
    assert len(read_rows(tmp_path / "run")) == 8

"""A training machine needs only the extra `logger`, with an old Lightning too."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.logger.environments import ROOT, fresh_environment
from tests.logger.rows import read_rows, sidecar

if TYPE_CHECKING:
    from pathlib import Path

OLDEST = "2.4.0"
"""The oldest Lightning that works with the newest torch: older ones need pkg_resources, which is gone."""

pytestmark = pytest.mark.timeout(1800)  # half a gigabyte is unpacked

PROGRAM = """
import importlib.util, inspect, json, pathlib, sys, warnings
for name in ("mlflow", "tensorboard", "tensorboardX", "omegaconf", "av"):
    assert importlib.util.find_spec(name) is None, name
import logger
assert "site-packages" in logger.__file__ and "torch" not in sys.modules
import lightning, lightning.pytorch, numpy
from logger import RegistryLogger
sys.path.append(sys.argv[1])
from tests.logger.models import data, small_model, trainer
warnings.simplefilter("ignore")
run = RegistryLogger(sys.argv[2], "r1")
fit = trainer(lightning.pytorch, run)
fit.fit(small_model(lightning.pytorch), data(), data())
run.log_image("x", [numpy.zeros((2, 2))])
fit.test(small_model(lightning.pytorch), data(), verbose=False)

def shown():
    found = json.loads(pathlib.Path(sys.argv[2], "sidecar.json").read_text())
    return found["status"], found["ended_at"], pathlib.Path(sys.argv[2], "heartbeat").read_bytes()

# Only a fit that takes a step changes status, end and heartbeat.
before = shown()
later = RegistryLogger(sys.argv[2], "r1")
trainer(lightning.pytorch, later).validate(small_model(lightning.pytorch), data(), verbose=False)
assert shown() == before, (shown(), before)
class Dies(lightning.pytorch.Callback):
    def on_train_start(self, *_):
        raise RuntimeError("no data")
try:
    trainer(lightning.pytorch, RegistryLogger(sys.argv[2], "r1"), callbacks=[Dies()]).fit(
        small_model(lightning.pytorch), data()
    )
except RuntimeError:
    pass
assert shown() == before, (shown(), before)
seen = []
look = small_model(lightning.pytorch, each_step=lambda model, batch: seen.append(shown()[0]))
resumed = RegistryLogger(sys.argv[3], "r2")
trainer(lightning.pytorch, resumed, max_epochs=1).validate(look, data(), verbose=False)
again = RegistryLogger(sys.argv[3], "r2")
options = inspect.signature(lightning.pytorch.Trainer.__init__).parameters
quiet = {"enable_autolog_hparams": False} if "enable_autolog_hparams" in options else {}
trainer(lightning.pytorch, again, max_epochs=1, **quiet).fit(look, data(), data())
found = json.loads(pathlib.Path(sys.argv[3], "sidecar.json").read_text())
assert found["status"] == "completed" and [s.get("fit") for s in found["sessions"]] == [True, True], found
print(lightning.__version__)
"""


def train(python: Path, run_dir: Path) -> str:
    """Train with `python`, check the run, and return Lightning's version."""
    done = subprocess.run(
        [python, "-I", "-c", PROGRAM, ROOT, run_dir, f"{run_dir}-2"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = read_rows(run_dir)
    assert [(row["step"], row["epoch"]) for row in rows if "loss" in row or "val" in row or "test" in row] == [
        *[(str(step), "0") for step in (0, 1, 2, 3, 3)],
        *[(str(step), "1") for step in (4, 5, 6, 7, 7)],
        ("8", "2"),
        ("0", "0"),  # validated by a later start
    ]
    found = sidecar(run_dir)
    assert (found["status"], found["hparams"]) == ("completed", {"width": 4})
    assert (run_dir / "media/x/00000007_0.png").is_file()
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_the_extra_logger_alone_trains(tmp_path: Path) -> None:
    """A training is logged without MLflow and TensorBoard, and `import logger` loads no torch."""
    train(fresh_environment(tmp_path, extra="logger"), tmp_path / "run")


@pytest.mark.compat
def test_the_oldest_lightning_trains(tmp_path: Path) -> None:
    """The oldest version that pyproject names logs as the newest does."""
    assert f'"lightning>={OLDEST.removesuffix(".0")}"' in (ROOT / "pyproject.toml").read_text()
    python = fresh_environment(tmp_path, f"lightning=={OLDEST}", "fsspec<2026", "packaging<25", extra="logger")
    assert train(python, tmp_path / "run") == OLDEST

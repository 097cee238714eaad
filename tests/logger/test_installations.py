"""The logger works with an old Lightning too."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.environments import ROOT, fresh_environment
from tests.logger.rows import read_rows, sidecar

if TYPE_CHECKING:
    from pathlib import Path

OLDEST = "2.4.0"
"""The oldest Lightning that works with the newest torch: older ones need pkg_resources, which is gone."""

PROGRAM = """
import inspect, pathlib, sys, warnings
import logger
assert "site-packages" in logger.__file__ and "torch" not in sys.modules
import lightning, lightning.pytorch, numpy
from logger import RegistryLogger
sys.path.append(sys.argv[1])
from tests.logger.models import data, evaluate, fit, small_model, trainer
from tests.logger.rows import sidecar
warnings.simplefilter("ignore")
first, second = pathlib.Path(sys.argv[2]), pathlib.Path(f"{sys.argv[2]}-2")
run = RegistryLogger(first, "r")
trains = trainer(lightning.pytorch, run)
trains.fit(small_model(lightning.pytorch), data(), data())
run.log_image("x", [numpy.zeros((2, 2))])
trains.test(small_model(lightning.pytorch), data(), verbose=False)

def shown():
    found = sidecar(first)
    return found["status"], found["ended_at"], (first / "heartbeat").read_bytes()

# Only a fit that takes a step changes status, end and heartbeat.
before = shown()
evaluate("validate", first)
assert shown() == before, (shown(), before)
class Dies(lightning.pytorch.Callback):
    def on_train_start(self, *_):
        raise ZeroDivisionError
try:
    fit(first, callbacks=[Dies()])
except ZeroDivisionError:
    pass
assert shown() == before, (shown(), before)
evaluate("validate", second)
options = inspect.signature(lightning.pytorch.Trainer.__init__).parameters
fit(second, **({"enable_autolog_hparams": False} if "enable_autolog_hparams" in options else {}))
found = sidecar(second)
assert found["status"] == "completed" and [s.get("fit") for s in found["sessions"]] == [True, True], found
print(lightning.__version__)
"""


@pytest.mark.compat
@pytest.mark.timeout(1800)  # half a gigabyte is unpacked
def test_the_oldest_lightning_trains(tmp_path: Path) -> None:
    """The oldest version that pyproject names logs as the newest does."""
    assert f'"lightning>={OLDEST.removesuffix(".0")}"' in (ROOT / "pyproject.toml").read_text()
    python = fresh_environment(tmp_path, f"lightning=={OLDEST}", "fsspec<2026", "packaging<25", extra="logger")
    run_dir = tmp_path / "run"
    command = [python, "-I", "-c", PROGRAM, ROOT, run_dir]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == OLDEST
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

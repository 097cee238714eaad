"""The wheel is complete, and its declared dependencies are enough, extra by extra."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.environments import Environment, environment
from tests.run_dirs import make_run

ROOT = Path(__file__).resolve().parent.parent

TRAINING = """
import logging, sys, warnings
warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from logger import RegistryLogger

class Model(BoringModel):
    def training_step(self, batch, index):
        loss = super().training_step(batch, index)["loss"]
        self.log("train/loss", loss)
        return loss

trainer = Trainer(
    max_steps=3, accelerator="cpu", devices=1, logger=RegistryLogger("run", "run"), log_every_n_steps=1,
    enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, limit_val_batches=0,
)
trainer.fit(Model())
for absent in ("mlflow", "tensorboard"):
    assert absent not in sys.modules
    try:
        __import__(absent)
    except ImportError:
        continue
    raise AssertionError(absent)
"""

EXPORTING = """
import importlib.util, sys
from bridge.cli import bridge

assert not any(map(importlib.util.find_spec, ("torch", "lightning")))
for command in ("export --json", "export --json", "verify"):
    name, *options = command.split()
    bridge([name, "runs", "--to", sys.argv[1], *options], standalone_mode=False)
    if name == "export":
        print("END")
"""
"""Three commands in one process, since MLflow takes seconds to load."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the sdist and the wheel, built from a copy of the project.

    The project itself stays unchanged.
    """
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    source.mkdir()
    for name in ("bridge", "logger"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """Return the wheel."""
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Return an environment with the wheel without any extra."""
    return environment(tmp_path_factory.mktemp("bare") / "env", wheel)


def test_wheel_holds_every_file_of_both_packages(wheel: Path) -> None:
    """The wheel has every module, the schema of bridge.yaml, both py.typed marks, the licence and the entry points."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        text = archive.read(entry_points).decode()
    modules = {str(path.relative_to(ROOT)) for name in ("bridge", "logger") for path in (ROOT / name).rglob("*.py")}
    assert modules | {"bridge/py.typed", "logger/py.typed", "bridge/bridge.schema.json"} <= names
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"bridge", "logger"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert all(entry in text for entry in ("bridge = bridge.__main__:main", "tensorboard = ", "mlflow = "))


def test_sdist_holds_what_the_wheel_is_made_of(built: Path, wheel: Path) -> None:
    """The sdist has the wheel's sources, the licence and the changelog, and no stray tests."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive_of_wheel:
        needed = {name for name in archive_of_wheel.namelist() if ".dist-info/" not in name}
    assert needed - held == set()
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml"} <= held
    assert [name for name in held if name.startswith("tests")] == []


def test_base_alone_reads_runs(bare: Environment, tmp_path: Path) -> None:
    """Without any extra the command starts, lists runs, and knows its version."""
    make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 1.0}])
    assert bare.run("-m", "bridge", "--version", cwd=tmp_path).stdout.startswith("bridge, version ")
    listed = bare.run("-m", "bridge", "ls", "runs", "--json", cwd=tmp_path).stdout
    assert '"a"' in listed


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["export", "runs", "--to", "tensorboard"], "tensorboard"),
        (["export", "runs", "--to", "mlflow"], "mlflow"),
        (["demo", "new-runs"], "demo"),
    ],
)
def test_a_missing_extra_names_its_pip_line(
    bare: Environment, tmp_path: Path, arguments: list[str], extra: str
) -> None:
    """A missing extra is exit code 1 with the pip line."""
    make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 1.0}])
    done = bare.run("-m", "bridge", *arguments, cwd=tmp_path, code=1)
    assert f'pip install "registry-bridge[{extra}]"' in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("extra", ["tensorboard", "mlflow"])
def test_exporting_needs_no_torch(wheel: Path, tmp_path: Path, extra: str) -> None:
    """A machine with one target's extra exports twice and verifies.

    Torch and lightning are not installed there.
    """
    env = environment(tmp_path / "env", wheel, [extra])
    make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 1.0}])
    new, unchanged, verified = env.run("-c", EXPORTING, extra, cwd=tmp_path).stdout.split("END\n")
    assert [json.loads(told)["runs"][0]["action"] for told in (new, unchanged)] == ["new", "unchanged"]
    assert "1 =" in verified


def test_training_needs_neither_mlflow_nor_tensorboard(wheel: Path, tmp_path: Path) -> None:
    """With only the extra `logger` a Lightning training is logged row by row."""
    env = environment(tmp_path / "env", wheel, ["logger"])
    env.run("-c", TRAINING, cwd=tmp_path)
    header, *rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert "train/loss" in header.split(",")
    assert len(rows) == 3

"""A run, its exporter and its folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bridge.exporters.tensorboard import TensorBoardExporter
from tests.deltas import make_model_run
from tests.run_dirs import CREATED_S

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.model import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_model_run(tmp_path / "runs" / "abc", params={"lr": 0.1}, start=CREATED_S - 10)


@pytest.fixture
def exporter(tmp_path: Path) -> TensorBoardExporter:
    return TensorBoardExporter(tmp_path / "logs", lock_wait=0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "abc"

"""Provide processes to measure in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.property.zygote import Zygote

if TYPE_CHECKING:
    from collections.abc import Iterator

_LIGHT = (
    "bridge.cli.export",
    "bridge.cli.verify",
    "bridge.cli.ls",
    "bridge.cli.scan",
    "bridge.cli.show",
    "bridge.sync.export",
    "bridge.sync.verify",
    "bridge.exporters.tensorboard.exporter",
    "bridge.exporters.tensorboard.readback",
    "tests.security.measured",
    "pyarrow.csv",
    "yaml",
    "PIL.Image",
)


@pytest.fixture(scope="session")
def light() -> Iterator[Zygote]:
    """Yield a process that forks children with everything imported except MLflow."""
    zygote = Zygote(_LIGHT)
    yield zygote
    zygote.close()


@pytest.fixture(scope="session")
def heavy() -> Iterator[Zygote]:
    """Yield a process that forks children with MLflow imported too."""
    zygote = Zygote((*_LIGHT, "mlflow.store.tracking.sqlalchemy_store", "mlflow", "bridge.exporters.mlflow.exporter"))
    yield zygote
    zygote.close()

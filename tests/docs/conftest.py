"""Provide a process to run the commands of the pages in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.property.zygote import Zygote

if TYPE_CHECKING:
    from collections.abc import Iterator

_IMPORTED = (
    "bridge.api",
    "bridge.cli.export",
    "bridge.cli.ls",
    "bridge.cli.verify",
    "bridge.exporters.mlflow.exporter",
    "bridge.exporters.tensorboard.exporter",
    "lightning.pytorch.demos.boring_classes",
    "logger",
    "mlflow.store.tracking.sqlalchemy_store",
    "pandas",
)


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Yield a process that forks children with everything imported, since imports take most of a command's time."""
    zygote = Zygote(_IMPORTED)
    yield zygote
    zygote.close()

"""One process that has imported everything, for all tests of this folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.property.zygote import Zygote

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULES = (
    "bridge.sync.export",
    "tests.memory_exporter",
    "bridge.exporters.tensorboard",
    "bridge.exporters.mlflow",
    "bridge.rundir.deltas",
    "mlflow.tracking",
    "mlflow.store.tracking.sqlalchemy_store",
    "tensorboard.compat.proto.event_pb2",
)


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Yield one process for all tests, because importing everything takes seconds."""
    process = Zygote(MODULES)
    yield process
    process.close()

"""Install older versions of MLflow, each once, into environments kept in `.compat`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.environments import BRIDGE_NEEDS, installed
from tests.fixtures.mlflow_server import MlflowServer, start_mlflow_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SERVERS = ("2.22", "3.0", "3.4")
CLIENTS = ("2.22", "3.0", "3.4")

_NEEDS = ("sqlalchemy<2.1", *BRIDGE_NEEDS)
"""What the bridge needs, and a SQLAlchemy of which MLflow 2.22 can import everything."""


def environment(version: str) -> Path:
    """Return the folder with an MLflow version's programs, after making its environment if needed."""
    return installed(f"mlflow-{version}", (f"mlflow=={version}.*", *_NEEDS))


@pytest.fixture(scope="session", params=SERVERS)
def old_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """Start a server of an older version on a SQLite file that it made."""
    folder = tmp_path_factory.mktemp("old-mlflow-server")
    program = environment(request.param) / "mlflow"
    server = start_mlflow_server(f"sqlite:///{folder}/mlflow.db", folder, program=str(program))
    try:
        yield server
    finally:
        server.stop()

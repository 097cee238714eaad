"""An MLflow server of version 2.22 in an environment of its own, which is made once and kept in `.compat`."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fixtures.mlflow_server import MlflowServer, start_mlflow_server

if TYPE_CHECKING:
    from collections.abc import Iterator

OLD = "2.22"
_ENVIRONMENTS = Path(__file__).parents[4] / ".compat"


def _old_mlflow() -> Path:
    """Return the program `mlflow` of the old version; its environment is made where there is none."""
    folder = _ENVIRONMENTS / f"mlflow-{OLD}"
    program, ready = folder / "bin" / "mlflow", folder / ".ready"
    if not ready.exists():
        print(f"Setting up {folder} (minutes, once)", file=sys.stderr)
        venv.EnvBuilder(with_pip=True, clear=True).create(folder)
        # It asks for sqlalchemy<3 and imports what SQLAlchemy 2.1, younger than it, has no more.
        needs = [f"mlflow=={OLD}.*", "sqlalchemy<2.1"]
        subprocess.run(
            [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *needs], check=True
        )
        ready.touch()
    return program


@pytest.fixture(scope="session")
def old_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """Yield a running server of the old version on a SQLite file that it made."""
    folder = tmp_path_factory.mktemp("old-mlflow-server")
    server = start_mlflow_server(f"sqlite:///{folder}/mlflow.db", folder, program=str(_old_mlflow()))
    try:
        yield server
    finally:
        server.stop()

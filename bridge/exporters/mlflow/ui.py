"""MLflow's page on what was exported: a server of our own on a database, or the server that runs already."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from bridge.exporters.contract import Interface

if TYPE_CHECKING:
    from bridge.exporters.mlflow.place import Place

__all__ = ["DEFAULT_PORT", "interface"]

DEFAULT_PORT = 5000

# The job runner of the server's GenAI side starts processes of its own, which this page does not need.
_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def interface(place: Place, port: int) -> Interface:
    """MLflow at `place`, opened where the experiment's runs are listed; on 127.0.0.1 and `port` if it is a database."""
    page = _page(place)
    if place.address.is_server:
        return Interface(address=f"{place.address.shown}/{page}", probe=f"{place.address.uri}/health")
    return Interface(
        address=f"http://127.0.0.1:{port}/{page}",
        probe=f"http://127.0.0.1:{port}/health",
        argv=(
            sys.executable, "-m", "mlflow", "server",
            "--host", "127.0.0.1",
            "--port", str(port),
            "--workers", "1",
        ),
        # Not on its command line, which everybody on this machine can read.
        environment={**_ENVIRONMENT, "MLFLOW_BACKEND_STORE_URI": place.address.uri},
    )  # fmt: skip


def _page(place: Place) -> str:
    """The list of the experiment's runs in the view for training; of all experiments where runs go into several."""
    found = None if place.naming.varies else place.experiment(place.naming.template)
    return "#/experiments" if found is None else f"#/experiments/{found.id}/runs?workflowType=machine_learning"

"""The options of a live view, on their way from `bridge view` to the process of MLflow's server."""

from __future__ import annotations

import hashlib
import socket
from urllib.parse import quote

import msgspec

from bridge.files import cache_dir
from bridge.options import ContentOptions, SelectionOptions

VARIABLE = "BRIDGE_VIEW"
"""The environment variable that holds the options as JSON."""

LIVE_PATH = "/.live/"
"""Separates the folder of runs from the id of a run and the path of a file, in the address of an artifact."""


class LiveOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a live view shows. Without `roots` and `experiment` the address of the store says both."""

    roots: list[str] = []
    selection: SelectionOptions = SelectionOptions()
    content: ContentOptions = ContentOptions()
    experiment: str | None = None
    experiment_default: str | None = None
    heartbeat_timeout: float = 180.0
    edit: bool = False


def live_environment(options: LiveOptions, host: str) -> dict[str, str]:
    """Return the environment in which MLflow's server shows the run directories of `options` at `host`."""
    store = f"registry://{quote(options.roots[0])}"
    environment = {
        VARIABLE: msgspec.json.encode(options).decode(),
        "MLFLOW_BACKEND_STORE_URI": store,
        "MLFLOW_REGISTRY_STORE_URI": store,
        "MLFLOW_ARTIFACTS_DESTINATION": store,
        "MLFLOW_SERVE_ARTIFACTS": "true",
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": "mlflow-artifacts:/",
        # MLflow's server copies files that it makes or passes on into a temporary folder.
        "TMPDIR": str(cache_dir() / "view"),
    }
    if host != "127.0.0.1":
        # From 3.5 on MLflow refuses requests for other names than these.
        names = dict.fromkeys(("localhost", "127.0.0.1", host, socket.gethostname(), socket.getfqdn()))
        environment["MLFLOW_SERVER_ALLOWED_HOSTS"] = ",".join(f"{name},{name}:*" for name in names)
    return environment


def live_experiment_id(name: str) -> str:
    """Return the id of an experiment in a live view, which follows from its name alone."""
    return str(int(live_digest(name)[:15], 16))


def live_digest(text: str) -> str:
    """Return 32 hexadecimal digits that follow from `text`, as MLflow's ids look."""
    return hashlib.md5(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()

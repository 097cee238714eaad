"""The way of a live view's options from `bridge view` to the process of MLflow's server."""

from __future__ import annotations

from urllib.parse import quote, unquote, urlsplit

import msgspec

from bridge.files import cache_dir
from bridge.live import LiveOptions, digest_id
from bridge.view import host_names

VARIABLE = "BRIDGE_VIEW"
"""The environment variable with the LiveOptions as JSON. Without it the address of the store says what is shown."""

LIVE_PATH = "/.live/"
"""Separates the folder of runs from the id of a run and the path of a file, in the address of an artifact."""


def split_address(address: str) -> tuple[str, str]:
    """Return the folder of runs that an address of a store or an artifact names, and the path behind LIVE_PATH."""
    root, _, path = f"{unquote(urlsplit(address).path)}/".partition(LIVE_PATH)
    return root.rstrip("/") or "/", path.strip("/")


def live_environment(options: LiveOptions, host: str) -> dict[str, str]:
    """Return the environment in which MLflow's server shows the run directories of `options` at `host`."""
    store = f"registry://{quote(options.roots[0])}"
    names = [f"[{name}]" if ":" in name else name for name in sorted(host_names(host))]
    return {
        VARIABLE: msgspec.json.encode(options).decode(),
        "MLFLOW_BACKEND_STORE_URI": store,
        "MLFLOW_REGISTRY_STORE_URI": store,
        "MLFLOW_ARTIFACTS_DESTINATION": store,
        "MLFLOW_SERVE_ARTIFACTS": "true",
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": "mlflow-artifacts:/",
        # MLflow's server copies files that it makes or passes on into a temporary folder.
        "TMPDIR": str(cache_dir() / "view"),
        # From 3.5 on MLflow refuses requests for other names than these. In a pattern, `[[]` is an opening bracket.
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(f"{name},{name.replace('[', '[[]')}:*" for name in names),
    }


def live_experiment_id(name: str) -> str:
    """Return the id of an experiment in a live view, which follows from its name alone."""
    return str(int(digest_id(name)[:15], 16))

"""MLflow's entry points for `registry:///RUNS`.

Every `import mlflow` loads this file, so it imports nothing heavy at its top.
"""

from __future__ import annotations

import functools
from typing import Any


def tracking_store(store_uri: str, artifact_uri: str | None = None) -> Any:
    """Return the tracking store for `registry:///RUNS`. One process has one store of one folder."""
    import os

    from bridge.exporters.mlflow.exporter import LIVE_VARIABLE, split_live_address

    return shared_store(split_live_address(store_uri)[0], os.environ.get(LIVE_VARIABLE, ""))


def model_registry(store_uri: str, tracking_uri: str | None = None) -> Any:
    """Return the model registry for `registry:///RUNS`, which is empty."""
    from bridge.exporters.mlflow.live import LiveModelRegistry

    return LiveModelRegistry(store_uri, tracking_uri)  # type: ignore[abstract, no-untyped-call]


def artifact_repository(artifact_uri: str, *_args: Any, **_keywords: Any) -> Any:
    """Return the artifact repository for `registry:///RUNS`."""
    from bridge.exporters.mlflow.live import LiveArtifacts

    return LiveArtifacts(artifact_uri, tracking_store(artifact_uri))


@functools.cache
def shared_store(root: str, given: str) -> Any:
    """Return the store of `root`, or of what the options in the file `given` ask for."""
    import os
    from pathlib import Path
    from urllib.parse import quote

    from bridge.exporters.mlflow.exporter import LIVE_PATH
    from bridge.exporters.mlflow.live import LiveStore
    from bridge.exporters.mlflow.store import ExperimentName
    from bridge.live import LiveOptions, LiveRuns
    from bridge.rundir.edit import edit_run
    from bridge.sync.select import Selection, select

    options = LiveOptions.from_json(Path(given).read_text()) if given else LiveOptions(roots=[root])
    live = LiveRuns(options, functools.partial(select, selection=Selection.of(options.selection)))
    # A server passes artifacts on; a client without one reads them itself.
    is_server = os.environ.get("_MLFLOW_SERVER_ARTIFACT_DESTINATION", "").startswith("registry:")
    return LiveStore(  # type: ignore[abstract]  # the others are refused
        live,
        naming=ExperimentName.of(options.experiment or Path(root).name or "runs", options.experiment_default),
        artifact_root="mlflow-artifacts:/" if is_server else f"registry://{quote(root)}{LIVE_PATH}",
        edit=edit_run if options.edit else None,
    )

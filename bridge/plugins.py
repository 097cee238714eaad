"""MLflow's entry points for `registry:///RUNS`.

Every `import mlflow` loads this file, so it imports nothing heavy at its top.
"""

from __future__ import annotations

import functools
from typing import Any


def tracking_store(store_uri: str, artifact_uri: str | None = None) -> Any:
    """Return the tracking store for `registry:///RUNS`."""
    from bridge.exporters.mlflow.live_store import LiveStore

    return LiveStore(_view(store_uri))  # type: ignore[abstract]  # the others are refused


def model_registry(store_uri: str, tracking_uri: str | None = None) -> Any:
    """Return the model registry for `registry:///RUNS`, which is empty."""
    from bridge.exporters.mlflow.live_store import LiveModelRegistry

    return LiveModelRegistry(store_uri, tracking_uri)  # type: ignore[abstract, no-untyped-call]


def artifact_repository(artifact_uri: str, *_args: Any, **_keywords: Any) -> Any:
    """Return the artifact repository for `registry:///RUNS`."""
    from bridge.exporters.mlflow.live_files import LiveArtifacts

    return LiveArtifacts(artifact_uri, _shared_files(_view(artifact_uri)))


def _view(uri: str) -> Any:
    """Return the view of the run directories that `uri` names. One process has one view of them."""
    import os
    from urllib.parse import unquote, urlsplit

    from bridge.exporters.mlflow.live_options import LIVE_PATH, VARIABLE

    root, _, _ = unquote(urlsplit(uri).path).partition(LIVE_PATH)
    return _shared_view(root, os.environ.get(VARIABLE, ""))


@functools.cache
def _shared_files(view: Any) -> Any:
    from bridge.exporters.mlflow.live_files import LiveFiles

    return LiveFiles(view)


@functools.cache
def _shared_view(root: str, given: str) -> Any:
    import os
    from pathlib import Path
    from urllib.parse import quote

    import msgspec

    from bridge.exporters.mlflow.live import LiveView
    from bridge.exporters.mlflow.live_options import LIVE_PATH, LiveOptions
    from bridge.exporters.mlflow.store import ExperimentName
    from bridge.live import LiveRuns
    from bridge.rundir.edit import edit_run
    from bridge.sync.select import Selection, select

    options = msgspec.json.decode(given or "{}", type=LiveOptions)
    selection = Selection.of(options.selection)
    live = LiveRuns(
        [Path(each) for each in options.roots or [root]],
        content=options.content,
        selection=options.selection,
        choose=functools.partial(select, selection=selection),
        heartbeat_timeout=options.heartbeat_timeout,
    )
    # A server passes artifacts on; a client without one reads them itself.
    is_server = os.environ.get("_MLFLOW_SERVER_ARTIFACT_DESTINATION", "").startswith("registry:")
    return LiveView(
        live,
        naming=ExperimentName.of(options.experiment or Path(root).name or "runs", options.experiment_default),
        artifact_root="mlflow-artifacts:/" if is_server else f"registry://{quote(root)}{LIVE_PATH}",
        edit=edit_run if options.edit else None,
    )

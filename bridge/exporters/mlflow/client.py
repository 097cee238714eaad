"""Reach MLflow through its own client."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from bridge.errors import TargetRefusedError, TargetUnavailableError
from bridge.exporters.mlflow.address import require_mlflow, sqlite_uri
from bridge.exporters.mlflow.errors import (
    RunGoneError,
    artifact_errors,
    call_with_retry,
    missing_driver,
    translate_errors,
    untrusted,
)
from bridge.exporters.mlflow.facts import Tag
from bridge.exporters.mlflow.rows import KeyRows
from bridge.exporters.mlflow.runs import Experiment, FoundRun
from bridge.locks import machine_lock
from bridge.secrets import hide_in

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from mlflow import MlflowClient
    from mlflow.entities import FileInfo

    from bridge.exporters.mlflow.address import Address

_PAGE = 1000
_MOST_SINGLE_SEARCHES = 16
"""Up to this many runs are searched one by one (20 ms each). For more, all of the bridge's runs are listed."""
_REACHABLE_WITHIN_S = 10.0


class MlflowApi:
    """MlflowClient, opened when needed, with the bridge's errors. Safe to use from several threads."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._client: MlflowClient | None = None
        self._artifact_uris: dict[str, str] = {}
        """Where runs keep their artifacts, which never changes, by run id."""
        self._artifacts = functools.lru_cache(256)(self._open_artifacts)
        self._opening = threading.Lock()

    @property
    def client(self) -> MlflowClient:
        """Return the client. Opening it imports mlflow, creates a new SQLite file and checks that a server answers."""
        if self._client is None:
            with self._opening:
                if self._client is None:
                    self._client = self._open()
        return self._client

    @property
    def is_absent(self) -> bool:
        """Return True for a SQLite file that does not exist yet: it holds nothing, and opening the client creates it.

        Raise TargetRefusedError if it could not be created.
        """
        file = self.address.sqlite_file
        if self._client is not None or file is None or file.exists():
            return False
        if not file.parent.is_dir():
            raise TargetRefusedError(f"There is no folder {file.parent} for {file.name}.", hint="Create it first.")
        if not os.access(file.parent, os.W_OK):
            raise TargetRefusedError(f"{file.name} cannot be created in {file.parent}: no permission to write there.")
        return True

    def _open(self) -> MlflowClient:
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        require_mlflow()
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        if self.address.is_server:
            _check_reachable(self.address)
        file = self.address.sqlite_file
        if file is not None and self.is_absent:
            # Two exports at once must not both create the tables of a new file.
            with machine_lock(str(file)):
                if not file.exists():
                    call_with_retry(self.address.shown, functools.partial(_create_sqlite_file, file))
        try:
            client: MlflowClient = call_with_retry(self.address.shown, lambda: MlflowClient(self.address.uri))
        except ModuleNotFoundError as error:
            raise missing_driver(self.address.shown, error) from error
        tracking: Any = getattr(client, "_tracking_client", None)
        if tracking is not None:
            # Otherwise MLflow 2.22, which has no setting for that, prints the address of each run that ends.
            tracking._log_url = lambda _run_id: None
        return client

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Return the result of a method of the client, retried if the target is unavailable."""
        call = functools.partial(getattr(self.client, method), *arguments, **options)
        return call_with_retry(self.address.shown, call)

    def request(self, method: str, endpoint: str, **options: Any) -> Any:
        """Return the server's answer as JSON. MLflow's own function adds credentials and headers, and retries."""
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request, verify_rest_response

        _ = self.client  # checks that the server answers
        path = f"/api/2.0/mlflow/{endpoint}"

        def send() -> Any:
            answer = http_request(get_default_host_creds(self.address.uri), path, method, **options)
            return verify_rest_response(answer, path).json()

        return call_with_retry(self.address.shown, send)

    def experiment(self, name: str) -> Experiment | None:
        """Return the experiment of this name, deleted or not."""
        found = self.call("get_experiment_by_name", name)
        return None if found is None else _experiment(found)

    def experiment_by_id(self, experiment_id: str) -> Experiment:
        """Return the experiment with this id."""
        return _experiment(self.call("get_experiment", experiment_id))

    def experiment_with_tag(self, key: str, value: str) -> Experiment | None:
        """Return the oldest experiment, deleted or not, whose tag `key` is `value`."""
        from mlflow.entities import ViewType

        quoted = _quoted(value)
        if quoted is None:
            return None
        search = f"tags.`{key}` = {quoted}"
        order = ["creation_time ASC"]
        found = self.call("search_experiments", view_type=ViewType.ALL, filter_string=search, order_by=order)
        return _experiment(found[0]) if found else None

    def experiment_tags(self, experiment_id: str) -> dict[str, str]:
        """Return the tags of an experiment."""
        return dict(self.call("get_experiment", experiment_id).tags)

    def set_experiment_tags(self, experiment_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of an experiment."""
        for key, value in tags.items():
            self.call("set_experiment_tag", experiment_id, key, value)

    def create_experiment(self, name: str, artifacts: str | None, tags: Mapping[str, str]) -> Experiment:
        """Return the experiment of this name. Create it unless it exists, perhaps since a moment ago."""
        try:
            self.call("create_experiment", name, artifact_location=artifacts, tags=dict(tags))
        except TargetRefusedError:
            if self.experiment(name) is None:
                raise
        created = self.experiment(name)
        if created is None:
            raise TargetUnavailableError(f"{self.address.shown}: experiment {name!r} was created and is not there.")
        return created

    def runs_with_tag(
        self,
        key: str,
        values: Collection[str] | None,
        experiment_ids: Sequence[str] | None,
        *,
        only: Collection[str] | None = None,
    ) -> list[FoundRun]:
        """Return all runs, deleted ones too, whose tag `key` has one of `values`, or any value for None.

        They come with all that they hold, whatever `only` says. None searches all experiments.
        """
        if experiment_ids is None:
            experiment_ids = [found.experiment_id for found in self._pages("search_experiments")]
        quoted = {text: _quoted(text) for text in values or ()}
        if values is None or len(quoted) > _MOST_SINGLE_SEARCHES or None in quoted.values():
            found = self.search(f"tags.`{key}` LIKE '%'", experiment_ids)
            return [run for run in found if values is None or run.tags.get(key) in quoted]
        return [
            run for _, text in sorted(quoted.items()) for run in self.search(f"tags.`{key}` = {text}", experiment_ids)
        ]

    def search(self, filter_string: str, experiment_ids: Sequence[str]) -> Iterator[FoundRun]:
        """Yield all runs, deleted ones too, that match `filter_string`, page by page."""
        from mlflow.entities import ViewType

        if experiment_ids:
            order = ["attributes.run_id"]
            options = {"filter_string": filter_string, "run_view_type": ViewType.ALL, "order_by": order}
            yield from map(FoundRun.of, self._pages("search_runs", experiment_ids=list(experiment_ids), **options))

    def _pages(self, method: str, **options: Any) -> Iterator[Any]:
        """Yield what a search of the client returns, page by page."""
        token = None
        while True:
            page = self.call(method, max_results=_PAGE, page_token=token, **options)
            yield from page
            token = page.token
            if not token:
                return

    def run(self, run_id: str) -> FoundRun:
        """Return one run with its tags, params and latest metrics."""
        found = self.call("get_run", run_id)
        self._artifact_uris[run_id] = found.info.artifact_uri
        return FoundRun.of(found)

    def create(self, new: FoundRun) -> FoundRun:
        """Create a run like `new`, whose id MLflow chooses, and return it."""
        tags = {key: value for key, value in new.tags.items() if key != Tag.NAME}
        made = self.call("create_run", new.experiment_id, start_time=new.start, tags=tags, run_name=new.name)
        self._artifact_uris[made.info.run_id] = made.info.artifact_uri
        return FoundRun.of(made)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags in one request."""
        from mlflow.entities import RunTag

        self.call("log_batch", run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def soft_delete(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Delete a run as MLflow does, which keeps it in the trash, after setting `tags` that say why."""
        try:
            self.set_tags(run_id, tags)
            self.call("delete_run", run_id)
        except RunGoneError:
            return

    def delete_unfinished(self, run_id: str) -> None:
        """Delete a rebuild, unless it was finished in the meantime.

        Nothing changes a deleted run. So look at it again after the deletion, and restore it if it was finished before.
        """
        with contextlib.suppress(RunGoneError):
            if not self.run(run_id).is_building:
                return
            self.call("delete_run", run_id)
            if not self.run(run_id).is_building:
                self.call("restore_run", run_id)

    def history(self, run_id: str, key: str) -> KeyRows:
        """Return the points of one key, sorted by step and time."""
        found = sorted(self.call("get_metric_history", run_id, key), key=lambda point: (point.step, point.timestamp))
        return KeyRows.of(key, *([getattr(point, name) for point in found] for name in ("timestamp", "step", "value")))

    def check_visible(self, run_id: str, names: set[str]) -> None:
        """Raise TargetRefusedError unless the server itself lists `names` among the run's artifacts.

        With a plain path as artifact root and without --serve-artifacts, MLflow's client writes to the path on this
        machine, which the server may not share.
        """
        answer = self.request("GET", "artifacts/list", params={"run_id": run_id})
        if not names <= {file["path"] for file in answer.get("files", ())}:
            raise TargetRefusedError(
                f"{self.address.shown} does not see the files that were stored for it: its artifact root is a path of "
                "its own machine.",
                hint="Start the server with --artifacts-destination PATH and without --no-serve-artifacts, and use a "
                "new --experiment, since an experiment keeps its artifact location.",
            )

    def upload_file(self, run_id: str, file: Path, folder: str | None) -> None:
        """Upload one file into the artifact folder `folder`. MLflow's client retries; this does not."""
        with artifact_errors(self.address.shown), translate_errors(self.address.shown):
            self._artifacts(run_id).log_artifact(str(file), folder)

    def files(self, run_id: str, path: str = "") -> list[FileInfo]:
        """Return the files and folders directly below an artifact path, none if it does not exist."""
        with artifact_errors(self.address.shown):
            repository = self._artifacts(run_id)
            return list(call_with_retry(self.address.shown, lambda: repository.list_artifacts(path or None)))

    def all_files(self, run_id: str, folder: str = "") -> Iterator[str]:
        """Yield the paths of all artifacts below `folder`."""
        for file in self.files(run_id, folder):
            if file.is_dir:
                yield from self.all_files(run_id, file.path)
            else:
                yield file.path

    def download(self, run_id: str, path: str, into: Path) -> Path:
        """Download an artifact (file or folder) below `into`. Return its local path."""
        with artifact_errors(self.address.shown):
            repository = self._artifacts(run_id)
            return Path(call_with_retry(self.address.shown, lambda: repository.download_artifacts(path, str(into))))

    def find_artifact(self, run_id: str, path: str, into: Path) -> Path | None:
        """Download an artifact below `into`. Return its local path, None if there is no such file."""
        if path not in {file.path for file in self.files(run_id, path.rpartition("/")[0])}:
            return None
        return self.download(run_id, path, into)

    def _open_artifacts(self, run_id: str) -> Any:
        """Return MLflow's repository of the run's artifacts, at this server whatever the global tracking URI is."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
        from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
        from mlflow.utils.uri import add_databricks_profile_info_to_artifact_uri

        if run_id not in self._artifact_uris:
            self._artifact_uris[run_id] = self.call("get_run", run_id).info.artifact_uri
        uri = self._artifact_uris[run_id]
        if uri.startswith("mlflow-artifacts:") and not self.address.is_server:
            raise TargetRefusedError(
                "A server keeps the files of this experiment, and only its database is given.",
                hint="Give both, --tracking-uri SERVER --database-uri DATABASE, or leave files out: --no-artifacts "
                "--no-media.",
            )
        with translate_errors(self.address.shown):
            uri = add_databricks_profile_info_to_artifact_uri(uri, self.address.uri)
            if "tracking_uri" in inspect.signature(get_artifact_repository).parameters:
                return get_artifact_repository(uri, tracking_uri=self.address.uri)
            # An older MLflow takes the server from the global tracking URI, which may be another one.
            if uri.startswith("mlflow-artifacts:"):
                uri = MlflowArtifactsRepository.resolve_uri(uri, self.address.uri)
            return get_artifact_repository(uri)


def _experiment(found: Any) -> Experiment:
    return Experiment(
        id=str(found.experiment_id),
        name=found.name,
        deleted=found.lifecycle_stage == "deleted",
        artifacts=found.artifact_location or "",
        created=int(found.creation_time or 0),
    )


def _quoted(text: str) -> str | None:
    """Return `text` as a string of MLflow's filter language, None if it cannot be written in it."""
    if "'" not in text:
        return f"'{text}'"
    return None if '"' in text else f'"{text}"'


def _create_sqlite_file(file: Path) -> None:
    """Create a new SQLite file with MLflow's tables, whole or not at all.

    MLflow creates the tables in seconds and dozens of steps. Nobody could open a file that a kill left in between.
    """
    from mlflow import MlflowClient

    beside = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        MlflowClient(sqlite_uri(beside)).search_experiments(max_results=1)
        try:
            os.link(beside, file)
        except FileExistsError:
            return  # another program's, created without our lock
        except OSError:  # a file system without hard links
            beside.rename(file)
    finally:
        beside.unlink(missing_ok=True)


def _check_reachable(address: Address) -> None:
    """Raise at once if nobody listens, or for an untrusted certificate: MLflow's client would retry for four minutes.

    These are TargetUnavailableError and TargetRefusedError.
    """
    parts = urlsplit(address.uri)
    if parts.scheme not in ("http", "https") or parts.hostname is None or {parts.scheme, "all"} & getproxies().keys():
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=_REACHABLE_WITHIN_S).close()
    except OSError as error:
        raise TargetUnavailableError(
            f"No server answers at {address.shown}: {error.strerror or error}.",
            hint="Is the server running, and are host and port of --tracking-uri right?",
        ) from error
    if parts.scheme == "https":
        import requests
        from mlflow.utils.credentials import get_default_host_creds

        known = get_default_host_creds(address.uri)
        options: dict[str, Any] = {"verify": known.verify, "cert": known.client_cert_path, "allow_redirects": False}
        try:
            requests.head(address.uri, timeout=_REACHABLE_WITHIN_S, **options)
        except requests.exceptions.SSLError as error:
            raise untrusted(address.shown) from hide_in(error)
        except requests.exceptions.RequestException:
            return  # the client's own requests will tell

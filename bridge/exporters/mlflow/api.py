"""MLflow's own client, lazily opened, with its answers as ours."""

from __future__ import annotations

import functools
import logging
import os
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from bridge.errors import TargetRefusedError, TargetUnavailableError
from bridge.exporters.mlflow.address import require_mlflow
from bridge.exporters.mlflow.locks import machine_lock
from bridge.exporters.mlflow.points import body_of, entities_of
from bridge.exporters.mlflow.records import Record
from bridge.exporters.mlflow.seam import RunGoneError, ask, storing
from bridge.exporters.mlflow.sqlite_file import can_be_made, make_database
from bridge.exporters.mlflow.tags import Tag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from mlflow import MlflowClient
    from mlflow.entities import FileInfo, Metric
    from mlflow.entities import Run as MlflowRun

    from bridge.exporters.mlflow.address import Address
    from bridge.exporters.mlflow.rows import KeyRows

__all__ = ["Api", "Experiment", "record_of"]

_PAGE = 1000
_SINGLY = 16
"""Up to this many runs are looked up one by one (20 ms each); more of them by going through all of ours."""
_REACHABLE_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment: `artifacts` is where its runs keep their files, `made` when it was made (milliseconds)."""

    id: str
    name: str
    deleted: bool
    artifacts: str
    made: int

    @property
    def unique(self) -> str:
        """What tells it from every experiment of any store: MLflow's client takes one run id for one run anywhere."""
        return f"{self.id} {self.made} {self.artifacts}"


class Api:
    """MlflowClient behind our errors. Safe to use from several threads."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._client: MlflowClient | None = None
        self._opening = threading.Lock()

    @property
    def client(self) -> MlflowClient:
        """The client; opening it imports mlflow, makes the schema of a new SQLite file and looks for the server."""
        if self._client is None:
            with self._opening:
                if self._client is None:
                    self._client = self._open()
        return self._client

    @property
    def absent(self) -> bool:
        """Whether it is a SQLite file that is not there yet: it holds nothing, and opening the client makes it.

        Raises TargetRefusedError where it could not be made, for want of its folder.
        """
        file = self.address.sqlite_file
        return self._client is None and file is not None and can_be_made(file)

    def _open(self) -> MlflowClient:
        for quiet in ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT=true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR=false"):
            os.environ.setdefault(*quiet.split("="))
        require_mlflow()
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        if self.address.is_server:
            _check_reachable(self.address)
        file = self.address.sqlite_file
        if file is None or not self.absent:
            return ask(self.address.shown, lambda: MlflowClient(self.address.uri))
        # Two exports at once would both make the tables of a new file.
        with machine_lock(str(file)):
            if not file.exists():
                ask(self.address.shown, functools.partial(make_database, file))
            return ask(self.address.shown, lambda: MlflowClient(self.address.uri))

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """What a method of the client gives, tried again where the target is away for a moment."""
        call = functools.partial(getattr(self.client, method), *arguments, **options)
        return ask(self.address.shown, call)

    def send_points(self, run_id: str, rows: Sequence[KeyRows]) -> None:
        """Log points, as many as one request takes.

        MLflow's client makes five objects of a point and takes eight times as long over it as what stands here: the
        body of the same request to the same documented endpoint, sent by MLflow's own request function, which knows
        about credentials, headers and retries. Where that function is another, the client itself is asked.
        """
        post = _post_batch() if self.address.uri.startswith(("http://", "https://")) else None
        if post is None:
            self.call("log_batch", run_id, metrics=entities_of(rows))
            return
        body = body_of(run_id, rows)
        ask(self.address.shown, functools.partial(post, self.address.uri, body))

    def experiment(self, name: str) -> Experiment | None:
        """The experiment of this name, deleted or not."""
        found = self.call("get_experiment_by_name", name)
        return None if found is None else _experiment(found)

    def experiment_of(self, experiment_id: str) -> Experiment:
        """The experiment with this id."""
        return _experiment(self.call("get_experiment", experiment_id))

    def make_experiment(self, name: str, artifacts: str | None) -> Experiment:
        """The experiment of this name, made unless it is there already (or was made at this moment by another)."""
        try:
            self.call("create_experiment", name, artifact_location=artifacts)
        except TargetRefusedError:
            if self.experiment(name) is None:
                raise
        made = self.experiment(name)
        if made is None:
            raise TargetUnavailableError(f"{self.address.shown}: experiment {name!r} was made and is not there.")
        return made

    def runs_of(
        self, identities: Sequence[str], experiment_ids: Sequence[str] | None, *, key: str = Tag.UID
    ) -> list[Record]:
        """All runs, deleted ones too, whose tag `key` is one of `identities`; in all experiments where None is given."""
        if experiment_ids is None:
            experiment_ids = self._all_experiments()
        wanted = set(identities)
        quoted = {text: _quoted(text) for text in wanted}
        if len(wanted) > _SINGLY or any(text is None for text in quoted.values()):
            found = self.search(f"tags.`{key}` LIKE '%'", experiment_ids)
            return [record for record in map(record_of, found) if record.tags.get(key) in wanted]
        return [
            record_of(run)
            for text in sorted(wanted)
            for run in self.search(f"tags.`{key}` = {quoted[text]}", experiment_ids)
        ]

    def search(self, filter_string: str, experiment_ids: Sequence[str]) -> Iterator[MlflowRun]:
        """All runs, deleted ones too, that `filter_string` lets through, page by page."""
        from mlflow.entities import ViewType

        token = None
        while experiment_ids:
            page = self.call(
                "search_runs",
                list(experiment_ids),
                filter_string,
                run_view_type=ViewType.ALL,
                max_results=_PAGE,
                order_by=["attributes.run_id"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def get(self, run_id: str) -> MlflowRun:
        """One run with all that belongs to it but the points."""
        run: MlflowRun = self.call("get_run", run_id)
        return run

    def make_run(self, experiment_id: str, *, name: str, start: int, tags: Mapping[str, str]) -> str:
        """Make a run that began at `start` (milliseconds); its id."""
        run = self.call("create_run", experiment_id, start_time=start, tags=dict(tags), run_name=name)
        return str(run.info.run_id)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags, in one request."""
        from mlflow.entities import RunTag

        entities = [RunTag(key, value) for key, value in tags.items()]
        self.call("log_batch", run_id, tags=entities)

    def put_away(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Soft-delete a run, with tags that say why; one that is deleted already stays so."""
        try:
            self.set_tags(run_id, tags)
            self.call("delete_run", run_id)
        except RunGoneError:
            return

    def history(self, run_id: str, key: str) -> list[Metric]:
        """All points of one key, in no particular order."""
        points: list[Metric] = self.call("get_metric_history", run_id, key)
        return points

    def upload(self, run_id: str, folder: Path) -> None:
        """Put all files below `folder` beside the run's other artifacts."""
        with storing(self.address.shown):
            self.call("log_artifacts", run_id, str(folder))

    def upload_file(self, run_id: str, file: Path, folder: str | None) -> None:
        """Put one file into the artifact folder `folder`."""
        with storing(self.address.shown):
            self.call("log_artifact", run_id, str(file), folder)

    def files(self, run_id: str, path: str = "") -> list[FileInfo]:
        """The files and folders directly below an artifact path; none where there is no such path.

        Below a folder MlflowClient would also look for a model of that name, which a server of MLflow 2 answers with
        404: so the run's own artifact store is asked, unless the path cannot stand in its URI.
        """
        listed: list[FileInfo]
        if not path or set(path) & set("#?%"):
            listed = self.call("list_artifacts", run_id, path or None)
            return listed
        from mlflow.artifacts import list_artifacts
        from mlflow.entities import FileInfo as Info

        uri = f"{self.get(run_id).info.artifact_uri}/{path}"
        listed = ask(self.address.shown, lambda: list_artifacts(artifact_uri=uri, tracking_uri=self.address.uri))
        return [Info(f"{path}/{file.path.rpartition('/')[2]}", file.is_dir, file.file_size) for file in listed]

    def fetch(self, run_id: str, path: str, into: Path) -> Path:
        """Download an artifact (file or folder) below `into`; where it lies."""
        from pathlib import Path as _Path

        return _Path(str(self.call("download_artifacts", run_id, path, str(into))))

    def _all_experiments(self) -> list[str]:
        from mlflow.entities import ViewType

        ids: list[str] = []
        token = None
        while True:
            page = self.call("search_experiments", view_type=ViewType.ACTIVE_ONLY, max_results=_PAGE, page_token=token)
            ids += [str(found.experiment_id) for found in page]
            token = page.token
            if not token:
                return ids


@functools.cache
def _post_batch() -> Callable[[str, bytes], None] | None:
    """A function that posts the body of a `log-batch` request to a server; None where MLflow's parts are not as known."""
    try:
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request, verify_rest_response
    except ImportError:
        return None

    def post(uri: str, body: bytes) -> None:
        endpoint = "/api/2.0/mlflow/runs/log-batch"
        headers = {"Content-Type": "application/json"}
        answer = http_request(get_default_host_creds(uri), endpoint, "POST", data=body, extra_headers=headers)
        verify_rest_response(answer, endpoint)

    return post


def record_of(run: MlflowRun) -> Record:
    """What is remembered of a run."""
    info = run.info
    return Record(
        run_id=info.run_id,
        experiment_id=str(info.experiment_id),
        status=str(info.status),
        deleted=info.lifecycle_stage == "deleted",
        start=info.start_time,
        end=info.end_time,
        tags=dict(run.data.tags) | ({Tag.NAME: info.run_name} if info.run_name else {}),
    )


def batches(tags: Mapping[str, str], size: int = 100) -> Iterable[dict[str, str]]:
    """`tags` in pieces that one request takes."""
    items = list(tags.items())
    for at in range(0, len(items), size):
        yield dict(items[at : at + size])


def _experiment(found: Any) -> Experiment:
    return Experiment(
        id=str(found.experiment_id),
        name=found.name,
        deleted=found.lifecycle_stage == "deleted",
        artifacts=found.artifact_location or "",
        made=int(found.creation_time or 0),
    )


def _quoted(text: str) -> str | None:
    """`text` as a string in MLflow's filter language; None where it cannot be written in it."""
    if "'" not in text:
        return f"'{text}'"
    return None if '"' in text else f'"{text}"'


def _check_reachable(address: Address) -> None:
    """Fail at once for a server that nobody runs: MLflow's client would try for four minutes."""
    parts = urlsplit(address.uri)
    if parts.scheme not in ("http", "https") or parts.hostname is None or parts.scheme in getproxies():
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=_REACHABLE_WITHIN_S).close()
    except OSError as error:
        raise TargetUnavailableError(
            f"No server answers at {address.shown}: {error.strerror or error}.",
            hint="Is the server running, and are host and port of --tracking-uri right?",
        ) from error

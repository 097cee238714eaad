"""Reach MLflow: tracking addresses, MLflow's own client, and its errors translated into the bridge's."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import re
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote, urlsplit, urlunsplit
from urllib.request import getproxies

from bridge.errors import (
    BridgeError,
    ConflictError,
    MissingExtraError,
    TargetError,
    TargetRefusedError,
    TargetUnavailableError,
    UsageError,
)
from bridge.exporters.mlflow.facts import Tag
from bridge.exporters.mlflow.rows import KeyRows
from bridge.files import fingerprint
from bridge.locks import machine_lock
from bridge.secrets import bare, hide_all, hide_in, keep, keep_pair, keep_uri

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from mlflow import MlflowClient
    from mlflow.entities import FileInfo
    from mlflow.entities import Run as MlflowRun
    from mlflow.exceptions import MlflowException

T = TypeVar("T")

# ---------------------------------------------------------------------------------------------------------------------
# Addresses

_DATABRICKS = ("databricks", "databricks-uc", "uc")
_KINDS = {
    "sqlite": "sqlite",
    "file": "file store",
    "postgresql": "postgresql",
    **dict.fromkeys(("mysql", "mssql"), "other database"),
    **dict.fromkeys(("http", "https", *_DATABRICKS), "server"),
}
"""The kinds of tracking URI by the first word of their scheme."""

_FILE_STORE_HINT = (
    "The bridge does not write file stores such as ./mlruns, with or without MLFLOW_ALLOW_FILE_STORE. Give a database "
    "or a server, for example --tracking-uri sqlite:///mlflow.db. `mlflow migrate-filestore` moves a file store there."
)


@dataclass(frozen=True, slots=True)
class Address:
    """A checked tracking URI, of one of the kinds in _KINDS. `uri` may hold credentials; `shown` never does."""

    uri: str
    kind: str

    @classmethod
    def of(cls, uri: str | None) -> Address:
        """Return the address of `uri`, else of $MLFLOW_TRACKING_URI, else the one that MLflow itself would use.

        Raise TargetRefusedError for an old file store and UsageError for anything that is no tracking URI.
        """
        text = (uri or os.environ.get("MLFLOW_TRACKING_URI") or _default_uri()).strip()
        try:
            _ = urlsplit(bare(text)).port
        except ValueError as error:
            raise UsageError(
                f"{without_credentials(text)} is not an address: {error}.",
                hint="Check --tracking-uri: scheme, host and port.",
            ) from None
        scheme, colon, _ = text.partition(":")
        if not colon and text not in _DATABRICKS:  # MLflow's client knows these words, which have no host
            scheme = "file"
        kind = _KINDS.get(scheme.lower().partition("+")[0])
        if kind == "file store":
            raise TargetRefusedError(f"{without_credentials(text)} is an MLflow file store.", hint=_FILE_STORE_HINT)
        if kind is None:
            raise UsageError(
                f"{without_credentials(text)} is not a tracking URI that MLflow knows.",
                hint="Give a server (http://host:5000) or a database (sqlite:///mlflow.db, postgresql://...).",
            )
        if kind == "server":
            text = text.rstrip("/")
        return cls(_absolute_sqlite(text) if kind == "sqlite" else text, kind)

    @classmethod
    def of_database(cls, uri: str) -> Address:
        """Return the address of the database behind a server. Raise UsageError if `uri` is no database."""
        with contextlib.suppress(BridgeError):
            address = cls.of(uri)
            if not address.is_server:
                return address
        raise UsageError(
            f"--database-uri: {without_credentials(uri)} is not a database.",
            hint="Give what the server was started with as --backend-store-uri (postgresql://..., sqlite:///...).",
        )

    @property
    def shown(self) -> str:
        """Return the URI without user, password and query, for messages."""
        return without_credentials(self.uri)

    def page(self, path: str = "") -> str:
        """Return the address of a page of MLflow's UI, in the workspace that MLflow's client uses."""
        workspace = os.environ.get("MLFLOW_WORKSPACE", "").strip()
        link = f"{self.shown}/#/experiments{path}"
        if not workspace or workspace == "default":
            return link
        return f"{link}{'&' if '?' in link else '?'}workspace={quote(workspace, safe='')}"

    @property
    def is_server(self) -> bool:
        """Return True if MLflow is reached over HTTP."""
        return self.kind == "server"

    @property
    def is_bulk_database(self) -> bool:
        """Return True for the databases that `write_db` can write to."""
        return self.kind in ("sqlite", "postgresql")

    @property
    def sqlite_file(self) -> Path | None:
        """Return the file of a SQLite address, None for other databases and for one in memory."""
        if self.kind != "sqlite":
            return None
        path = _sqlite_path(self.uri)
        return Path(path) if path and path != ":memory:" else None


def without_credentials(uri: str) -> str:
    """Return `uri` without user, password, query and fragment."""
    uri = bare(uri)
    try:
        parts = urlsplit(uri)
        return urlunsplit((parts.scheme, parts.netloc, parts.path, "", "")) if parts.netloc else uri.partition("?")[0]
    except ValueError:
        return uri.partition(":")[0] + ":..."


def hide_credentials(*uris: str | None) -> None:
    """Hide the credentials in `uris`, and those that MLflow reads from the environment, in all later errors."""
    for uri in uris:
        keep_uri(uri)
    for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        keep(os.environ.get(name))
    keep_pair(os.environ.get("MLFLOW_TRACKING_USERNAME", ""), os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))


def require_mlflow() -> None:
    """Raise MissingExtraError if MLflow is not installed. Do not import it yet."""
    if find_spec("mlflow") is None:
        raise MissingExtraError.of("mlflow", purpose="Exporting to MLflow")


def sqlite_uri(file: Path, *, head: str = "sqlite") -> str:
    """Return the URI that SQLAlchemy opens as `file`. It reads `%` as the start of an escape unless written `%25`."""
    plain = f"{head}:///{file}"
    return plain if _sqlite_path(plain) == str(file) else f"{head}:///{quote(str(file), safe=' +/:@')}"


def missing_driver(target: str, error: ModuleNotFoundError) -> MissingExtraError:
    """Return the error for a database whose Python driver is not installed, with its pip line."""
    name = error.name or "the driver"
    package = {"psycopg2": "registry-bridge[postgresql]", "MySQLdb": "mysqlclient"}.get(name, name)
    return MissingExtraError(
        f"{target} needs the Python package {name!r}, which is not installed.", hint=f'pip install "{package}"'
    )


def _default_uri() -> str:
    """Return MLflow's own default, which depends on the working directory."""
    require_mlflow()
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import get_tracking_uri

    try:
        return str(get_tracking_uri())
    except MlflowException as error:
        raise TargetRefusedError(
            f"MLflow has no default place to write to: {error.message}", hint=_FILE_STORE_HINT
        ) from error


def _absolute_sqlite(uri: str) -> str:
    """Return a SQLite URI with an absolute path, since workers may have another working directory."""
    path = _sqlite_path(uri)
    if not path or path == ":memory:" or Path(path).is_absolute():
        return uri
    _, mark, query = uri.partition("?")
    return f"{sqlite_uri(Path(path).absolute(), head=uri.partition(':///')[0])}{mark}{query}"


def sqlite_fingerprint(file: Path) -> str | None:
    """Return what differs after each write into the SQLite file; None if that cannot be told, or it does not exist.

    Each transaction counts bytes 24 to 27 of the file up, unless it only appends to a write-ahead log (bytes 18 and 19
    are 2 then). So no second of quiet is needed.
    """
    try:
        with file.open("rb", 0) as stream:
            found, head = os.fstat(stream.fileno()), stream.read(28)
    except OSError:
        return None
    if head[18:20] != b"\1\1" or os.path.exists(f"{file}-journal"):  # noqa: PTH110 - called for thousands of runs
        return fingerprint([file, f"{file}-wal", f"{file}-journal"])
    return f"{found.st_ino}.{found.st_size}.{found.st_mtime_ns}.{head[24:28].hex()}"


def _sqlite_path(uri: str) -> str:
    """Return the path in a SQLite URI as SQLAlchemy reads it, which takes too long to import for this alone."""
    return unquote(uri.partition("://")[2].partition("/")[2].partition("?")[0])


# ---------------------------------------------------------------------------------------------------------------------
# Errors

RETRY_PAUSES_S = (0.2, 1.0, 3.0)
"""Seconds to wait before each further try. MLflow's client has retried on its own before that."""

_GONE = re.compile(r"must be in (?:the )?'active'|Run .* not found")
_SENT_TWICE = re.compile(r"UNIQUE constraint failed: (?:latest_)?metrics|duplicate key value violates .*metric")
"""MLflow's message when the same points arrive while it is still storing them. Later it accepts them as known."""

_HTTP_STATUS = re.compile(r"failed with error code (\d{3})")
_KEEPS_ANSWERING = re.compile(r"too many (\d{3}) error responses")
_NETWORK = re.compile(r"failed with (?:timeout )?exception|not in a valid JSON format|Max retries exceeded")
_REFUSED_CODES = {"UNAUTHENTICATED": 401, "CUSTOMER_UNAUTHORIZED": 401, "PERMISSION_DENIED": 403}
_PASSING_CODES = ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "INTERNAL_ERROR", "ABORTED")
_LOGIN_FAILED = re.compile(
    r"authentication failed|access denied|no password supplied|(?:role|database) \S+ does not exist"
)
_STORE_ERRORS = (
    ("boto3.exceptions", "Boto3Error"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("google.api_core.exceptions", "GoogleAPIError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
)


class SentTwiceError(TargetUnavailableError):
    """A server stored some of these points already, or is just storing them, and refuses the whole request."""


class RunGoneError(ConflictError):
    """A run was deleted, by another export or by a person, while it was written to."""


def call_with_retry(target: str, call: Callable[[], T]) -> T:
    """Return the result of `call`, retried a few times if the target is unavailable. `target` names it in errors.

    Every call of this package can be repeated: creations are looked up again, and updates set the same values.
    Raise TargetUnavailableError or TargetRefusedError.
    """
    for pause in RETRY_PAUSES_S:
        try:
            with translate_errors(target):
                return call()
        except (RunGoneError, SentTwiceError):
            raise
        except TargetUnavailableError:
            time.sleep(pause)
    with translate_errors(target):
        return call()


@contextlib.contextmanager
def translate_errors(target: str) -> Iterator[None]:
    """Raise what MLflow, the network and databases raise in the block as errors of the bridge."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import HTTPError, RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        raise _from_mlflow(target, error) from hide_in(error)
    except HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        raise _from_status(target, status, str(error)) from hide_in(error)
    except (RequestException, ConnectionError, TimeoutError) as error:
        raise TargetUnavailableError(f"{target} cannot be reached: {_brief(error)}") from hide_in(error)
    except SQLAlchemyError as error:
        raise database_error(target, error) from hide_in(error)


@contextlib.contextmanager
def artifact_errors(target: str) -> Iterator[None]:
    """Raise what an artifact store raises in the block as TargetRefusedError, including its library's own errors."""
    try:
        yield
    except BridgeError:
        raise
    except _store_errors() as error:  # looked up here, since MLflow may load the store's library in the block
        raise TargetRefusedError(
            f"The artifact store of {target} cannot be used: {type(error).__name__}: {_brief(error)}",
            hint="Repair the store, or leave files out: --no-artifacts --no-media.",
        ) from hide_in(error)


def _store_errors() -> tuple[type[BaseException], ...]:
    """Return the system's errors and the base errors of the artifact libraries that are loaded."""
    loaded = [getattr(sys.modules[module], name) for module, name in _STORE_ERRORS if module in sys.modules]
    return (OSError, ImportError, *loaded)


def _from_mlflow(target: str, error: MlflowException) -> TargetError:
    text = str(error.message)
    if _GONE.search(text):
        return RunGoneError(
            f"{target}: the run was deleted while it was written to.", hint="Export again to see what is there now."
        )
    if _SENT_TWICE.search(text):
        return SentTwiceError(f"{target} is still working on a request that was sent twice.")
    found = _HTTP_STATUS.search(text)
    status = int(found[1]) if found else _REFUSED_CODES.get(error.error_code, 0)
    if status:
        return _from_status(target, status, text)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return _untrusted(target)
    if kept := _KEEPS_ANSWERING.search(text):
        message = f"{target} keeps answering {kept[1]}."
    elif _NETWORK.search(text):
        message = f"{target} cannot be reached: {_brief(text)}"
    elif error.error_code in _PASSING_CODES:
        message = f"{target}: {_brief(text)}"
    else:
        return TargetRefusedError(f"{target} refuses: {_brief(text)}")
    return TargetUnavailableError(message)


def _untrusted(target: str) -> TargetRefusedError:
    return TargetRefusedError(
        f"The certificate of {target} cannot be verified.",
        hint="Name its authority's certificate in MLFLOW_TRACKING_SERVER_CERT_PATH.",
    )


def _from_status(target: str, status: int, text: str) -> TargetError:
    # The server's own words in a message of MLflow's client.
    found = re.search(r"Response body: '(.*)'\s*$", text, re.DOTALL)
    answer = _brief(found[1] if found else text)
    if status == 401:
        return TargetRefusedError(
            f"{target} does not accept the user or password ({status}): {answer}",
            hint="MLflow reads MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
        )
    if status == 403:
        if "host header" in text.lower():
            hint = "Start the server with --allowed-hosts and the host in this address, or use one that it allows."
        else:
            hint = "The user lacks a right there. Ask the server's administrator, or use another experiment or user."
        return TargetRefusedError(f"{target} forbids it ({status}): {answer}", hint=hint)
    if status in (404, 405, 301, 302, 307, 308):
        return TargetRefusedError(
            f"There is no MLflow at {target} (it answers {status}).",
            hint="Check --tracking-uri: scheme, port and path.",
        )
    if status == 429 or status >= 500:
        return TargetUnavailableError(f"{target} answers {status}: {_brief(text)}")
    return TargetRefusedError(f"{target} refuses ({status}): {_brief(text)}")


def database_error(target: str, error: Exception) -> TargetError:
    """Return an error of SQLAlchemy or of a database's driver as one of the bridge, which may pass or does not."""
    cause = getattr(error, "orig", None) or error
    text, low = f"{target}: {_brief(cause) or type(cause).__name__}", str(cause).lower()
    if _LOGIN_FAILED.search(low):
        return TargetRefusedError(text, hint="Check user, password and database in the address.")
    if "unable to open database file" in low:
        return TargetRefusedError(text, hint="The folder of the SQLite file must exist and be writable.")
    if "full" in low or "readonly" in low:
        return TargetRefusedError(text, hint="Is the disk full, or the file read-only?")
    # The names that the Python standard for databases gives to what the program itself cannot help.
    if {"OperationalError", "InterfaceError", "TimeoutError"} & {kind.__name__ for kind in type(cause).__mro__}:
        return TargetUnavailableError(text, hint="Is the database reachable, and not locked by another program?")
    return TargetRefusedError(text)


def _brief(text: object) -> str:
    """Return the first 300 characters of `text` on one line, without credentials."""
    line = hide_all(" ".join(str(text).split()))
    return line if len(line) <= 300 else line[:300] + "..."


# ---------------------------------------------------------------------------------------------------------------------
# MLflow's client

_PAGE = 1000
_MOST_SINGLE_SEARCHES = 16
"""Up to this many runs are searched one by one (20 ms each). For more, all of the bridge's runs are listed."""
_REACHABLE_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment. `artifacts` is the location of its runs' files, `created` its creation time in milliseconds."""

    id: str
    name: str
    deleted: bool
    artifacts: str
    created: int

    @property
    def unique(self) -> str:
        """Return a key that no experiment of any other store has, since a run id must be unique everywhere."""
        return f"{self.id} {self.created} {self.artifacts}"


@dataclass(frozen=True, slots=True)
class RunRow:
    """The contents of a run's own row: MLflow's status, name, start and end in milliseconds."""

    status: str
    name: str
    start: int
    end: int | None


@dataclass(frozen=True, slots=True)
class FoundRun:
    """One run as MLflow holds it. `status` is MLflow's word, times are in milliseconds.

    `tags` are all of its tags or those that were asked for. `metrics` are its latest values, `latest` their steps and
    times if MLflow's client told them.
    """

    run_id: str
    experiment_id: str
    status: str
    deleted: bool
    start: int | None
    end: int | None
    tags: Mapping[str, str]
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    latest: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, run: MlflowRun) -> FoundRun:
        """Return a run of MLflow's client in the bridge's form."""
        info = run.info
        return cls(
            run_id=info.run_id,
            experiment_id=str(info.experiment_id),
            status=str(info.status),
            deleted=info.lifecycle_stage == "deleted",
            start=info.start_time,
            end=info.end_time,
            tags=dict(run.data.tags) | ({Tag.NAME: info.run_name} if info.run_name else {}),
            params=dict(run.data.params),
            metrics=dict(run.data.metrics),
            latest={metric.key: (metric.step, metric.timestamp) for metric in run.data._metric_objs},
        )

    @property
    def name(self) -> str:
        """Return the run's name."""
        return self.tags.get(Tag.NAME, "")

    @property
    def row(self) -> RunRow:
        """Return the contents of the run's own row."""
        return RunRow(self.status, self.name, self.start or 0, self.end)

    @property
    def is_building(self) -> bool:
        """Return True for a rebuild that is not finished, or never will be."""
        return Tag.BUILDING in self.tags

    @property
    def superseded(self) -> bool:
        """Return True for a run of the bridge that another one replaced, and for an unfinished rebuild."""
        return self.is_building or Tag.REPLACED_BY in self.tags or Tag.DUPLICATE_OF in self.tags


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

        A deleted run does not change any more. So it is looked at again, and comes back if it was finished just now.
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
    if parts.scheme == "https":
        import requests
        from mlflow.utils.credentials import get_default_host_creds

        known = get_default_host_creds(address.uri)
        options: dict[str, Any] = {"verify": known.verify, "cert": known.client_cert_path, "allow_redirects": False}
        try:
            requests.head(address.uri, timeout=_REACHABLE_WITHIN_S, **options)
        except requests.exceptions.SSLError as error:
            raise _untrusted(address.shown) from hide_in(error)
        except requests.exceptions.RequestException:
            return  # the client's own requests will tell

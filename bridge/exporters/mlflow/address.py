"""Read tracking addresses: which kind of MLflow they name, and how to show them without credentials."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from bridge.errors import BridgeError, MissingExtraError, TargetRefusedError, UsageError
from bridge.files import fingerprint
from bridge.secrets import bare, keep, keep_pair, keep_uri

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

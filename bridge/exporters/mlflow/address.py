"""Where MLflow is: a tracking URI, told apart by kind and shown without its credentials."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from bridge.errors import MissingExtraError, TargetRefusedError, UsageError
from bridge.secrets import bare, keep, keep_pair, keep_uri

__all__ = ["Address", "AddressKind", "keep_secrets", "require_mlflow", "sqlite_uri", "without_credentials"]

_DATABASES = ("mysql", "mssql", "oracle", "mariadb")
_OLD_STORE_HINT = (
    "MLflow no longer writes file stores such as ./mlruns. Give a database or a server: "
    "--tracking-uri sqlite:///mlflow.db (move what is there with `mlflow migrate-filestore`)."
)


class AddressKind(StrEnum):
    """What stands behind a tracking URI."""

    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"
    DATABASE = "other database"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class Address:
    """A tracking URI that can be used. `uri` may hold credentials; `shown` never does."""

    uri: str
    kind: AddressKind

    @classmethod
    def of(cls, uri: str | None) -> Address:
        """The address of `uri`, else of $MLFLOW_TRACKING_URI, else what MLflow itself would use.

        Raises TargetRefusedError for an old file store and UsageError for what is no tracking URI.
        """
        text = (uri or os.environ.get("MLFLOW_TRACKING_URI") or _mlflows_own()).strip()
        _check(text)
        scheme = re.match(r"([A-Za-z][\w+.-]*):", text)
        name = scheme[1].lower().partition("+")[0] if scheme else ""
        if name == "sqlite":
            return cls(_absolute_sqlite(text), AddressKind.SQLITE)
        if name in ("postgresql", "postgres"):
            return cls(text, AddressKind.POSTGRESQL)
        if name in _DATABASES:
            return cls(text, AddressKind.DATABASE)
        if name in ("http", "https", "databricks", "databricks-uc", "uc"):
            return cls(text.rstrip("/"), AddressKind.SERVER)
        if name in ("", "file"):
            raise TargetRefusedError(f"{without_credentials(text)} is an MLflow file store.", hint=_OLD_STORE_HINT)
        raise UsageError(
            f"{without_credentials(text)} is no tracking URI that MLflow knows.",
            hint="Give a server (http://host:5000) or a database (sqlite:///mlflow.db, postgresql://...).",
        )

    @property
    def shown(self) -> str:
        """The URI for people: without user, password and query."""
        return without_credentials(self.uri)

    @property
    def is_server(self) -> bool:
        """Whether it is asked over HTTP."""
        return self.kind is AddressKind.SERVER

    @property
    def sqlite_file(self) -> Path | None:
        """The file of a SQLite address; None for others and for a database in memory."""
        if self.kind is not AddressKind.SQLITE:
            return None
        path = _database_in(self.uri)
        return Path(path) if path and path != ":memory:" else None


def _check(uri: str) -> None:
    """Raise UsageError for an address whose host and port nobody can read."""
    try:
        _ = urlsplit(bare(uri)).port
    except ValueError as error:
        raise UsageError(
            f"{without_credentials(uri)} is no address: {error}.", hint="Check --tracking-uri: scheme, host and port."
        ) from None


def without_credentials(uri: str) -> str:
    """`uri` without user, password, query and fragment."""
    uri = bare(uri)
    try:
        parts = urlsplit(uri)
        return urlunsplit((parts.scheme, parts.netloc, parts.path, "", "")) if parts.netloc else uri.partition("?")[0]
    except ValueError:
        return uri.partition(":")[0] + ":..."


def keep_secrets(*uris: str | None) -> None:
    """Let no error of this process show the credentials in `uris`, or those that MLflow's client is given beside them."""
    for uri in uris:
        keep_uri(uri)
    for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        keep(os.environ.get(name))
    keep_pair(os.environ.get("MLFLOW_TRACKING_USERNAME", ""), os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))


def require_mlflow() -> None:
    """Raise MissingExtraError where MLflow is not installed; it is not loaded yet."""
    if find_spec("mlflow") is None:
        raise MissingExtraError.of("mlflow", purpose="Exporting to MLflow")


def _mlflows_own() -> str:
    """MLflow's default, which depends on what lies in the working directory."""
    require_mlflow()
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import get_tracking_uri

    try:
        return str(get_tracking_uri())
    except MlflowException as error:
        raise TargetRefusedError(
            f"MLflow finds no place to write to: {error.message}",
            hint=_OLD_STORE_HINT,
        ) from error


def _absolute_sqlite(uri: str) -> str:
    """A SQLite URI whose path does not depend on the working directory, which workers may not share."""
    path = _database_in(uri)
    if not path or path == ":memory:" or Path(path).is_absolute():
        return uri
    _, mark, query = uri.partition("?")
    return f"{sqlite_uri(Path(path).absolute(), head=uri.partition(':///')[0])}{mark}{query}"


def sqlite_uri(file: Path, *, head: str = "sqlite") -> str:
    """The URI that SQLAlchemy takes for `file`: a `%` in its path means what follows, unless it is written as `%25`."""
    plain = f"{head}:///{file}"
    return plain if _database_in(plain) == str(file) else f"{head}:///{quote(str(file), safe=' +/:@')}"


def _database_in(uri: str) -> str:
    """The path in a SQLite URI, as SQLAlchemy reads it, which is what opens it."""
    try:
        from sqlalchemy.engine import make_url
    except ImportError:  # as is MLflow then, without which nothing is opened
        return unquote(uri.partition(":///")[2].partition("?")[0])
    return make_url(uri).database or ""

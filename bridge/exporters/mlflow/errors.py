"""Translate the errors of MLflow, the network, databases and artifact stores into the bridge's, and try again."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from typing import TYPE_CHECKING, TypeVar

from bridge.errors import (
    BridgeError,
    ConflictError,
    MissingExtraError,
    TargetError,
    TargetRefusedError,
    TargetUnavailableError,
)
from bridge.secrets import hide_all, hide_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow.exceptions import MlflowException

T = TypeVar("T")

RETRY_PAUSES_S = (0.2, 1.0, 3.0)
"""Seconds to wait before each further try. MLflow's client has retried on its own before that."""

_GONE = re.compile(r"must be in (?:the )?'active'|Run .* not found")
_SENT_TWICE = re.compile(r"UNIQUE constraint failed: (?:latest_)?metrics|duplicate key value violates .*metric")
"""MLflow's message when the same points arrive while it is still storing them. Later it accepts them as known."""

_SET_AT_ONCE = re.compile(
    r"UNIQUE constraint failed: (?:experiment_)?(?:params|tags)\b"
    r"|duplicate key value violates unique constraint \W*(?:experiment_)?(?:param|tag)"
    r"|Duplicate entry .* for key '(?:(?:experiment_)?(?:params|tags)\.)"
)
"""MLflow's message when another request sets the same params or tags: with SQLite, PostgreSQL, MySQL behind it."""

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


def conflict(run_id: str, what: str) -> ConflictError:
    """Return the error for a run that others changed while it was exported; `what` says how."""
    return ConflictError(f"MLflow run {run_id} {what}.", hint="Export again.")


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
    if (clash := _clash_of_requests(target, text)) is not None:
        return clash
    found = _HTTP_STATUS.search(text)
    status = int(found[1]) if found else _REFUSED_CODES.get(error.error_code, 0)
    if status:
        return _from_status(target, status, text)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return untrusted(target)
    if kept := _KEEPS_ANSWERING.search(text):
        message = f"{target} keeps answering {kept[1]}."
    elif _NETWORK.search(text):
        message = f"{target} cannot be reached: {_brief(text)}"
    elif error.error_code in _PASSING_CODES:
        message = f"{target}: {_brief(text)}"
    else:
        return TargetRefusedError(f"{target} refuses: {_brief(text)}")
    return TargetUnavailableError(message)


def _clash_of_requests(target: str, text: str) -> TargetUnavailableError | None:
    """Return the error if another request was storing the same at the same time, None for any other `text`."""
    if _SENT_TWICE.search(text):
        return SentTwiceError(f"{target} is still working on a request that was sent twice.")
    if _SET_AT_ONCE.search(text):
        return TargetUnavailableError(f"{target}: another program is setting the same params or tags.")
    return None


def untrusted(target: str) -> TargetRefusedError:
    """Return the error for a server whose certificate cannot be verified."""
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


def missing_driver(target: str, error: ModuleNotFoundError) -> MissingExtraError:
    """Return the error for a database whose Python driver is not installed, with its pip line."""
    name = error.name or "the driver"
    package = {"psycopg2": "registry-bridge[postgresql]", "MySQLdb": "mysqlclient"}.get(name, name)
    return MissingExtraError(
        f"{target} needs the Python package {name!r}, which is not installed.", hint=f'pip install "{package}"'
    )

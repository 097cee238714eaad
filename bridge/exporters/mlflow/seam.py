"""The one seam at which MLflow's and the network's errors become ours."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from typing import TYPE_CHECKING, TypeVar

from bridge.errors import BridgeError, ConflictError, TargetError, TargetRefusedError, TargetUnavailableError
from bridge.secrets import hide_all, hide_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow.exceptions import MlflowException

__all__ = ["RunGoneError", "ask", "translated"]

T = TypeVar("T")

PAUSES_S = (0.2, 1.0, 3.0)
"""How long to wait before each further try; MLflow's own client retries on its own before that."""

_STATUS = re.compile(r"failed with error code (\d{3})")
_TWICE = re.compile(r"UNIQUE constraint failed: (?:latest_)?metrics|duplicate key value violates .*metric")
"""What MLflow says where the same points arrive while it is still storing them: later it takes them as known."""
_NOT_LET_IN = re.compile(
    r"authentication failed|access denied|no password supplied|(?:role|database) \S+ does not exist"
)
_NETWORK = re.compile(r"failed with (?:timeout )?exception|not in a valid JSON format|Max retries exceeded")
_REFUSED_CODES = {"UNAUTHENTICATED": 401, "CUSTOMER_UNAUTHORIZED": 401, "PERMISSION_DENIED": 403}
_STORE_ERRORS = (
    ("boto3.exceptions", "Boto3Error"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("google.api_core.exceptions", "GoogleAPIError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
)


class RunGoneError(ConflictError):
    """A run is deleted, or no longer there, while it is written to: by another export, or by a person."""


def ask(what: str, call: Callable[[], T]) -> T:
    """The result of `call`, tried again a few times where the target is away for a moment.

    Every call of ours can be repeated: what creates is looked for again, what sets sets the same. `what` names the
    target in errors. Raises TargetUnavailableError or TargetRefusedError.
    """
    for pause in PAUSES_S:
        try:
            with translated(what):
                return call()
        except RunGoneError:
            raise
        except TargetUnavailableError:
            time.sleep(pause)
    with translated(what):
        return call()


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn what MLflow raises in the block into our errors."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import ConnectionError as Unreachable
    from requests.exceptions import HTTPError, RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        raise _of_mlflow(what, error) from hide_in(error)
    except HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        raise _of_status(what, status, str(error)) from hide_in(error)
    except (Unreachable, RequestException, ConnectionError, TimeoutError) as error:
        raise TargetUnavailableError(f"{what} cannot be reached: {_brief(error)}") from hide_in(error)
    except SQLAlchemyError as error:
        raise _of_database(what, error) from hide_in(error)


@contextlib.contextmanager
def storing(what: str) -> Iterator[None]:
    """Turn what an artifact store raises in the block into our errors, also what only its own library knows."""
    try:
        yield
    except BridgeError:
        raise
    except _store_errors() as error:
        said = f"{type(error).__name__}: {_brief(error)}"
        raise TargetRefusedError(
            f"The artifact store of {what} did not take the files: {said}",
            hint="Mend that, or leave files out: --no-artifacts --no-media.",
        ) from hide_in(error)


def _store_errors() -> tuple[type[BaseException], ...]:
    """What artifact stores raise: those of the system, and the base errors of the stores' libraries that are loaded."""
    loaded = [(sys.modules[module], name) for module, name in _STORE_ERRORS if module in sys.modules]
    return (OSError, ImportError, *(getattr(module, name) for module, name in loaded))


def _of_mlflow(what: str, error: MlflowException) -> TargetError:
    text = str(error.message)
    if "must be in the 'active'" in text or "must be in 'active'" in text or re.search(r"Run .* not found", text):
        return RunGoneError(
            f"{what}: the run was deleted while it was written to.",
            hint="Export again: what was deleted is looked at anew.",
        )
    if _TWICE.search(text):
        return TargetUnavailableError(f"{what} is still at work on a request that was sent twice.")
    found = _STATUS.search(text)
    status = int(found[1]) if found else _REFUSED_CODES.get(error.error_code, 0)
    if status:
        return _of_status(what, status, text)
    if _NETWORK.search(text):
        return _of_network(what, text)
    if error.error_code in ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "INTERNAL_ERROR", "ABORTED"):
        return TargetUnavailableError(f"{what}: {_brief(text)}")
    return TargetRefusedError(f"{what} refuses: {_brief(text)}")


def _of_network(what: str, text: str) -> TargetError:
    status = re.search(r"too many (\d{3}) error responses", text)
    if status:
        return TargetUnavailableError(f"{what} answers with {status[1]} again and again.")
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return TargetRefusedError(
            f"The certificate of {what} cannot be verified.", hint="MLflow reads MLFLOW_TRACKING_SERVER_CERT_PATH."
        )
    return TargetUnavailableError(f"{what} cannot be reached: {_brief(text)}")


def _of_status(what: str, status: int, text: str) -> TargetError:
    if status in (401, 403):
        return TargetRefusedError(
            f"{what} does not let us in ({status}).",
            hint="MLflow reads MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
        )
    if status in (404, 405, 301, 302, 307, 308):
        return TargetRefusedError(
            f"There is no MLflow at {what} (it answers {status}).", hint="Check --tracking-uri: scheme, port and path."
        )
    if status == 429 or status >= 500:
        return TargetUnavailableError(f"{what} answers {status}: {_brief(text)}")
    return TargetRefusedError(f"{what} refuses ({status}): {_brief(text)}")


def _of_database(what: str, error: Exception) -> TargetError:
    text = _brief(getattr(error, "orig", None) or error)
    low = text.lower()
    if _NOT_LET_IN.search(low):
        return TargetRefusedError(f"{what}: {text}", hint="Check user, password and database in the address.")
    if "locked" in low or "deadlock" in low or "connection" in low or "timeout" in low:
        return TargetUnavailableError(f"{what}: {text}")
    hint = "Is the disk full, or the file read-only?" if "disk" in low or "readonly" in low else None
    if "unable to open database file" in low:
        hint = "The folder of the SQLite file must exist and be writable."
    return TargetRefusedError(f"{what}: {text}", hint=hint)


def _brief(text: object) -> str:
    """The first 300 characters on one line, without credentials."""
    line = hide_all(" ".join(str(text).split()))
    return line if len(line) <= 300 else line[:300] + "..."

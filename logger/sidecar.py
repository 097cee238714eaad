"""The format of a run directory: sidecar, summary and heartbeat. Free of torch and lightning.

Written atomically (a temporary file beside the real one, flushed to disk, renamed), read tolerantly: unknown fields are kept.
JSON is strict: a non-finite number is the string "NaN", "Infinity" or "-Infinity".
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import stat
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from logger.values import flatten, restore_number, strict

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "HEARTBEAT_NAME",
    "SCHEMA_VERSION",
    "SIDECAR_NAME",
    "SUMMARY_NAME",
    "TERMINAL_STATUSES",
    "TIMEOUT_S",
    "SidecarError",
    "atomic_json_write",
    "atomic_text_write",
    "heartbeat_mtime",
    "heartbeat_path",
    "is_alive",
    "json_text",
    "keep_access",
    "make_sidecar",
    "now_iso",
    "parse_json",
    "parse_sidecar",
    "parse_summary",
    "parse_time",
    "read_json",
    "read_sidecar",
    "read_summary",
    "sidecar_path",
    "summary_path",
    "touch_heartbeat",
    "write_sidecar",
]

AnyPath: TypeAlias = "str | os.PathLike[str]"

SCHEMA_VERSION = 1
SIDECAR_NAME = "sidecar.json"
SUMMARY_NAME = "summary.json"
HEARTBEAT_NAME = "heartbeat"
TERMINAL_STATUSES = frozenset({"completed", "failed", "interrupted"})
TIMEOUT_S = 180.0
"""A running run whose heartbeat is older than this many seconds is taken for dead."""

_YEAR_10000 = 253402300800.0


class SidecarError(ValueError):
    """A JSON file of a run directory cannot be read; says which file and why."""


def sidecar_path(run_dir: AnyPath) -> Path:
    """Where the sidecar of `run_dir` lies."""
    return Path(run_dir) / SIDECAR_NAME


def summary_path(run_dir: AnyPath) -> Path:
    """Where the summary of `run_dir` lies."""
    return Path(run_dir) / SUMMARY_NAME


def heartbeat_path(run_dir: AnyPath) -> Path:
    """Where the heartbeat of `run_dir` lies."""
    return Path(run_dir) / HEARTBEAT_NAME


def now_iso() -> str:
    """The present in UTC, as sidecars write times."""
    return datetime.now(UTC).isoformat()


def parse_time(value: object) -> float | None:
    """A time of a sidecar (ISO 8601, or seconds since the epoch) in seconds since the epoch; None if it is none.

    A time without a zone is UTC, as every writer of this format means it.
    """
    if isinstance(value, bool) or value is None:
        return None
    seconds: float | None = None
    if isinstance(value, int | float):
        seconds = float(value) if abs(value) < _YEAR_10000 else None
    elif isinstance(value, str):
        try:
            then = datetime.fromisoformat(value.strip())
            seconds = (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            with contextlib.suppress(ValueError):
                seconds = float(value)
    return seconds if seconds is not None and math.isfinite(seconds) and 0 <= seconds < _YEAR_10000 else None


def make_sidecar(
    run_dir: AnyPath,
    run_id: str,
    *,
    status: str = "running",
    tags: list[str] | tuple[str, ...] | None = None,
    notes: str | None = None,
    hparams: object = None,
    created_at: str | None = None,
) -> dict[str, Any]:
    """A new sidecar with a new random `uid`; `hparams` of any kind are flattened."""
    now = now_iso()
    return {
        "schema_version": SCHEMA_VERSION,
        "uid": uuid.uuid4().hex,
        "run_id": run_id,
        "run_dir": str(Path(run_dir).absolute()),
        "status": status,
        "created_at": created_at or now,
        "ended_at": None,
        "updated_at": now,
        "tags": list(dict.fromkeys(tags or ())),
        "notes": notes or "",
        "hparams": flatten(hparams).values if hparams is not None else {},
        "summary": {},
        "checkpoint_path": None,
        "sessions": [],
    }


def write_sidecar(run_dir: AnyPath, sidecar: dict[str, Any]) -> None:
    """Replace the sidecar of `run_dir` by `sidecar`, whole, at one instant."""
    atomic_json_write(sidecar_path(run_dir), sidecar)


def read_sidecar(run_dir: AnyPath) -> dict[str, Any]:
    """The sidecar of `run_dir`, with all its fields, also unknown ones; only the numbers in `summary` are restored.

    Raises FileNotFoundError (and other OSErrors) where there is none to read, SidecarError where it is not a JSON object.
    """
    return parse_sidecar(sidecar_path(run_dir).read_bytes(), sidecar_path(run_dir))


def parse_sidecar(data: bytes, path: AnyPath) -> dict[str, Any]:
    """What the bytes of the sidecar at `path` say, as `read_sidecar` gives it. Raises SidecarError."""
    sidecar = parse_json(data, path)
    summary = sidecar.get("summary")
    if isinstance(summary, dict):
        sidecar["summary"] = {name: restore_number(value) for name, value in summary.items()}
    return sidecar


def read_summary(run_dir: AnyPath) -> dict[str, Any]:
    """The summary of `run_dir`, its numbers restored; raises as `read_sidecar` does."""
    return parse_summary(summary_path(run_dir).read_bytes(), summary_path(run_dir))


def parse_summary(data: bytes, path: AnyPath) -> dict[str, Any]:
    """What the bytes of the summary at `path` say, as `read_summary` gives it. Raises SidecarError."""
    summary = parse_json(data, path)
    metrics = summary.get("metrics")
    if isinstance(metrics, dict):
        summary["metrics"] = {
            name: {key: restore_number(value) for key, value in stats.items()}
            for name, stats in metrics.items()
            if isinstance(stats, dict)
        }
    return summary


def read_json(path: AnyPath) -> dict[str, Any]:
    """The JSON object in the file `path`; bare NaN and Infinity, which are not strict JSON, are taken as numbers.

    Raises OSError where the file cannot be opened, SidecarError where it holds no JSON object.
    """
    return parse_json(Path(path).read_bytes(), path)


def parse_json(data: bytes, path: AnyPath) -> dict[str, Any]:
    """The JSON object in `data`, which `path` held. Raises SidecarError."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = "it is empty" if not data.strip() else f"it is not JSON ({error})"
        raise SidecarError(f"{path} cannot be read: {reason}.") from error
    if not isinstance(value, dict):
        raise SidecarError(f"{path} cannot be read: it holds a JSON {type(value).__name__}, not an object.")
    return value


def atomic_json_write(path: AnyPath, data: Any) -> None:
    """Replace the file `path` by `data` as strict JSON, whole, at one instant, flushed to disk.

    A file that is replaced keeps its mode and (where permitted) its group; a new one follows the umask.
    """
    atomic_text_write(path, json_text(data))


def json_text(data: Any) -> str:
    """`data` as strict JSON for people and programs: one line for each entry of the two outer levels."""
    if not isinstance(data, dict) or not data:
        return _dumps(data) + "\n"
    entries = []
    for key, value in data.items():
        if isinstance(value, dict) and value:
            inner = ",\n".join([f"    {_dumps(str(name))}: {_dumps(item)}" for name, item in value.items()])
            entries.append(f"  {_dumps(str(key))}: {{\n{inner}\n  }}")
        else:
            entries.append(f"  {_dumps(str(key))}: {_dumps(value)}")
    return "{\n" + ",\n".join(entries) + "\n}\n"


def _dumps(value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (ValueError, TypeError):
        return json.dumps(strict(value), allow_nan=False, default=str)


def atomic_text_write(
    path: AnyPath, text: str, *, unless: Callable[[], bool] | None = None
) -> tuple[int, int, int] | None:
    """Replace the file `path` by `text` as UTF-8, as `atomic_json_write` does.

    `unless` is asked at the last moment: if it says true nothing is replaced, and None comes back. Otherwise the
    new file's (inode, mtime in nanoseconds, size) comes back.
    """
    real = Path(path).resolve()  # a link stays a link
    temporary = real.with_name(f".{real.name}.{secrets.token_hex(4)}.tmp")
    # The umask makes the mode of a new file; tempfile.mkstemp would leave it readable by its owner only.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            keep_access(real, descriptor)
            file.write(text.encode("utf-8", errors="replace"))
            file.flush()
            os.fsync(descriptor)
            state = os.fstat(descriptor)
        if unless is not None and unless():
            temporary.unlink()
            return None
        temporary.replace(real)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return state.st_ino, state.st_mtime_ns, state.st_size


def keep_access(old: Path, descriptor: int) -> None:
    """Give the open file `descriptor` the group and mode of the file `old`, if there is one, as far as permitted."""
    try:
        before = old.stat()
    except OSError:
        return
    if os.fstat(descriptor).st_gid != before.st_gid:
        with contextlib.suppress(OSError):
            os.fchown(descriptor, -1, before.st_gid)
    with contextlib.suppress(OSError):
        os.fchmod(descriptor, stat.S_IMODE(before.st_mode))


def touch_heartbeat(run_dir: AnyPath) -> None:
    """Make the heartbeat of `run_dir` as young as the present; it is made where it is missing.

    Raises OSError where the directory is gone or read-only.
    """
    path = heartbeat_path(run_dir)
    try:
        os.utime(path)
    except FileNotFoundError:
        path.touch()


def heartbeat_mtime(run_dir: AnyPath) -> float | None:
    """When the run gave its last sign of life, in seconds since the epoch; None without a heartbeat."""
    try:
        return heartbeat_path(run_dir).stat().st_mtime
    except OSError:
        return None


def is_alive(run_dir: AnyPath, timeout_s: float = TIMEOUT_S, *, now: float | None = None) -> bool:
    """Whether a process is (as far as anyone can tell) at work on `run_dir`.

    A terminal status wins over any heartbeat; else the heartbeat must be at most `timeout_s` old at `now`. A sidecar
    that cannot be read decides nothing.
    """
    try:
        if read_sidecar(run_dir).get("status") in TERMINAL_STATUSES:
            return False
    except (OSError, SidecarError):
        pass
    beat = heartbeat_mtime(run_dir)
    return beat is not None and (time.time() if now is None else now) - beat <= timeout_s

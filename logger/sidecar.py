"""The format of a run directory: sidecar.json, summary.json and heartbeat. Free of torch and lightning.

Files are replaced whole and read tolerantly: one wrong field costs only itself, and unknown fields survive a rewrite. Times are
seconds since the epoch (ISO text is read too). JSON is strict: a non-finite number is the string "NaN", "Infinity" or "-Infinity".
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
import types
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar, get_args, get_origin

import msgspec

from logger.files import replace_file
from logger.values import flatten, restore_number, strict

__all__ = [
    "HEARTBEAT_NAME",
    "HEARTBEAT_TIMEOUT",
    "SCHEMA_VERSION",
    "SIDECAR_NAME",
    "SUMMARY_NAME",
    "TERMINAL_STATUSES",
    "MetricStats",
    "Problem",
    "SessionEntry",
    "Sidecar",
    "SidecarError",
    "Summary",
    "convert_document",
    "decode_sidecar",
    "decode_summary",
    "encode_document",
    "json_text",
    "parse_heartbeat",
    "parse_json",
    "parse_time",
    "touch_heartbeat",
]

AnyPath: TypeAlias = "str | os.PathLike[str]"

SCHEMA_VERSION = 1
SIDECAR_NAME = "sidecar.json"
SUMMARY_NAME = "summary.json"
HEARTBEAT_NAME = "heartbeat"
TERMINAL_STATUSES = frozenset({"completed", "failed", "interrupted"})
HEARTBEAT_TIMEOUT = 180.0
"""A running run whose heartbeat is older than this many seconds counts as dead."""

_YEAR_10000 = 253402300800.0

Time = Annotated[float, msgspec.Meta(ge=0, lt=_YEAR_10000)]
"""Seconds since the epoch."""

Problem: TypeAlias = tuple[str, str]
"""A field (`sessions.pid`) and the statement about it (`is a text, not a whole number`)."""


class SidecarError(ValueError):
    """A JSON file of a run directory cannot be read; the message names the file and the reason."""


class SessionEntry(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One start of a run: its process, machine, job and code. `rows` counts the rows that were there before."""

    id: str | None = None
    started_at: Time | None = None
    host: str | None = None
    user: str | None = None
    pid: int | None = None
    command: str | None = None
    git_commit: str | None = None
    slurm: dict[str, str] = {}
    restart_count: int | None = None
    rows: int | None = None


class Sidecar(msgspec.Struct, kw_only=True):
    """The content of sidecar.json.

    `summary` holds each metric's last value, `given` the tags and notes that earlier starts brought along.
    """

    schema_version: int = SCHEMA_VERSION
    uid: str | None = None
    run_id: str | None = None
    run_dir: str | None = None
    status: str | None = None
    created_at: Time | None = None
    ended_at: Time | None = None
    updated_at: Time | None = None
    tags: list[str] = []
    notes: str = ""
    display_name: str | None = None
    archived: bool = False
    forked_from: str | None = None
    hparams: dict[str, Any] = {}
    summary: dict[str, float] = {}
    checkpoint_path: str | None = None
    sessions: list[SessionEntry] = []
    time_column: str | None = None
    given: dict[str, Any] = {}


class MetricStats(msgspec.Struct, kw_only=True):
    """The statistics of one metric, over the values of all starts of a run.

    `last` may be NaN; `min` and `max` ignore NaN. `min_step` and `max_step` are the steps at which they were first
    reached. `count` counts all values, `nan_count` those that are NaN.
    """

    last: float | None = None
    min: float | None = None
    max: float | None = None
    count: int = 0
    min_step: int | None = None
    max_step: int | None = None
    nan_count: int = 0
    first_nan_step: int | None = None

    def add(self, value: float, step: int) -> None:
        """Add one value."""
        self.last = value
        self.count += 1
        if value != value:  # noqa: PLR0124 - NaN; this runs for every point, and math.isnan takes twice as long
            self.nan_count += 1
            if self.first_nan_step is None:
                self.first_nan_step = step
            return
        if self.min is None or value < self.min:
            self.min, self.min_step = value, step
        if self.max is None or value > self.max:
            self.max, self.max_step = value, step


class Summary(msgspec.Struct, kw_only=True):
    """The content of summary.json; `rows` counts the rows that the statistics cover, and is None if that is unknown."""

    schema_version: int = SCHEMA_VERSION
    run_id: str | None = None
    run_dir: str | None = None
    updated_at: Time | None = None
    step: int | None = None
    epoch: float | None = None
    rows: int | None = None
    metrics: dict[str, MetricStats] = {}


Document = TypeVar("Document", Sidecar, Summary)

_OPTIONAL = frozenset({"uid", "display_name", "archived", "forked_from", "time_column", "given"})
"""Fields of the sidecar that are not written without a value."""


def decode_sidecar(data: bytes, path: AnyPath) -> tuple[Sidecar, list[Problem]]:
    """Return the sidecar in `data`, the bytes of the file `path`, and the fields that were left out as wrong.

    All times are seconds since the epoch, also those that the file holds as ISO text. Raises SidecarError if `data` is no JSON object.
    """
    return convert_document(parse_json(data, path), Sidecar)


def decode_summary(data: bytes, path: AnyPath) -> tuple[Summary, list[Problem]]:
    """Return the summary in `data`, the bytes of the file `path`, and the fields that were left out as wrong.

    Raises SidecarError if `data` is no JSON object.
    """
    return convert_document(parse_json(data, path), Summary)


def convert_document(data: dict[str, Any], kind: type[Document]) -> tuple[Document, list[Problem]]:
    """Return the JSON object `data` as a Sidecar or Summary, and the fields that were left out as wrong."""
    problems: list[Problem] = []
    document: Document = _convert(data, kind, "", problems)
    if isinstance(document, Summary):
        for stats in document.metrics.values():
            if stats.min is not None and math.isnan(stats.min):  # a NaN of the original logger, which spoils both
                stats.min = stats.max = None
    return document, problems


def encode_document(document: Sidecar | Summary, over: dict[str, Any] | None = None) -> str:
    """Return `document` as JSON text, laid over `over`, the JSON object that the file held before: unknown fields stay."""
    ours = msgspec.to_builtins(document, enc_hook=str)
    unset = {name for name in _OPTIONAL.intersection(ours) if not ours[name]}
    held = over or {}
    if isinstance(held.get("sessions"), list) and "sessions" in ours:
        entries = {entry.get("id"): entry for entry in held["sessions"] if isinstance(entry, dict)}
        ours["sessions"] = [{**entries.get(entry.get("id"), {}), **entry} for entry in ours["sessions"]]
    return json_text({name: value for name, value in {**held, **ours}.items() if name not in unset})


def _convert(value: Any, kind: Any, where: str, problems: list[Problem]) -> Any:
    """Return `value` as the type `kind`; UNSET if it does not fit, which `problems` then names.

    msgspec converts values that fit as a whole. Otherwise a container is converted item by item, without the items that do not fit.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        pass
    if types.NoneType in get_args(kind):
        kind = next(each for each in get_args(kind) if each is not types.NoneType)
    container, inner = get_origin(kind), get_args(kind)
    found: Any = msgspec.UNSET
    if container is list and isinstance(value, list | str):
        items = [value] if isinstance(value, str) else value  # one tag, as text
        converted = [_convert(item, inner[0], where, problems) for item in items]
        return [item for item in converted if item is not msgspec.UNSET]
    if isinstance(value, dict):
        parts = {name: item for name, item in value.items() if item is not None}
        if container is dict:
            fields = dict.fromkeys(parts, inner[1])
        elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            fields = {field.name: field.type for field in msgspec.structs.fields(kind) if field.name in parts}
        else:
            fields = None
        if fields is not None:
            prefix = f"{where}." if where else ""
            made = {name: _convert(parts[name], of, f"{prefix}{name}", problems) for name, of in fields.items()}
            found = {name: item for name, item in made.items() if item is not msgspec.UNSET}
            return found if container is dict else kind(**found)
    elif container is None or kind is Time:
        found = _scalar(value, kind)
    if found is msgspec.UNSET:
        wanted = _WANTED.get(container or kind, "a time")
        too_large = wanted == _in_words(value) or (kind is int and isinstance(value, int))
        problems.append((where, f"is too large for {wanted}" if too_large else f"is {_in_words(value)}, not {wanted}"))
    return found


def _scalar(value: Any, kind: Any) -> Any:
    """Return a JSON value as the scalar type `kind` if it only looks different; else UNSET."""
    if kind is Time:
        then = parse_time(value)
        return msgspec.UNSET if then is None else then
    if kind is float:
        value = restore_number(value)
        with contextlib.suppress(OverflowError):
            return float(value) if isinstance(value, bool | int | float) else msgspec.UNSET
    if kind is int and isinstance(value, float) and value.is_integer() and abs(value) < 1 << 63:
        return int(value)
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # a run id of digits
    return msgspec.UNSET


_WANTED: dict[Any, str] = {
    str: "a text",
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    SessionEntry: "an object",
    MetricStats: "an object",
}


def _in_words(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "a number" if isinstance(value, int | float) else _WANTED.get(type(value), type(value).__name__)


def parse_json(data: bytes, path: AnyPath) -> dict[str, Any]:
    """Return the JSON object in `data`, the bytes of the file `path`; bare NaN and Infinity are taken as numbers.

    Raises SidecarError if it is no JSON object.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = "it is empty" if not data.strip() else f"it is not JSON ({error})"
        raise SidecarError(f"{path} cannot be read: {reason}.") from error
    if not isinstance(value, dict):
        raise SidecarError(f"{path} cannot be read: it holds a JSON {type(value).__name__}, not an object.")
    return value


def json_text(data: dict[str, Any]) -> str:
    """Return `data` as strict JSON that people can read: one line for each entry of the two outer levels."""
    entries = []
    for key, value in data.items():
        if isinstance(value, dict) and value:
            inner = ",\n".join([f"    {_dumps(str(name))}: {_dumps(item)}" for name, item in value.items()])
            entries.append(f"  {_dumps(str(key))}: {{\n{inner}\n  }}")
        else:
            entries.append(f"  {_dumps(str(key))}: {_dumps(value)}")
    return "{\n" + ",\n".join(entries) + "\n}\n" if entries else "{}\n"


def _dumps(value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (ValueError, TypeError):
        return json.dumps(strict(value), allow_nan=False, default=str)


def parse_time(value: object) -> float | None:
    """Return a time (a number of seconds since the epoch, or ISO 8601 text) in seconds since the epoch; None if it is none.

    ISO text without a zone is UTC, as every writer of this format means it.
    """
    seconds: float | None = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value) if abs(value) < _YEAR_10000 else None
    elif isinstance(value, str):
        try:
            then = datetime.fromisoformat(value.strip())
            seconds = (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            with contextlib.suppress(ValueError):
                seconds = float(value)
    return seconds if seconds is not None and math.isfinite(seconds) and 0 <= seconds < _YEAR_10000 else None


def touch_heartbeat(run_dir: AnyPath, now: float | None = None) -> None:
    """Write the present time into the heartbeat of `run_dir`, which also moves its mtime.

    Raises OSError if the directory is gone or read-only.
    """
    # One write of always the same length into the open file: a reader never finds a part of it.
    descriptor = os.open(Path(run_dir) / HEARTBEAT_NAME, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        os.write(descriptor, f"{time.time() if now is None else now:017.6f}\n".encode())
    finally:
        os.close(descriptor)


def parse_heartbeat(data: bytes) -> float | None:
    """Return the time that a heartbeat file with the content `data` holds; None for an empty one, as the original writes it."""
    return parse_time(data.decode("ascii", errors="replace").strip())


# To be removed, as soon as their callers have moved.


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


def atomic_json_write(path: AnyPath, data: Any) -> None:
    """Replace the file `path` by `data` as strict JSON, whole, at one instant, flushed to disk.

    A file that is replaced keeps its mode and (where permitted) its group; a new one follows the umask.
    """
    atomic_text_write(path, json_text(data))


def atomic_text_write(path: AnyPath, text: str) -> None:
    """Replace the file `path` by `text`."""
    replace_file(path, text)


def heartbeat_mtime(run_dir: AnyPath) -> float | None:
    """When the run gave its last sign of life, in seconds since the epoch; None without a heartbeat."""
    try:
        return heartbeat_path(run_dir).stat().st_mtime
    except OSError:
        return None


def is_alive(run_dir: AnyPath, timeout_s: float = HEARTBEAT_TIMEOUT, *, now: float | None = None) -> bool:
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

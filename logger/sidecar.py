"""The format of a run directory: sidecar.json, summary.json and heartbeat. Free of torch and lightning.

Files are replaced whole and read tolerantly: one wrong field costs only itself, and unknown fields survive a rewrite.
Times are seconds since the epoch (ISO text is read too). JSON is strict: a non-finite number is the string "NaN",
"Infinity" or "-Infinity".
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import types
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar, get_args, get_origin

import msgspec

from logger.files import replace_file, set_aside
from logger.values import restore_number, strict

if TYPE_CHECKING:
    import os
    from pathlib import Path

AnyPath: TypeAlias = "str | os.PathLike[str]"

SCHEMA_VERSION = 1
SIDECAR_NAME = "sidecar.json"
SUMMARY_NAME = "summary.json"
HEARTBEAT_NAME = "heartbeat"
TERMINAL_STATUSES = frozenset({"completed", "failed", "interrupted"})
HEARTBEAT_TIMEOUT = 180.0
"""A running run whose heartbeat is older than this many seconds counts as dead."""

YEAR_10000 = 253402300800.0
"""Seconds since the epoch, from which on a number is no time."""

Time = Annotated[float, msgspec.Meta(ge=0, lt=YEAR_10000)]
"""Seconds since the epoch."""

Problem: TypeAlias = tuple[str, str]
"""A field (`sessions.pid`) and the statement about it (`is a text, not a whole number`)."""


class SidecarError(ValueError):
    """A JSON file of a run directory cannot be read; the message names the file and the reason."""


class SessionEntry(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One start of a run: its process, machine, job and code.

    `rows` counts the rows that were there before, `fit` says that the start trained (and not only validated, or died
    early).
    """

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
    fit: bool | None = None


class Given(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The tags, notes and name that starts of a run brought along, whatever people made of them since."""

    tags: list[str] = []
    notes: str = ""
    display_name: str = ""


class Sidecar(msgspec.Struct, kw_only=True):
    """The content of sidecar.json; `summary` holds each metric's last value."""

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
    given: Given = msgspec.field(default_factory=Given)


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


def read_sidecar(run_dir: Path) -> Sidecar | None:
    """Return the sidecar in `run_dir`, or None if there is none that can be read."""
    path = run_dir / SIDECAR_NAME
    try:
        return decode_document(path.read_bytes(), path, Sidecar)[0]
    except (OSError, SidecarError):
        return None


def decode_document(data: bytes, path: AnyPath, kind: type[Document]) -> tuple[Document, list[Problem]]:
    """Return the Sidecar or Summary in `data`, the bytes of the file `path`, and the wrong fields, which are left out.

    All times are seconds since the epoch, also those that the file holds as ISO text. Raises SidecarError if `data` is
    no JSON object.
    """
    return convert_document(parse_json(data, path), kind)


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
    """Return `document` as JSON text, laid over `over`, the JSON object of the file so far.

    Fields of `over` that `document` does not know stay.
    """
    ours = msgspec.to_builtins(document, enc_hook=str)
    unset = {name for name in _OPTIONAL.intersection(ours) if not ours[name]}
    held = over or {}
    if isinstance(held.get("sessions"), list) and "sessions" in ours:
        entries = {entry.get("id"): entry for entry in held["sessions"] if isinstance(entry, dict)}
        ours["sessions"] = [{**entries.get(entry.get("id"), {}), **entry} for entry in ours["sessions"]]
    return json_text({name: value for name, value in {**held, **ours}.items() if name not in unset})


class SidecarFile:
    """The sidecar of a run that is being written, while people and other programs may edit it.

    `document` is what this process holds to be true. Edits on disk of notes, tags, display_name, archived and unknown
    fields win, as do the sessions of other processes; every other field belongs to the training.
    """

    _TRIES = 3

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / SIDECAR_NAME
        self.document = Sidecar()
        self._on_disk: dict[str, Any] = {}
        self._seen: tuple[int, int, int] | None = None

    def load(self) -> bool:
        """Read the file, and return whether there was one.

        Raises SidecarError if it cannot be read; it is set aside then.
        """
        found = self._read()
        self.document = found or self.document
        return found is not None

    def write(self, fields: dict[str, Any]) -> None:
        """Replace the file by `document` with new values of `fields`, after edits on disk are taken over.

        Raises OSError.
        """
        for attempt in range(self._TRIES):
            self._take_over_edits()
            for name, value in fields.items():
                setattr(self.document, name, value)
            last = attempt == self._TRIES - 1
            confirm = None if last else lambda _: self._state() == self._seen
            state = replace_file(self.path, encode_document(self.document, self._on_disk), confirm=confirm)
            if state is not None:
                self._seen = state.st_ino, state.st_mtime_ns, state.st_size
                return

    def is_overtaken(self, token: str) -> bool:
        """Return whether another process that continues the start `token`, a child, wrote newer state than `document`.

        An edit does not count. Costs one `stat` if the file is as this process left it.
        """
        held = None if self._state() == self._seen else read_sidecar(self.path.parent)
        if held is None or not held.sessions or held.sessions[-1].id != token:
            return False
        return (held.updated_at or 0.0) > (self.document.updated_at or 0.0)

    def _take_over_edits(self) -> None:
        try:
            edited = self._read()
        except SidecarError:
            return  # an editor may be in the middle of its work: it keeps its file
        if edited is None:
            return
        for name in ("tags", "notes", "display_name", "archived"):
            setattr(self.document, name, getattr(edited, name))
        known = {session.id for session in self.document.sessions}
        self.document.sessions += [session for session in edited.sessions if session.id not in known]

    def _read(self) -> Sidecar | None:
        """Return the content of the file if it is another one than at the last look.

        Raises SidecarError if it cannot be read; it is set aside then.
        """
        state = self._state()
        if state is None or state == self._seen:
            return None
        self._seen = state
        try:
            self._on_disk = parse_json(self.path.read_bytes(), self.path)
        except FileNotFoundError:
            return None
        except SidecarError:
            set_aside(self.path)
            raise
        return convert_document(self._on_disk, Sidecar)[0]

    def _state(self) -> tuple[int, int, int] | None:
        try:
            state = self.path.stat()
        except OSError:
            return None
        return state.st_ino, state.st_mtime_ns, state.st_size


_MAX_CHECKED = 100_000
"""Items of a container that are checked one by one; of more, a single wrong one costs the whole container."""


def _convert(value: Any, kind: Any, where: str, problems: list[Problem]) -> Any:
    """Return `value` as the type `kind`; UNSET if it does not fit, which `problems` then names.

    msgspec converts values that fit as a whole. Otherwise a container is converted item by item, without the items that
    do not fit.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        if isinstance(value, list | dict) and len(value) > _MAX_CHECKED:
            problems.append((where, f"holds a value of a wrong type, and more than {_MAX_CHECKED:,} values"))
            return msgspec.UNSET
    if types.NoneType in get_args(kind):
        kind = next(each for each in get_args(kind) if each is not types.NoneType)
    container, inner = get_origin(kind), get_args(kind)
    is_struct = isinstance(kind, type) and issubclass(kind, msgspec.Struct)
    if container is list and isinstance(value, list | str):
        items = [value] if isinstance(value, str) else value  # one tag, as text
        converted = [_convert(item, inner[0], where, problems) for item in items]
        return [item for item in converted if item is not msgspec.UNSET]
    if isinstance(value, dict) and (container is dict or is_struct):
        fields = _field_types(kind) if is_struct else dict.fromkeys(value, inner[1])
        made = {
            name: _convert(value[name], of, f"{where}.{name}".removeprefix("."), problems)
            for name, of in fields.items()
            if value.get(name) is not None
        }
        made = {name: item for name, item in made.items() if item is not msgspec.UNSET}
        return kind(**made) if is_struct else made
    found = _scalar(value, kind)
    if found is msgspec.UNSET:
        wanted = _WANTED.get(container or kind, "a time")
        too_large = wanted == _in_words(value) or (kind is int and type(value) is int)
        problems.append((where, f"is too large for {wanted}" if too_large else f"is {_in_words(value)}, not {wanted}"))
    return found


@functools.cache
def _field_types(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the types of a struct's fields by name. Finding them takes a millisecond."""
    return {field.name: field.type for field in msgspec.structs.fields(kind)}


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
    Given: "an object",
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
    return json.dumps(strict(value), allow_nan=False, default=str)


def parse_time(value: object) -> float | None:
    """Return a time (a number of seconds since the epoch, or ISO 8601 text) in seconds since the epoch.

    None if it is none.

    ISO text without a zone is UTC, as every writer of this format means it.
    """
    seconds: float | None = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value) if abs(value) < YEAR_10000 else None
    elif isinstance(value, str):
        try:
            then = datetime.fromisoformat(value.strip())
            seconds = (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            with contextlib.suppress(ValueError):
                seconds = float(value)
    return seconds if seconds is not None and math.isfinite(seconds) and 0 <= seconds < YEAR_10000 else None


def parse_heartbeat(data: bytes) -> float | None:
    """Return the time that a heartbeat file with the content `data` holds.

    None for an empty one, as the original writes it.
    """
    return parse_time(data.decode("ascii", errors="replace").strip())

"""Read the facts of a run directory: identity, name, status, times, hyperparameters, notes.

There are three kinds of run directory. RegistryLogger's has a sidecar.json that states these facts. CSVLogger's has
none, so its facts come from hparams.yaml, from names, and from the times of its files. TensorBoardLogger's has event
files, which `event_runs` reads.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import stat
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict

from bridge.errors import RunDirectoryError
from bridge.files import (
    LARGEST_HPARAMS_FILE,
    LARGEST_JSON,
    LARGEST_PARAMS,
    LARGEST_YAML,
    LONGEST_NAME,
    Refused,
    cache_dir,
    clean,
    open_plain,
    own_file,
    read_head,
    shortened,
)
from bridge.model import Notice, NoticeKind, Run, RunFile, Status, fitting
from bridge.rundir.discover import LFS_POINTER, lstat, why_no_run
from bridge.rundir.event_runs import FRESH, read_event_facts
from bridge.rundir.header import cells_of, first_row, read_layout
from logger.sidecar import Sidecar, SidecarError, Summary, decode_document, parse_heartbeat, parse_time
from logger.values import ClassName, flatten, param_scalar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bridge.model import Scalar
    from logger.sidecar import Document

RUN_FILES = ("sidecar.json", "summary.json", "hparams.yaml", "metrics.csv", "media.jsonl")
"""The files of a run directory that are read."""

_MOST_CONFIGS = 10
"""Files of Hydra's that are named among a run's own files; it writes three."""

TEST_TUBE_TIME = "created_at"
"""The column of times in a metrics.csv of test-tube, Lightning's first logger."""

_POINTER_BYTES = range(120, 200)
"""The sizes of Git LFS's pointers lie in this range: three short lines, the second of which has 76 bytes."""

MOST_NAMED = 20
"""Rows, lines and fields that are named one by one in notices of one kind; more are counted."""

EVENT_TIME = "wall_time"
"""The name of the column of times that event files stand for."""

ENDED = {"completed": Status.COMPLETED, "failed": Status.FAILED, "interrupted": Status.INTERRUPTED}
"""The sidecar's words for runs that ended, and their status."""

_HOUR = 3600.0

ALLOWANCE = 60.0
"""Seconds by which the file server's clock may be off while it is not known."""

_REFRESH_S = 300.0
_WELL_BEFORE = 60.0
"""Seconds by which a file must be older than the end of its run to tell of the start."""

_TAIL_BYTES = 1 << 16
_TOP_LEVEL_KEY = re.compile(rb"^(?=[^\s#-])", re.MULTILINE)
_SAYS_LITTLE = re.compile(r"0*\d{1,4}|(version|seed|fold|run|trial)[-_=0-9]*")
_NAMELESS = frozenset({"lightning_logs", "logs", "log", "csv_logs", "runs"})
_STAMP = re.compile(r"(20\d\d)[-_.]?(\d\d)[-_.]?(\d\d)[-_T/ ]?(\d\d)[-_.:h]?(\d\d)[-_.:m]?(\d\d)(?!\d)")
_EVENT_FILE = re.compile(r"events\.out\.tfevents\.(\d{10})\.")


def read_run(path: Path, *, heartbeat_timeout: float = 180.0, is_real: bool = False) -> Run:
    """Return what the run directory `path` says, checked and typed.

    `is_real` states that `path` is a real path, as `discover` finds them. A run that calls itself running, but gave no
    sign of life for `heartbeat_timeout` seconds, is killed. Fields of a wrong type are left out, and named in
    `notices`. Raises RunDirectoryError if `path` is no run directory, or if its sidecar cannot be read.
    """
    real = path if is_real else Path(os.path.realpath(path))
    notices: list[Notice] = []
    files = _own_files(real, notices)
    sidecar = _read_sidecar(real, files, notices)
    stats, summary_rows = _read_statistics(files, notices)
    is_other = bool({"sidecar.json", "metrics.csv"} & files.keys())
    events, first, last, event_params = ((), None, None, {}) if is_other else read_event_facts(real, notices)
    time_column = EVENT_TIME if events else _time_column(sidecar, files)
    life = _sign_of_life(real, sidecar, files, time_column)
    if events:
        life = _last_event(events, last)
        heartbeat_timeout = max(heartbeat_timeout, FRESH)
    status = _status(sidecar.status, alive=life.age < heartbeat_timeout)
    start, start_estimated = _start(real, sidecar, files, life, time_column)
    if first is not None:
        start, start_estimated = first, False
    last_alive = start if life.last is None else life.last
    end, end_estimated = _end(status, sidecar, life, start)
    run_id = _bounded("run_id", (sidecar.run_id or real.name).replace("\0", "\ufffd"), notices)
    identity = (sidecar.uid or sidecar.run_id or str(real)).replace("\0", "\ufffd")
    name = sidecar.display_name or run_name(run_id if sidecar.run_id else "", str(real))
    summary = sidecar.summary or {metric: of["last"] for metric, of in stats.items() if of["last"] is not None}
    return Run(
        path=real,
        identity=fitting(shortened(clean(identity))),
        run_id=clean(run_id),
        status=status,
        status_word=sidecar.status,
        start=start,
        start_estimated=start_estimated,
        end=end,
        end_estimated=end_estimated,
        run_dir=sidecar.run_dir,
        last_alive=last_alive,
        name=_bounded("display_name", clean(name), notices),
        parent=clean(real.parent.name),
        params=_params(sidecar, files, notices) or event_params,
        tags=tuple(dict.fromkeys(sidecar.tags)),
        notes=sidecar.notes,
        archived=sidecar.archived,
        sessions=tuple(sidecar.sessions),
        checkpoint=sidecar.checkpoint_path,
        summary=summary,
        summary_stats=stats,
        summary_rows=summary_rows,
        time_column=time_column,
        files=files,
        kind="TensorBoardLogger" if events else "RegistryLogger" if "sidecar.json" in files else "CSVLogger",
        event_files=events,
        notices=tuple(notices),
    )


def run_name(run_id: str, path: str) -> str:
    """Return the name of a run without a display name, from its id ("" if it has none) and its real path.

    It is the last part of the id, or the folder's name. While the first part of a name says little (`0`, `version_0`),
    the part above it is put in front: first the other parts of the id, then the folders above the run directory.
    """
    folders = path.split("/")[1:]
    parts = [part for part in run_id.split("/") if part] or folders[-1:]
    above = folders[: -len(parts)] if folders[-len(parts) :] == parts else folders[:-1]
    above = [part for part in above if part not in _NAMELESS] + parts[:-1]
    name = [parts[-1]]
    while above and _says_little(name[0]):
        name.insert(0, above.pop())
    return "/".join(name)


def _says_little(part: str) -> bool:
    return _SAYS_LITTLE.fullmatch(part) is not None


def first_named(notices: list[Notice], what: str, detail: str) -> list[Notice]:
    """Return the first of `notices`, and one notice with `what` and `detail` that stands for the others."""
    first, rest = notices[:MOST_NAMED], notices[MOST_NAMED:]
    if rest:
        first.append(Notice(rest[0].kind, what, detail, sum(notice.count for notice in rest)))
    return first


def _bounded(field: str, text: str, notices: list[Notice]) -> str:
    """Return `text` as `shortened` does, with a notice if it was too long."""
    short = shortened(text)
    if short != text:
        detail = f"of {len(text)} characters the first {LONGEST_NAME} are kept, with a digest as their end"
        notices.append(Notice(NoticeKind.CUT, f"sidecar.json: {field}", detail))
    return short


def _own_files(real: Path, notices: list[Notice]) -> dict[str, RunFile]:
    """Return the run's own files by name: those that are read, and the configurations of LightningCLI and Hydra."""
    files = {}
    for name in (*RUN_FILES, *_config_files(real)):
        try:
            found = own_file(real, name)
        except Refused as error:
            kind = NoticeKind.MISSING_FILE if error.missing else NoticeKind.REFUSED_PATH
            notices.append(Notice(kind, name, str(error)))
            continue
        if found is None:
            continue
        if _is_lfs_pointer(found):
            detail = "is a Git LFS pointer; `git lfs pull` fetches the file"
            notices.append(Notice(NoticeKind.MISSING_FILE, name, detail))
            continue
        if name not in RUN_FILES and found.size > LARGEST_YAML:
            detail = f"larger than {LARGEST_YAML >> 20} MiB, left out"
            notices.append(Notice(NoticeKind.TOO_LARGE, name, detail))
            continue
        files[name] = found
    return files


def _is_lfs_pointer(file: RunFile) -> bool:
    if file.size not in _POINTER_BYTES:
        return False
    try:
        return read_head(file.path, len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False


def _config_files(real: Path) -> list[str]:
    try:
        # A link may lead to a folder outside, of which not even the names may be read.
        with_hydra = stat.S_ISDIR(os.lstat(f"{real}/.hydra").st_mode)
        names = [entry.name for entry in os.scandir(real / ".hydra")] if with_hydra else []
    except OSError:
        names = []
    return ["config.yaml", *sorted(f".hydra/{name}" for name in names if name.endswith(".yaml"))[:_MOST_CONFIGS]]


def _read_sidecar(real: Path, files: Mapping[str, RunFile], notices: list[Notice]) -> Sidecar:
    """Return the sidecar; an empty one for a CSVLogger's directory. Raises RunDirectoryError."""
    if "sidecar.json" not in files:
        refused = next((notice.detail for notice in notices if notice.what == "sidecar.json"), None)
        if refused is not None:
            raise RunDirectoryError(
                f"{real}/sidecar.json {refused}.", hint="Put a plain file in its place, or move the run directory away."
            )
        reason = why_no_run(str(real))
        if reason:
            raise RunDirectoryError(
                f"{real} is not a run directory: {reason}.",
                hint="Give the folder that a RegistryLogger or a CSVLogger wrote, or one above it.",
            )
        return Sidecar()
    try:
        sidecar, problems = _decode(files["sidecar.json"], Sidecar)
    except SidecarError as error:
        raise RunDirectoryError(str(error), hint="Repair the file, or move the run directory away.") from error
    notices += _left_out("sidecar.json", problems)
    return sidecar


def _read_statistics(
    files: Mapping[str, RunFile], notices: list[Notice]
) -> tuple[dict[str, Mapping[str, float | int | None]], int | None]:
    """Return the statistics in summary.json by metric, and the number of rows that they cover.

    None if it cannot be read.
    """
    if "summary.json" not in files:
        return {}, None
    try:
        summary, problems = _decode(files["summary.json"], Summary)
    except SidecarError as error:
        is_large = files["summary.json"].size > LARGEST_JSON
        notices.append(Notice(NoticeKind.TOO_LARGE if is_large else NoticeKind.BAD_LINE, "summary.json", str(error)))
        return {}, None
    notices += _left_out("summary.json", problems)
    return {name: asdict(of) for name, of in summary.metrics.items()}, summary.rows


def _decode(file: RunFile, kind: type[Document]) -> tuple[Document, list[tuple[str, str]]]:
    """Return what a JSON file holds. Raises SidecarError if it cannot be read or is too large."""
    try:
        data = read_head(file.path, LARGEST_JSON + 1)
    except OSError as error:
        raise SidecarError(f"{file.path} cannot be read: {error.strerror}.") from error
    if len(data) > LARGEST_JSON:
        raise SidecarError(f"{file.path} is larger than {LARGEST_JSON >> 20} MiB; such a file has some kilobytes.")
    return decode_document(_encodable(data), file.path, kind)


def _left_out(file: str, problems: Sequence[tuple[str, str]]) -> list[Notice]:
    notices = [Notice(NoticeKind.LEFT_OUT, f"{file}: {field}", problem) for field, problem in problems]
    return first_named(notices, file, "further values of a wrong type")


def _encodable(data: bytes) -> bytes:
    r"""Return JSON text without lone surrogates (`"\ud800"`), which no target can encode."""
    if rb"\ud" not in data and rb"\uD" not in data:
        return data
    try:
        return clean(json.dumps(json.loads(data), ensure_ascii=False)).encode()
    except (ValueError, RecursionError):
        return data  # whoever parses it next says what is wrong


def _status(word: str | None, *, alive: bool) -> Status:
    """Return the status that is shown, by the table in docs/reference/run-directory.md."""
    if word in ENDED:
        return ENDED[word]
    if alive:
        return Status.RUNNING
    return Status.KILLED if word == "running" else Status.UNKNOWN


@lru_cache
def _clock_in(directory: Path | None) -> _Clock:
    return _Clock(directory)


def _age(found: os.stat_result, then: float | None = None) -> float:
    """Return `_Clock.age` by the clock that this process has in its folder for caches."""
    try:
        clock = _clock_in(cache_dir())
    except RuntimeError:  # there is no home folder
        clock = _clock_in(None)
    return clock.age(found, then)


class _Clock:
    """Tell how old files are.

    `directory`, a cache of ours, may be written to. Files on its file system are judged by the clock that dates a new
    file there. Other files are judged by this machine's clock, a minute in their favour.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._device: int | None = None
        self._ahead = 0.0
        self._asked = -_REFRESH_S
        self._comparing = threading.Lock()

    def age(self, found: os.stat_result, then: float | None = None) -> float:
        """Return the age in seconds, never negative, of the file with the stat result `found`.

        `then`, a time that the file's writer stated, replaces its mtime.
        """
        with self._comparing:
            self._compare()
        now = time.time() - (found.st_mtime if then is None else then)
        if self._device is not None and found.st_dev == self._device:
            return max(0.0, now + self._ahead)
        return max(0.0, now - ALLOWANCE)

    def _compare(self) -> None:
        """Compare the two clocks, again every few minutes, since a long `--follow` sees them drift."""
        if self._directory is None or time.monotonic() - self._asked < _REFRESH_S:
            return
        self._asked = time.monotonic()
        self._device = None
        with contextlib.suppress(OSError):
            self._directory.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._directory, prefix=".clock-") as file:
                before = time.time()
                file.write(b".")
                file.flush()
                os.fsync(file.fileno())
                found = os.fstat(file.fileno())
                self._ahead = found.st_mtime - (before + time.time()) / 2
                self._device = found.st_dev


@dataclass(frozen=True, slots=True)
class _SignOfLife:
    """The last sign of life: the time (None if there never was one), its age in seconds, and if a writer stated it."""

    last: float | None
    age: float
    stated: bool = False


def _sign_of_life(real: Path, sidecar: Sidecar, files: Mapping[str, RunFile], time_column: str | None) -> _SignOfLife:
    """Return the last sign of life.

    Copying a directory without its times makes its files look new. The times that stand inside the files then decide.
    """
    beat = _stat(f"{real}/heartbeat")
    if sidecar.status in ENDED:  # nobody asks how old an ended run is
        written_last = files.get("metrics.csv") or files.get("sidecar.json")
        last = beat.st_mtime if beat else written_last.mtime_ns / 1e9 if written_last else None
        return _SignOfLife(last, float("inf"))
    metrics, own = (_stat(f"{real}/{name}") for name in ("metrics.csv", "sidecar.json"))
    sign = beat or metrics or own
    if sign is None:
        return _SignOfLife(None, float("inf"))
    written = _written_heartbeat(real) if beat is not None and sidecar.sessions else None
    if written is not None:
        copied = sign.st_mtime > written + _HOUR
        return _SignOfLife(written, _age(sign, written if copied else None), stated=True)
    oldest = min(found.st_mtime for found in (beat, metrics, own) if found is not None)
    claims = [sidecar.updated_at]
    if sidecar.updated_at is None or oldest > sidecar.updated_at + _HOUR:
        claims.append(_row_time(files, time_column, last=True))
    known = [claim for claim in claims if claim is not None]
    if known and oldest > max(known) + _HOUR:
        return _SignOfLife(max(known), _age(sign, max(known)), stated=True)
    if beat is None and metrics is None and sidecar.updated_at is not None:
        return _SignOfLife(sidecar.updated_at, _age(sign))
    return _SignOfLife(sign.st_mtime, _age(sign))


def _last_event(events: Sequence[RunFile], last: float | None) -> _SignOfLife:
    """Return the last sign of life of a run that only wrote event files: `last`, the time of its last event."""
    newest = max(events, key=lambda file: file.mtime_ns)
    try:
        age = _age(newest.path.stat())
    except OSError:
        age = float("inf")
    return _SignOfLife(newest.mtime_ns / 1e9 if last is None else last, age, stated=last is not None)


def _stat(path: str) -> os.stat_result | None:
    found = lstat(path)
    return found if found is not None and stat.S_ISREG(found.st_mode) else None


def _written_heartbeat(real: Path) -> float | None:
    try:
        return parse_heartbeat(read_head(real / "heartbeat", 64))
    except OSError:
        return None


def _start(
    real: Path, sidecar: Sidecar, files: Mapping[str, RunFile], life: _SignOfLife, time_column: str | None
) -> tuple[float, bool]:
    """Return the start of the run, and if it is an estimate. An unknown start is the last sign of life.

    Lightning rewrites hparams.yaml at each save up to version 2.4, so a file's mtime tells of the start only if it is
    well before the end.
    """
    if sidecar.created_at is not None:
        return sidecar.created_at, False
    first = _row_time(files, time_column)
    if first is not None:
        return first, False
    mtimes = [file.mtime_ns / 1e9 for file in files.values()]
    last = life.last if life.last is not None else max(mtimes, default=0.0)
    stamps = [stamp for stamp in _stamps(real) if stamp <= last]
    if stamps:
        return max(stamps), True
    oldest = min(mtimes, default=last)
    return (oldest if oldest < last - _WELL_BEFORE else last), True


def _stamps(real: Path) -> list[float]:
    """Return the times in the names of the run's event files, or else of its folder and the folder above."""
    try:
        names = [entry.name for entry in os.scandir(real)]
    except OSError:
        names = []
    found = [float(match[1]) for name in names if (match := _EVENT_FILE.match(name))]
    if found:
        return [min(found)]
    match = _STAMP.search("/".join(real.parts[-2:]))
    try:
        return [datetime(*map(int, match.groups())).timestamp()] if match else []  # type: ignore[arg-type]
    except ValueError:
        return []


def _end(status: Status, sidecar: Sidecar, life: _SignOfLife, start: float) -> tuple[float | None, bool]:
    """Return the end of the run (None while it runs), and if it is an estimate. It is never before the start."""
    if status is Status.RUNNING:
        return None, False
    if sidecar.ended_at is not None and status is not Status.KILLED:
        return max(sidecar.ended_at, start), False
    return max(life.last if life.last is not None else start, start), not life.stated


def _time_column(sidecar: Sidecar, files: Mapping[str, RunFile]) -> str | None:
    """Return the name of the time column, if metrics.csv has it or has no header yet."""
    if "metrics.csv" not in files or ("sidecar.json" in files and sidecar.time_column is None):
        return sidecar.time_column
    try:
        with open_plain(files["metrics.csv"].path) as stream:
            layout = read_layout(stream, None)
    except OSError:
        return None
    if "sidecar.json" in files:
        return sidecar.time_column if layout is None or sidecar.time_column in layout.columns else None
    # test-tube writes no step column, and dates each row.
    columns = set(layout.columns) if layout is not None else set()
    return TEST_TUBE_TIME if "step" not in columns and {TEST_TUBE_TIME, "epoch"} <= columns else None


def _row_time(files: Mapping[str, RunFile], time_column: str | None, *, last: bool = False) -> float | None:
    """Return the time of the first or the last complete row of metrics.csv; None if it says none."""
    if time_column is None or "metrics.csv" not in files:
        return None
    try:
        with open_plain(files["metrics.csv"].path) as stream:
            layout = read_layout(stream, None)
            if layout is None:
                return None
            if last:
                stream.seek(-min(_TAIL_BYTES, os.fstat(stream.fileno()).st_size - layout.end), os.SEEK_END)
                lines = stream.read(_TAIL_BYTES).split(b"\n")[:-1]
                row = next((line for line in reversed(lines) if line.strip()), b"")
            else:
                stream.seek(layout.end)
                rows = stream.read(_TAIL_BYTES)
                row = rows[: first_row(rows)]
        cells = cells_of(row)
        return parse_time(cells[layout.columns.index(time_column)]) if len(cells) == len(layout.columns) else None
    except (OSError, csv.Error, ValueError):
        return None


def _params(sidecar: Sidecar, files: Mapping[str, RunFile], notices: list[Notice]) -> dict[str, Scalar]:
    """Return the hyperparameters with flat, dotted keys, from the sidecar or else from hparams.yaml."""
    if sidecar.hparams:
        return _flat_params(sidecar.hparams, "sidecar.json: hparams", notices)
    if "hparams.yaml" not in files:
        return {}
    from logger.hparams import load_yaml

    try:
        text = read_head(files["hparams.yaml"].path, LARGEST_HPARAMS_FILE + 1)
        if len(text) > LARGEST_HPARAMS_FILE:
            detail = f"larger than {LARGEST_HPARAMS_FILE >> 20} MiB, not read"
            notices.append(Notice(NoticeKind.TOO_LARGE, "hparams.yaml", detail))
            return {}
        tree = load_yaml(text) if len(text) <= LARGEST_YAML else _small_keys(text, notices)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        notices.append(Notice(NoticeKind.BAD_LINE, "hparams.yaml", f"cannot be read: {reason}"))
        return {}
    if isinstance(tree, dict):
        return _flat_params(tree, "hparams.yaml", notices)
    if tree is not None:
        detail = f"holds a {type(tree).__name__}, not keys with values"
        notices.append(Notice(NoticeKind.BAD_LINE, "hparams.yaml", detail))
    return {}


def _small_keys(text: bytes, notices: list[Notice]) -> dict[str, Any]:
    """Return what a YAML file of more than LARGEST_YAML holds under its top-level keys, without the largest ones.

    A network that was saved as a hyperparameter takes megabytes, and must not cost the others.
    """
    from logger.hparams import load_yaml

    # A key begins at the start of a line; its value is indented, or a list whose items begin with a dash.
    blocks = [block for block in _TOP_LEVEL_KEY.split(text) if block.strip()]
    left = len(text)
    found: dict[str, Any] = {}
    for block in sorted(blocks, key=len, reverse=True):
        name = clean(block.partition(b":")[0].decode("utf-8", errors="replace"))
        if left > LARGEST_YAML:
            left -= len(block)
            detail = f"takes {len(block) >> 10:,} KiB of a file of more than {LARGEST_YAML >> 20} MiB, not read"
            notices.append(Notice(NoticeKind.TOO_LARGE, f"hparams.yaml: {shortened(name)}", detail))
            continue
        try:
            tree = load_yaml(block)
        except ValueError as error:
            notices.append(Notice(NoticeKind.BAD_LINE, f"hparams.yaml: {shortened(name)}", f"cannot be read: {error}"))
        else:
            found |= tree if isinstance(tree, dict) else {}
    return found


def _flat_params(tree: Mapping[str, Any], where: str, notices: list[Notice]) -> dict[str, Scalar]:
    """Return `tree` with dotted keys; lists become JSON text.

    Two keys that become one are both kept, the later with a number, as the logger does.
    """
    if not _fits(tree):
        detail = f"names and values of more than {LARGEST_PARAMS >> 20} million characters"
        notices.append(Notice(NoticeKind.TOO_LARGE, where, detail))
        return {}
    flat = flatten(tree)
    renamed = [
        Notice(NoticeKind.RENAMED, f"{where}: {key}", f"the name is taken; now {new}") for key, new in flat.renamed
    ]
    notices += first_named(renamed, where, "further params that share a name")
    classes = [
        Notice(NoticeKind.LEFT_OUT, f"{where}: {key}", f"an object that cannot be read; its class is {value}")
        for key, value in flat.values.items()
        if isinstance(value, ClassName)
    ]
    notices += first_named(classes, where, "further objects that cannot be read")
    params = {clean(key): param_scalar(value) for key, value in flat.values.items()}
    return {key: clean(str(value)) if isinstance(value, str) else value for key, value in params.items()}


def _fits(tree: Mapping[str, Any]) -> bool:
    """Return if the flat form of `tree` stays within LARGEST_PARAMS.

    A nested name repeats the names above it, and an alias of YAML repeats what it stands for: both multiply.
    """
    left = LARGEST_PARAMS
    waiting: list[tuple[int, Any]] = [(0, tree)]
    while waiting and left >= 0:
        length, value = waiting.pop()
        left -= length + (len(value) if isinstance(value, str) else 16)
        if isinstance(value, dict):
            waiting += [(length + len(str(key)) + 1, item) for key, item in value.items()]
        elif isinstance(value, list):
            waiting += [(0, item) for item in value]
    return left >= 0

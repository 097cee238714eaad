"""Read what a run directory says of its run: identity, status, times, params, notes; metrics and media elsewhere."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bridge.errors import RunDirectoryError
from bridge.files import (
    LARGEST_JSON,
    MOST_METRICS,
    MOST_SESSIONS,
    MOST_SLURM,
    Refused,
    fitting,
    own_file,
    read_plain,
    shortened,
    too_large_json,
)
from bridge.model import Notice, NoticeKind, Run, RunFile, Session, Status
from bridge.rundir.discover import why_no_run
from bridge.rundir.fields import Fields, number
from bridge.rundir.header import has_column
from bridge.rundir.hparams import clean, finite, flat_params, read_hparams
from bridge.rundir.statistics import readable, unreadable
from bridge.rundir.times import Clock
from logger.sidecar import SidecarError, parse_sidecar, parse_summary, parse_time

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bridge.model import Scalar

__all__ = ["first_named", "read_run"]

_MOST_NAMED = 20

Found = TypeVar("Found")

RUN_FILES = ("sidecar.json", "summary.json", "hparams.yaml", "metrics.csv", "media.jsonl")
"""The files of a run directory that are read."""

_SHOWN = {
    "completed": Status.COMPLETED,
    "failed": Status.FAILED,
    "interrupted": Status.INTERRUPTED,
}


def read_run(path: Path, *, clock: Clock | None = None, heartbeat_timeout: float = 180.0) -> Run:
    """What the run directory `path` says, checked and typed.

    `clock` tells how old the heartbeat is; a run that calls itself running and gave no sign of life for
    `heartbeat_timeout` seconds is shown as killed. What has a wrong type is left out and named in `notices`. Raises
    RunDirectoryError for what is no run directory, or whose sidecar cannot be read.
    """
    real = Path(os.path.realpath(path))
    notices: list[Notice] = []
    files = _files(real, notices)
    sidecar = Fields(_sidecar(real, files, notices), notices)
    word = sidecar.text("status")
    signs = _Signs.of(real, clock or Clock())
    status = _status(word, fresh=signs.age <= heartbeat_timeout)
    run_id = _named(sidecar.text("run_id") or clean(real.name))
    identity = _named(sidecar.text("uid") or sidecar.text("run_id") or clean(str(real)))
    run_id = sidecar.bounded("run_id", run_id)
    name = sidecar.text("display_name") or run_id.rstrip("/").rpartition("/")[2] or run_id
    start = sidecar.time("created_at")
    last_alive = signs.last if signs.last is not None else sidecar.time("updated_at")
    start = _oldest(files) if start is None else start
    last_alive = start if last_alive is None else last_alive
    stats = _summary_stats(real, files, notices)
    summary = sidecar.numbers("summary") or {
        metric: last for metric, of in stats.items() if (last := _last(of)) is not None
    }
    return Run(
        path=real,
        identity=fitting(shortened(identity)),
        run_id=run_id,
        status=status,
        status_word=word,
        start=start,
        end=_end(status, sidecar.time("ended_at"), last_alive),
        last_alive=last_alive,
        name=sidecar.bounded("display_name", name),
        parent=clean(real.parent.name),
        params=_params(sidecar, files, notices),
        tags=sidecar.texts("tags"),
        notes=sidecar.text("notes") or "",
        archived=sidecar.flag("archived"),
        sessions=tuple(_session(entry, sidecar) for entry in sidecar.entries("sessions", MOST_SESSIONS)),
        checkpoint=sidecar.text("checkpoint_path"),
        summary=summary,
        summary_stats=stats,
        time_column=_time_column(sidecar.text("time_column"), sidecar.text("time_column_before"), files),
        files=files,
        notices=(*notices, *sidecar.uncounted()),
    )


def first_named(notices: list[Notice], what: str, detail: str) -> list[Notice]:
    """Return the first of `notices`, and one notice with `what` and `detail` that stands for the others."""
    first, rest = notices[:_MOST_NAMED], notices[_MOST_NAMED:]
    if rest:
        first.append(Notice(rest[0].kind, what, detail, sum(notice.count for notice in rest)))
    return first


def _named(text: str) -> str:
    """`text` without NUL characters, with which no database looks anything up."""
    return text.replace("\0", "\ufffd")


def _files(real: Path, notices: list[Notice]) -> dict[str, RunFile]:
    files = {}
    for name in RUN_FILES:
        try:
            found = own_file(real, name)
        except Refused as error:
            notices.append(
                Notice(NoticeKind.MISSING_FILE if error.missing else NoticeKind.REFUSED_PATH, name, str(error))
            )
            continue
        if found is not None:
            files[name] = found
    return files


def _sidecar(real: Path, files: Mapping[str, RunFile], notices: Sequence[Notice]) -> dict[str, Any]:
    path = real / "sidecar.json"
    if "sidecar.json" not in files:
        refused = next((notice.detail for notice in notices if notice.what == "sidecar.json"), None)
        if refused is not None:
            raise RunDirectoryError(
                f"{path} {refused}.", hint="Put a plain file in its place, or move the run directory away."
            )
        reason = why_no_run(str(real))
        if not reason:
            return {}
        raise RunDirectoryError(
            f"{real} is no run directory: {reason}.",
            hint="Give the folder that a RegistryLogger or a CSVLogger wrote, or one above it.",
        )
    try:
        data = read_plain(files["sidecar.json"].path, limit=LARGEST_JSON)
        reason = too_large_json(data)
        if reason:
            raise RunDirectoryError(
                f"{path} {reason}.", hint="A sidecar is some kilobytes: mend it, or move the run directory away."
            )
        return parse_sidecar(data, path)
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be read: {error.strerror}.") from error
    except SidecarError as error:
        raise RunDirectoryError(str(error), hint="Mend the file, or move the run directory away.") from error


def _params(sidecar: Fields, files: Mapping[str, RunFile], notices: list[Notice]) -> dict[str, Scalar]:
    hparams = sidecar.mapping("hparams")
    if hparams:
        try:
            params, lost = flat_params(hparams, "sidecar.json: hparams")
        except (RecursionError, ValueError) as error:
            notices.append(Notice(NoticeKind.TOO_LARGE, "sidecar.json: hparams", str(error)[:200]))
            return {}
    elif "hparams.yaml" in files:
        params, lost = read_hparams(files["hparams.yaml"])
    else:
        return {}
    notices += lost
    return params


def _summary_stats(real: Path, files: Mapping[str, RunFile], notices: list[Notice]) -> dict[str, Mapping[str, Any]]:
    if "summary.json" not in files:
        return {}
    try:
        data = read_plain(files["summary.json"].path, limit=LARGEST_JSON)
        reason = too_large_json(data)
        if reason:
            notices.append(Notice(NoticeKind.TOO_LARGE, "summary.json", f"{reason}, not read"))
            return {}
        metrics = parse_summary(data, real / "summary.json").get("metrics")
    except OSError as error:
        notices.append(Notice(NoticeKind.BAD_LINE, "summary.json", f"cannot be read: {error.strerror}"))
        return {}
    except SidecarError as error:
        notices.append(Notice(NoticeKind.BAD_LINE, "summary.json", str(error)))
        return {}
    if not isinstance(metrics, dict):
        return {}
    if len(metrics) > MOST_METRICS:
        detail = f"{MOST_METRICS:,} of its {len(metrics):,} metrics are kept"
        notices.append(Notice(NoticeKind.TOO_LARGE, "summary.json", detail, len(metrics) - MOST_METRICS))
    kept = {clean(name): stats for name, stats in islice(metrics.items(), MOST_METRICS)}
    notices += unreadable(kept)
    return {name: readable(stats) for name, stats in kept.items()}


def _last(stats: Mapping[str, Any]) -> float | None:
    return number(stats.get("last"))


def _session(entry: Mapping[str, Any], sidecar: Fields) -> Session:
    def named(key: str, found: Found | None, wanted: str) -> Found | None:
        if found is None:
            sidecar.wrong(f"sessions: {key}", entry.get(key), wanted)
        return found

    def text(key: str) -> str | None:
        return named(key, _word(entry.get(key)), "a text")

    def whole(key: str) -> int | None:
        value = finite(entry.get(key))
        return named(key, None if value is None or value != int(value) else int(value), "a whole number")

    slurm = entry.get("slurm")
    commit = entry.get("git")
    named("slurm", slurm if isinstance(slurm, dict) else None, "an object")
    return Session(
        started_at=named("started_at", parse_time(entry.get("started_at")), "a time"),
        host=text("host"),
        user=text("user"),
        pid=whole("pid"),
        command=text("command"),
        git_commit=text("git_commit") or (clean(commit) if isinstance(commit, str) else None),
        slurm=_words(slurm) if isinstance(slurm, dict) else {},
        restart_count=whole("restart_count"),
        rows=whole("rows"),
    )


def _word(value: object) -> str | None:
    """A text, or a number as one."""
    return clean(str(value)) if isinstance(value, str | int | float) else None


def _words(entries: Mapping[str, object]) -> dict[str, str]:
    found = ((clean(key), _word(value)) for key, value in islice(entries.items(), MOST_SLURM))
    return {key: word for key, word in found if word is not None}


@dataclass(frozen=True, slots=True)
class _Signs:
    """The last sign of life: when (None: never), and how many seconds ago."""

    last: float | None
    age: float

    @classmethod
    def of(cls, real: Path, clock: Clock) -> _Signs:
        found = [status for name in ("heartbeat", "metrics.csv") if (status := _stat(real / name)) is not None]
        if not found:
            return cls(last=None, age=float("inf"))
        newest = max(found, key=lambda status: status.st_mtime_ns)
        return cls(last=newest.st_mtime, age=clock.age(newest))


def _stat(path: Path) -> os.stat_result | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _status(word: str | None, *, fresh: bool) -> Status:
    if word in _SHOWN:
        return _SHOWN[word]
    if word == "running":
        return Status.RUNNING if fresh else Status.KILLED
    return Status.RUNNING if fresh else Status.UNKNOWN


def _end(status: Status, ended_at: float | None, last_alive: float) -> float | None:
    if status is Status.RUNNING:
        return None
    return last_alive if ended_at is None or status is Status.KILLED else ended_at


def _oldest(files: Mapping[str, RunFile]) -> float:
    if "hparams.yaml" in files:
        return files["hparams.yaml"].mtime_ns / 1e9
    return min((file.mtime_ns / 1e9 for file in files.values()), default=0.0)


def _time_column(name: str | None, before: str | None, files: Mapping[str, RunFile]) -> str | None:
    """The time column's name where metrics.csv has that column, or has no header yet; else the name `before`, likewise.

    A writer that renames the column says so here first: until metrics.csv follows, times stand under the old name.
    """
    if not name or "metrics.csv" not in files:
        return name or None
    return next((column for column in (name, before) if column and has_column(files["metrics.csv"], column)), None)

"""Read what a run directory says of its run: identity, status, times, params, notes; metrics and media elsewhere."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.errors import RunDirectoryError
from bridge.model import Loss, LossKind, Run, RunFile, Session, Status
from bridge.source.clock import Clock
from bridge.source.discover import is_run
from bridge.source.header import has_column
from bridge.source.hparams import clean, finite, flat_params, read_hparams
from bridge.source.paths import RUN_FILES, Refused, own_file
from logger.sidecar import SidecarError, parse_time, read_sidecar, read_summary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bridge.model import Scalar

__all__ = ["read_run"]

_LARGEST_JSON = 64 << 20

_SHOWN = {
    "completed": Status.COMPLETED,
    "failed": Status.FAILED,
    "interrupted": Status.INTERRUPTED,
}


def read_run(path: Path, *, clock: Clock | None = None, heartbeat_timeout: float = 180.0) -> Run:
    """What the run directory `path` says, checked and typed.

    `clock` tells how old the heartbeat is; a run that calls itself running and gave no sign of life for
    `heartbeat_timeout` seconds is shown as killed. What has a wrong type is left out and named in `losses`. Raises
    RunDirectoryError for what is no run directory, or whose sidecar cannot be read.
    """
    real = Path(os.path.realpath(path))
    losses: list[Loss] = []
    files = _files(real, losses)
    sidecar = _Fields(_sidecar(real, files), losses)
    word = sidecar.text("status")
    signs = _Signs.of(real, clock or Clock())
    status = _status(word, fresh=signs.age <= heartbeat_timeout)
    run_id = sidecar.text("run_id") or clean(real.name)
    start = sidecar.time("created_at")
    last_alive = signs.last if signs.last is not None else sidecar.time("updated_at")
    start = _oldest(files) if start is None else start
    last_alive = start if last_alive is None else last_alive
    stats = _summary_stats(real, files, losses)
    summary = sidecar.numbers("summary") or {
        name: last for name, of in stats.items() if (last := _last(of)) is not None
    }
    return Run(
        path=real,
        identity=sidecar.text("uid") or sidecar.text("run_id") or clean(str(real)),
        run_id=run_id,
        status=status,
        status_word=word,
        start=start,
        end=_end(status, sidecar.time("ended_at"), last_alive),
        last_alive=last_alive,
        name=sidecar.text("display_name") or run_id.rstrip("/").rpartition("/")[2] or run_id,
        parent=clean(real.parent.name),
        params=_params(sidecar, files, losses),
        tags=sidecar.texts("tags"),
        notes=sidecar.text("notes") or "",
        archived=sidecar.data.get("archived") is True,
        sessions=tuple(_session(entry) for entry in sidecar.entries("sessions")),
        checkpoint=sidecar.text("checkpoint_path"),
        summary=summary,
        summary_stats=stats,
        time_column=_time_column(sidecar.text("time_column"), files),
        files=files,
        losses=tuple(losses),
    )


def _files(real: Path, losses: list[Loss]) -> dict[str, RunFile]:
    files = {}
    for name in RUN_FILES:
        try:
            found = own_file(real, name)
        except Refused as error:
            losses.append(Loss(LossKind.MISSING_FILE if error.missing else LossKind.REFUSED_PATH, name, str(error)))
            continue
        if found is not None:
            files[name] = found
    return files


def _sidecar(real: Path, files: Mapping[str, RunFile]) -> dict[str, Any]:
    if "sidecar.json" not in files:
        if is_run(str(real)) and not os.path.lexists(real / "sidecar.json"):
            return {}
        raise RunDirectoryError(
            f"{real} is no run directory: no sidecar.json, and no metrics.csv with a step column beside hparams.yaml.",
            hint="Give the folder that a RegistryLogger or a CSVLogger wrote, or one above it.",
        )
    if files["sidecar.json"].size > _LARGEST_JSON:
        raise RunDirectoryError(f"{real}/sidecar.json is larger than {_LARGEST_JSON >> 20} MiB.")
    try:
        return read_sidecar(real)
    except OSError as error:
        raise RunDirectoryError(f"{real}/sidecar.json cannot be read: {error.strerror}.") from error
    except SidecarError as error:
        raise RunDirectoryError(str(error), hint="Mend the file, or move the run directory away.") from error


@dataclass(frozen=True, slots=True)
class _Fields:
    """The sidecar's fields by type; a value of another type is left out, once, with a loss."""

    data: Mapping[str, Any]
    losses: list[Loss]
    told: set[str] = field(default_factory=set)

    def text(self, name: str) -> str | None:
        """A string; a number is taken for one (a run_id that looks like a number)."""
        value = self.data.get(name)
        if isinstance(value, str):
            return clean(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        self._wrong(name, value, "a text")
        return None

    def time(self, name: str) -> float | None:
        """A time in seconds since the epoch."""
        value = self.data.get(name)
        then = parse_time(value)
        if then is None:
            self._wrong(name, value, "a time")
        return then

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings, each once."""
        value = self.data.get(name)
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list):
            self._wrong(name, value, "a list")
            return ()
        for item in value:
            if not isinstance(item, str):
                self._wrong(f"{name}: {item!r:.40}", item, "a text")
        return tuple(dict.fromkeys(clean(item) for item in value if isinstance(item, str)))

    def mapping(self, name: str) -> Mapping[str, Any]:
        """A JSON object."""
        value = self.data.get(name)
        if isinstance(value, dict):
            return value
        self._wrong(name, value, "an object")
        return {}

    def numbers(self, name: str) -> dict[str, float]:
        """A JSON object of numbers, non-finite ones included."""
        found = {}
        for key, value in self.mapping(name).items():
            number = _number(value)
            if number is None:
                self._wrong(f"{name}.{clean(key)}", value, "a number")
            else:
                found[clean(key)] = number
        return found

    def entries(self, name: str) -> list[Mapping[str, Any]]:
        """A list of JSON objects."""
        value = self.data.get(name)
        if not isinstance(value, list):
            self._wrong(name, value, "a list")
            return []
        return [item for item in value if isinstance(item, dict)]

    def _wrong(self, name: str, value: object, wanted: str) -> None:
        if value is not None and name not in self.told:
            self.told.add(name)
            detail = f"is a {type(value).__name__}, not {wanted}"
            self.losses.append(Loss(LossKind.LEFT_OUT, f"sidecar.json: {name}", detail))


def _number(value: object) -> float | None:
    if isinstance(value, bool | int | float):
        try:
            return float(value)
        except OverflowError:
            return None
    return None


def _params(sidecar: _Fields, files: Mapping[str, RunFile], losses: list[Loss]) -> dict[str, Scalar]:
    hparams = sidecar.mapping("hparams")
    if hparams:
        try:
            return flat_params(hparams)
        except (RecursionError, ValueError) as error:
            losses.append(Loss(LossKind.TOO_LARGE, "sidecar.json: hparams", str(error)[:200]))
            return {}
    if "hparams.yaml" not in files:
        return {}
    params, lost = read_hparams(files["hparams.yaml"])
    losses += lost
    return params


def _summary_stats(real: Path, files: Mapping[str, RunFile], losses: list[Loss]) -> dict[str, Mapping[str, Any]]:
    if "summary.json" not in files:
        return {}
    if files["summary.json"].size > _LARGEST_JSON:
        losses.append(Loss(LossKind.TOO_LARGE, "summary.json", f"larger than {_LARGEST_JSON >> 20} MiB, not read"))
        return {}
    try:
        metrics = read_summary(real).get("metrics")
    except OSError as error:
        losses.append(Loss(LossKind.BAD_LINE, "summary.json", f"cannot be read: {error.strerror}"))
        return {}
    except SidecarError as error:
        losses.append(Loss(LossKind.BAD_LINE, "summary.json", str(error)))
        return {}
    return {clean(name): stats for name, stats in metrics.items()} if isinstance(metrics, dict) else {}


def _last(stats: Mapping[str, Any]) -> float | None:
    return _number(stats.get("last"))


def _session(entry: Mapping[str, Any]) -> Session:
    def text(*keys: str) -> str | None:
        value = next((entry[key] for key in keys if entry.get(key) is not None), None)
        return clean(value) if isinstance(value, str) else None if value is None else clean(str(value))

    def whole(key: str) -> int | None:
        value = finite(entry.get(key))
        return None if value is None or value != int(value) else int(value)

    slurm = entry.get("slurm")
    commit = entry.get("git")
    return Session(
        started_at=parse_time(entry.get("started_at")),
        host=text("host"),
        user=text("user"),
        pid=whole("pid"),
        command=text("command"),
        git_commit=text("git_commit") or (clean(commit) if isinstance(commit, str) else None),
        slurm={clean(key): clean(str(value)) for key, value in slurm.items()} if isinstance(slurm, dict) else {},
        restart_count=whole("restart_count"),
        rows=whole("rows"),
    )


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


def _time_column(name: str | None, files: Mapping[str, RunFile]) -> str | None:
    """The time column's name where metrics.csv has that column, or has no header yet."""
    if not name or "metrics.csv" not in files:
        return name or None
    return name if has_column(files["metrics.csv"], name) else None

"""One run as the registry knows it: a flat record that is cheap to keep and to compare by the ten thousand."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from bridge.files import LARGEST_JSON, LONGEST_NAME, clean, open_plain, shortened
from bridge.model import Run, Status, fitting
from bridge.rundir.discover import lstat
from bridge.rundir.run import run_name
from bridge.rundir.times import ENDED
from logger.sidecar import SessionEntry, Sidecar, Summary
from logger.values import restore_number, strict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SESSION_FIELDS = ("user", "host", "command", "git_commit", "slurm", "restart_count")


FIELDS = (
    "run_id", "run_dir", "identity", "name", "status", "status_word", "kind", "alive", "created_at", "ended_at",
    "updated_at", "heartbeat", "duration", "parent", "tags", "notes", "archived", "checkpoint_path", "sessions",
)  # fmt: skip
"""The fields of a record in JSON and in tables, with what it computes; hyperparameters and metrics come behind them."""


_AS_IN_RUN = (
    "run_id", "identity", "status", "status_word", "kind", "start", "end", "last_alive", "name", "parent", "notes",
    "archived", "start_estimated", "time_column",
)  # fmt: skip
"""The fields that a record and a `Run` have in common."""


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a run directory at the last scan. Times are seconds since the epoch.

    `run_dir` is the real absolute path. `status` is the status that is shown (a dead run is `killed`), `status_word`
    that of the sidecar. `kind`, `start`, `end` and `last_alive` are those of `bridge.model.Run`, `updated` is the
    sidecar's mtime. `summary` holds the last value of each metric, `stats` its statistics (`max`, `min`, `last`,
    `count`, ...). `sessions` counts the starts, `session` holds the newest value of each of their SESSION_FIELDS.
    `covered` says that these cover all rows of metrics.csv; `bridge.registry.store.with_statistics` completes them.
    `time_column` is that of `bridge.model.Run`, for an ended run only stated by the sidecar.
    """

    run_id: str
    run_dir: str
    identity: str
    status: Status
    status_word: str | None
    kind: str = ""
    start: float
    end: float | None
    last_alive: float
    updated: float
    name: str
    parent: str = ""
    tags: tuple[str, ...] = ()
    notes: str = ""
    archived: bool = False
    hparams: dict[str, Any] = {}
    summary: dict[str, float] = {}
    stats: dict[str, dict[str, Any]] = {}
    checkpoint_path: str | None = None
    sessions: int = 0
    session: dict[str, Any] = {}
    covered: bool = True
    start_estimated: bool = False
    time_column: str | None = None

    @property
    def alive(self) -> bool:
        """Return whether the run was running, with a fresh heartbeat."""
        return self.status is Status.RUNNING

    @property
    def created_at(self) -> str:
        """Return the start as an ISO time in UTC."""
        return iso(self.start)

    @property
    def ended_at(self) -> str | None:
        """Return the end as an ISO time in UTC; None while the run is running."""
        return None if self.end is None else iso(self.end)

    @property
    def updated_at(self) -> str:
        """Return the time of the sidecar's last change as an ISO time in UTC."""
        return iso(self.updated)

    @property
    def heartbeat(self) -> str:
        """Return the last sign of life as an ISO time in UTC."""
        return iso(self.last_alive)

    @property
    def duration(self) -> float | None:
        """Return the seconds from the start to the end, or to a running run's last sign of life; never negative.

        A run whose start is not known has no duration.
        """
        seconds = max(0.0, (self.last_alive if self.end is None else self.end) - self.start)
        return None if self.start_estimated and not seconds else seconds

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Return the names of the metrics that summary.json and the sidecar know."""
        return tuple(dict.fromkeys((*self.stats, *self.summary)))

    def metric(self, name: str, stat: str = "last") -> float | None:
        """Return a statistic of a metric, `last` for its last value; None if it is unknown."""
        if stat == "last" and name in self.summary:
            return self.summary[name]
        value = restore_number(self.stats.get(name, {}).get(stat))
        return value if isinstance(value, int | float) else None

    def encoded(self) -> bytes:
        """Return the record as MessagePack, without its path, which need not be UTF-8."""
        record = msgspec.structs.replace(self, run_dir="")
        try:
            return _encoder.encode(record)
        except OverflowError:  # a whole number of more than 64 bits
            stats = {name: _storable(of) for name, of in self.stats.items()}
            changes = {"hparams": _storable(self.hparams), "stats": stats, "session": _storable(self.session)}
            return _encoder.encode(msgspec.structs.replace(record, **changes))

    @classmethod
    def decoded(cls, data: bytes, run_dir: str) -> RunRecord:
        """Return the record that is encoded in `data`. Raises msgspec.MsgspecError if it is damaged."""
        return msgspec.structs.replace(_decoder.decode(data), run_dir=run_dir)

    def with_statistics(self, stats: dict[str, dict[str, Any]]) -> RunRecord:
        """Return the record with statistics that cover all rows of metrics.csv."""
        last = {name: of["last"] for name, of in stats.items() if of.get("last") is not None}
        return msgspec.structs.replace(self, stats=stats, summary=self.summary | last, covered=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as strict JSON values: times as ISO text, numbers that are not finite as text."""
        held = {"hparams": self.hparams, "summary": self.summary, "metrics": self.stats}
        told: dict[str, Any] = strict({name: getattr(self, name) for name in FIELDS} | held)
        return told

    def to_run(self) -> Run:
        """Return the run as far as the record knows it: without its files, and with one session for all."""
        earlier = [SessionEntry()] * (self.sessions - 1)
        return Run(
            **{name: getattr(self, name) for name in _AS_IN_RUN},
            path=Path(self.run_dir),
            params=self.hparams,
            tags=self.tags,
            sessions=(*earlier, SessionEntry(**self.session)) if self.sessions else (),
            checkpoint=self.checkpoint_path,
            summary=self.summary,
            summary_stats=self.stats,
        )

    @classmethod
    def of(cls, run: Run) -> RunRecord:
        """Return the record of a run that was just read."""
        sidecar, summary, metrics = (run.files.get(name) for name in ("sidecar.json", "summary.json", "metrics.csv"))
        return cls(
            **{name: getattr(run, name) for name in _AS_IN_RUN},
            run_dir=str(run.path),
            updated=sidecar.mtime_ns / 1e9 if sidecar else run.last_alive,
            tags=tuple(run.tags),
            hparams=dict(run.params),
            summary=dict(run.summary),
            stats={name: dict(stats) for name, stats in run.summary_stats.items()},
            checkpoint_path=run.checkpoint,
            sessions=len(run.sessions),
            session=_newest(run.sessions),
            covered=not run.event_files
            and _covers_all_rows(
                run.summary_rows,
                None if summary is None else summary.mtime_ns,
                str(metrics.path) if metrics else "",
                metrics.mtime_ns if metrics else None,
                running=run.running,
                killed=run.status is Status.KILLED,
            ),
        )


def _covers_all_rows(
    rows: int | None,
    summary_mtime_ns: int | None,
    metrics: str,
    metrics_mtime_ns: int | None,
    *,
    running: bool = False,
    killed: bool = False,
) -> bool:
    """Return whether the statistics in summary.json are of all rows of the file `metrics`.

    `rows` is the number of rows that summary.json says it covers. A writer that ends a run writes summary.json after
    the last row. Of a killed run nobody knows the order, since a copy need not keep the times, so its rows are counted.
    While the run goes on, summary.json may be a few seconds behind.
    """
    if metrics_mtime_ns is None:
        return True
    if rows is None or summary_mtime_ns is None:
        return False
    if running or (metrics_mtime_ns <= summary_mtime_ns and not killed):
        return True
    try:
        with open_plain(Path(metrics)) as file:
            lines = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    except OSError:
        return True
    return lines == rows + 1


def iso(seconds: float) -> str:
    """Return a time as ISO text in UTC, or as its number if it lies outside of the calendar."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (OverflowError, ValueError, OSError):
        return str(seconds)


def _newest(sessions: Sequence[SessionEntry]) -> dict[str, Any]:
    """Return the newest value of each of SESSION_FIELDS that any session has, and the greatest `restart_count`."""
    newest: dict[str, Any] = {}
    for session in sessions:
        newest |= {name: value for name in SESSION_FIELDS if (value := getattr(session, name)) not in (None, {})}
    counts = [session.restart_count for session in sessions if session.restart_count is not None]
    return newest | ({"restart_count": max(counts)} if counts else {})


def _storable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values as MessagePack can hold them: a whole number of more than 64 bits as its digits."""
    return {
        key: value if type(value) is not int or -(1 << 63) <= value < 1 << 63 else msgspec.msgpack.Ext(0, b"%d" % value)
        for key, value in values.items()
    }


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(RunRecord, ext_hook=lambda _code, digits: int(bytes(digits)))


# Ended runs, which are the many, in a short way. `read_run` takes four times as long as a scan may (`make bench`): it
# resolves paths, looks into metrics.csv, and checks field by field. None of that matters for an ended run whose two
# JSON files have the right type in every field, which msgspec checks while it parses. All others are for `read_run`.

_SCALARS = frozenset({str, int, float, bool, type(None)})
_sidecars, _summaries = msgspec.json.Decoder(Sidecar), msgspec.json.Decoder(Summary)


def read_ended(run_dir: str, sidecar: os.stat_result, summary: os.stat_result | None) -> RunRecord | None:
    """Return the record of an ended run whose files are as RegistryLogger writes them; None if `read_run` must read it.

    `run_dir` is a real path, `sidecar` and `summary` are what lstat says of the two files.
    """
    try:
        said = _sidecars.decode(_read(f"{run_dir}/sidecar.json", sidecar))
        stats = Summary() if summary is None else _summaries.decode(_read(f"{run_dir}/summary.json", summary))
        heartbeat, metrics = lstat(f"{run_dir}/heartbeat"), lstat(f"{run_dir}/metrics.csv")
    except (msgspec.MsgspecError, UnicodeError, OSError, RecursionError):
        return None
    status = ENDED.get(said.status or "")
    identity = said.uid or said.run_id or ""
    is_plain = said.run_id and said.hparams and said.summary and _SCALARS.issuperset(map(type, said.hparams.values()))
    if status is None or said.created_at is None or said.run_id is None or not is_plain:
        return None
    if any(found is not None and not stat.S_ISREG(found.st_mode) for found in (heartbeat, metrics)):
        return None
    if said.time_column not in (None, "wall_time"):  # its default; another may be missing in the header
        return None
    name = said.display_name or run_name(said.run_id, run_dir)
    longest = max(len(said.run_id), len(name))
    if longest > LONGEST_NAME or "\0" in said.run_id + identity or fitting(shortened(identity)) != identity:
        return None
    start = said.created_at
    last_alive = (heartbeat or metrics or sidecar).st_mtime
    return RunRecord(
        run_id=said.run_id,
        run_dir=run_dir,
        identity=identity,
        status=status,
        status_word=said.status,
        kind="RegistryLogger",
        start=start,
        end=max(start, last_alive if said.ended_at is None else said.ended_at),
        last_alive=last_alive,
        updated=sidecar.st_mtime_ns / 1e9,
        name=clean(name),
        parent=clean(run_dir.rsplit(os.sep, 2)[-2]),
        tags=tuple(dict.fromkeys(said.tags)),
        notes=said.notes,
        archived=said.archived,
        hparams=said.hparams,
        summary=said.summary,
        stats=msgspec.to_builtins(stats.metrics),
        checkpoint_path=said.checkpoint_path,
        sessions=len(said.sessions),
        session=_newest(said.sessions),
        time_column=said.time_column,
        covered=_covers_all_rows(
            stats.rows,
            None if summary is None else summary.st_mtime_ns,
            f"{run_dir}/metrics.csv",
            None if metrics is None else metrics.st_mtime_ns,
        ),
    )


def _read(path: str, found: os.stat_result) -> bytes:
    """Return the bytes of a plain file. Raises OSError for anything else, and for a large file."""
    if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST_JSON:
        raise OSError(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(descriptor, found.st_size + 1)
    finally:
        os.close(descriptor)

"""One run directory that is being written: what `logger.experiment` is. Free of torch and lightning."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from logger.csv_writer import Row
from logger.hparams import HPARAMS_NAME
from logger.logged import taken
from logger.one_at_a_time import OneAtATime, whole
from logger.opening import METRICS_NAME, free_name, open_directory
from logger.pulse import HEARTBEAT_S, Budget, Pulse
from logger.sidecar import now_iso, touch_heartbeat
from logger.state import format_number, write_summary
from logger.steps import step_of
from logger.troubles import Troubles

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from logger.pictures import Encoded
    from logger.settings import Settings

__all__ = ["RunWriter"]

_BEAT_AT_LOG_S = 1.0
_RETRY_S = 5.0
"""After the disk refused something, saving waits this long before it tries again."""

_PATIENCE_S = 0.5
"""The thread waits this long for a call of the training to end."""

_log = logging.getLogger(__name__)


class _State(NamedTuple):
    """What the two JSON files are to hold; not `complete` while the disk has not taken all rows of it."""

    version: int
    complete: bool
    sidecar: dict[str, Any]
    summary: dict[str, Any]


class RunWriter(OneAtATime):
    """Writes one run directory from one process; made by `open_run`.

    Rows are appended when `save` is called, or after `flush_every` of them, or by the thread within seconds. The two JSON files
    follow at a rate that costs at most 2 % of the time. Once the directory is open, a disk that refuses is warned about and
    tried again: no method raises OSError.
    """

    NAME_METRICS_FILE = METRICS_NAME
    NAME_HPARAMS_FILE = HPARAMS_NAME

    def __init__(self, settings: Settings, *, announce: Callable[[str], None]) -> None:
        """Make or resume the directory. Raises OSError where it cannot be written."""
        super().__init__()
        self.settings = settings
        self.run_dir = settings.run_dir
        self.pid = os.getpid()
        self.released = False
        self.troubles = Troubles()
        self._json_lock = threading.Lock()
        self._version = self._written = 0  # counts changes of the state; which of them the JSON files hold
        self._retry_at = 0.0
        self._beat = time.monotonic()
        self._budget = Budget(self._beat)
        self._pulse: Pulse | None = None
        self._buffer: list[Row] = []
        opened = open_directory(settings, complain=self.troubles.tell)
        self.sidecar, self._summary, self.session = opened.sidecar, opened.summary, opened.session
        self._file, self._hparams, self.media = opened.metrics, opened.hparams, opened.media
        restored = opened.restored
        self.stats, self.step, self.epoch = restored.stats, restored.step, restored.epoch
        data = self.sidecar.data
        self.checkpoint: str | None = data.get("checkpoint_path")
        self.status: str = "running" if opened.new else data.get("status", "running")
        self.ended_at: str | None = None if opened.new else data.get("ended_at")
        if opened.new and opened.resumed:
            if opened.other is not None:
                self.troubles.tell("another process", opened.other)
            last = "" if self.step is None else f", the last at step {self.step}"
            announce(f"{self.run_dir} is resumed: it holds {self._file.rows} rows{last}.")
        self._version += 1
        self._put(self._snapshot(), refuse=True)
        self._touch(self._beat)
        self._start_pulse()

    # What Lightning's own ExperimentWriter offers, under its names.

    @property
    def log_dir(self) -> str:
        """The run directory."""
        return str(self.run_dir)

    @property
    def metrics_file_path(self) -> str:
        """Where metrics.csv lies."""
        return str(self._file.path)

    @property
    def metrics(self) -> list[dict[str, object]]:
        """The rows that are not on disk yet."""
        return [{**dict(zip(row.names, row.values, strict=True)), "step": row.step} for row in self._buffer]

    @property
    def metrics_keys(self) -> list[str]:
        """The columns of metrics.csv, in their order."""
        return list(self._file.columns)

    @property
    def hparams(self) -> dict[str, Any]:
        """The hyperparameters logged so far, in this start and in those before."""
        return dict(self._hparams.nested)

    @property
    def rows(self) -> int:
        """How many rows were logged, in this start and in those before."""
        return self._file.rows + len(self._buffer)

    @whole
    def log_metrics(self, metrics_dict: Mapping[str, Any], step: Any = None) -> None:
        """Take one row; without a step it gets the last one + 1."""
        now = time.time()
        place = step_of(step, self.step, tell=self.troubles.tell)
        if self._file.time_column in metrics_dict:
            self._rename_time_column(metrics_dict)
        logged = taken(metrics_dict, place, self.stats)
        if logged.epoch is not None:
            self.epoch = logged.epoch
        self.step = place
        self._buffer.append(Row(logged.names, logged.cells, place, now))
        self._changed()
        if len(self._buffer) >= self.settings.flush_every and time.monotonic() >= self._retry_at:
            self._flush()

    @whole
    def log_hparams(self, params: object) -> None:
        """Add hyperparameters of any kind to those of the run, on disk at once."""
        try:
            for key, name in self._hparams.update(params):
                self.troubles.tell(
                    f"hparam {key}", f"Two hyperparameters are called {key!r}; one of them is kept as {name!r}."
                )
        except OSError as error:
            self._refused(error)
        self._changed()
        self._write_json()

    @whole
    def log_media(self, tag: str, kind: str, encode: Callable[[], Encoded], *, step: Any, caption: str | None) -> None:
        """Store one item. One that cannot be encoded or stored is warned about and counted."""
        try:
            place = (self.step or 0) if step is None else step_of(step, self.step, tell=self.troubles.tell)
            self.media.add(str(tag), place, kind, encode(), caption=caption, session=self.session)
        except Exception as error:  # noqa: BLE001 - an item that fails must not end a training
            self.media.failed += 1
            self.troubles.tell(
                f"media {tag}",
                f"{kind.capitalize()} {tag!r} at step {step} could not be stored: {type(error).__name__}: {error}",
            )
        self._changed()

    @whole
    def set_checkpoint(self, path: str) -> None:
        """Name the checkpoint that stands for the run, on disk at once."""
        self.checkpoint = path
        self._changed()
        self._write_json()

    @whole
    def save(self) -> None:
        """Bring the rows to disk, and the JSON files as far as they may cost time now."""
        now = time.monotonic()
        if self._version == self._written or now < self._retry_at:
            return
        self._flush()
        if self._budget.allows(now):
            self._write_json()

    @whole
    def finalize(self, status: str) -> None:
        """Bring everything to disk with `status` (completed, failed, interrupted). Rows may still follow.

        What the disk refuses is tried again by the thread, which ends when all is there.
        """
        self.status, self.ended_at = status, now_iso()
        self._changed()
        self._write_json()
        if self._version == self._written:
            self._stop()

    @whole
    def go_on(self) -> None:
        """Call a run that was finalized running again, on disk at once: another training begins in it. Else nothing happens."""
        if self.ended_at is not None or self.status != "running":
            self.status, self.ended_at = "running", None
            self._changed()
            self._touch(time.monotonic())
            self._write_json()

    @whole
    def release(self) -> None:
        """Bring everything to disk and let go of the directory: another start goes on with it, or the process ends."""
        if self._version != self._written:
            self._write_json()
        self._stop()
        self.released = True

    def usable(self) -> bool:
        """Whether this object still writes the directory (not after a release, and not in a forked child)."""
        return not self.released and self.pid == os.getpid()

    def tick(self) -> None:
        """What the thread does: a heartbeat while the run is running, and a state that nobody saved.

        The heartbeat waits for nobody: while a call of the training takes long (a large video), saving is left to a later tick.
        """
        now = time.monotonic()
        if now - self._beat >= HEARTBEAT_S - 1.0:
            self._touch(now)
        if now < self._retry_at or not self._lock.acquire(timeout=_PATIENCE_S):
            return
        try:
            if self._version == self._written:
                if self.ended_at is not None:
                    self._stop_pulse()  # a later log call starts another one
                return
            self._flush()
            state = self._snapshot()
        finally:
            self._lock.release()
        self._put(state)  # without the lock: the training does not wait for the disk

    def _rename_time_column(self, metrics: Mapping[str, Any]) -> None:
        """The user logs a metric of the time column's name: the column of times gets another one.

        The sidecar says so before the file does, and names both: in between readers find times under the old name.
        """
        old = self._file.time_column
        assert old is not None
        waiting = {name for row in self._buffer for name in row.names}
        self._file.rename_time_column(free_name(old, {*self._file.columns, *map(str, metrics), *self.stats, *waiting}))
        self._version += 1
        self._put(self._snapshot())

    def _changed(self) -> None:
        self._version += 1
        now = time.monotonic()
        if now - self._beat >= _BEAT_AT_LOG_S:
            self._touch(now)
        if self._pulse is None:
            self._start_pulse()

    def _start_pulse(self) -> None:
        self._pulse = Pulse(self, failed=self._thread_failed)

    def _touch(self, now: float) -> None:
        self._beat = now
        if self.status == "running":
            try:
                touch_heartbeat(self.run_dir)
            except OSError as error:
                self.troubles.tell("heartbeat", f"The heartbeat of {self.run_dir} cannot be touched: {error}")

    def _flush(self) -> None:
        try:
            self._file.append(self._buffer)
        except OSError as error:
            self._refused(error)

    def _write_json(self) -> None:
        """Rows, sidecar and summary to disk, now."""
        self._flush()
        self._put(self._snapshot())

    def _snapshot(self) -> _State:
        """The present state as the two files hold it."""
        now = now_iso()
        run = {
            "run_id": self.sidecar.data.get("run_id", self.settings.run_id),
            "run_dir": str(self.run_dir),
            "updated_at": now,
        }
        sidecar = {
            "schema_version": format_number(self.sidecar.data),
            **run,
            "status": self.status,
            "ended_at": self.ended_at,
            "hparams": self._hparams.flat,
            "summary": {name: stats.last for name, stats in self.stats.items()},
            "checkpoint_path": self.checkpoint,
        }
        if self._file.time_column is not None:
            sidecar["time_column"] = self._file.time_column
        if self._file.formerly is not None:
            sidecar["time_column_before"] = self._file.formerly
        metrics = {name: msgspec.structs.asdict(stats) for name, stats in self.stats.items()}
        rows = None if self._buffer else self._file.rows  # statistics that are ahead of the rows are no use to a resume
        summary = {
            "schema_version": format_number(self._summary),
            **run,
            "step": self.step,
            "epoch": self.epoch,
            "rows": rows,
            "metrics": metrics,
        }
        return _State(self._version, rows is not None, sidecar, {**self._summary, **summary})

    def _put(self, state: _State, *, refuse: bool = False) -> None:
        """Write the two files, if they do not hold a later state already."""
        began = time.monotonic()
        with self._json_lock:
            if state.version <= self._written:
                return
            try:
                self._file.sync()
                self.sidecar.write(state.sidecar)
                write_summary(self.run_dir, state.summary)
                if state.complete:
                    self._written = state.version
            except OSError as error:
                if refuse:
                    raise
                self._refused(error)
        self._budget.spend(time.monotonic() - began)

    def _refused(self, error: OSError) -> None:
        self._retry_at = time.monotonic() + _RETRY_S
        self.troubles.tell("disk", f"{self.run_dir} cannot be written: {error}. It is kept in memory and tried again.")

    def _thread_failed(self, error: BaseException) -> None:
        _log.warning("Saving %s failed: %s: %s", self.run_dir, type(error).__name__, error)

    def _stop(self) -> None:
        self._stop_pulse()
        self._file.close()

    def _stop_pulse(self) -> None:
        pulse, self._pulse = self._pulse, None
        if pulse is not None:
            pulse.stop()

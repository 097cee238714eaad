"""RunWriter: write one run directory from one process, which has one writer for each directory.

It is what `logger.experiment` returns, free of torch and lightning.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import functools
import os
import sys
import threading
import time
from multiprocessing import util
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar, cast

from logger.files import replace_file
from logger.heartbeat import BackgroundTimer, Beat, read_beat, restore_beat, touch_heartbeat
from logger.media import encode_image, encode_video, single_images
from logger.open_run import Settings, open_directory, unique_tags
from logger.other_loggers import SummaryWriterMethods, WarnOnce
from logger.row import Row, step_of, to_row
from logger.session import first_step, running_trainer, stage_of, status_of, was_pruned
from logger.sidecar import SCHEMA_VERSION, SUMMARY_NAME, Summary, encode_document

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from logger.media import Encoded

JSON_PAUSE = 5.0
"""Seconds between two writes of the JSON files by the thread: a file server has many trainings."""

_RETRY_AFTER = 5.0
"""After the disk refused something, saving waits this many seconds before it tries again."""

_LOCK_TIMEOUT = 0.5
"""The thread waits this many seconds for a call of the training to end."""

_MAX_WAITING_VALUES = 1_000_000
"""Values kept in memory while the disk refuses them, some 100 MB; further rows are dropped and counted."""

_Method = TypeVar("_Method", bound="Callable[..., None]")


def _one_at_a_time(method: _Method) -> _Method:
    """Let the calls of a RunWriter's methods run one after another, whatever threads and signal handlers do.

    Threads wait for each other. A signal handler interrupts a call of its own thread and cannot wait for it: its call
    is put off until that one is done.
    """

    @functools.wraps(method)
    def call(self: RunWriter, *args: Any, **kwargs: Any) -> None:
        # Only the lock knows for sure whether this thread holds it: a Ctrl-C could leave a flag of ours set.
        if self._lock._is_owned():  # type: ignore[attr-defined]
            self._put_off.append(functools.partial(method, self, *args, **kwargs))
            return
        with self._lock:
            try:
                if self.may_be_overtaken:
                    self._catch_up()
                method(self, *args, **kwargs)
            finally:
                while self._put_off:
                    self._put_off.pop(0)()

    return cast("_Method", call)


class _BeforeFit(NamedTuple):
    """The status, end and heartbeat of the run before a fit began. `fit` says whether this start was a fit already.

    `step` is the Trainer's `global_step` at which the fit began.
    """

    status: str | None
    ended_at: float | None
    fit: bool | None
    beat: Beat | None
    step: int | None


class _State(NamedTuple):
    """The content of the two JSON files."""

    version: int
    sidecar: dict[str, Any]
    summary: Summary


class RunWriter(SummaryWriterMethods):
    """Writes one run directory: rows, hyperparameters, media, status, a heartbeat. `RunWriter.open` makes one.

    Rows are on disk after `save`, after every `flush_every` of them, and within seconds in any case. A thread writes
    sidecar.json and summary.json, so that rows do not wait for them. Once the directory is open no method raises
    OSError: a disk that refuses is warned about and tried again.

    A start changes the run's status, end and heartbeat only if it is a *fit*: the first start of a directory is one,
    another becomes one with `begin_fit`, or with its first row outside of a Trainer's validate, test and predict.

    A child process may continue the start, as in Lightning's strategy `ddp_fork`. `may_be_overtaken` is set where one
    begins; if it wrote the run, the next call in this process goes on from what it left.
    """

    def __init__(self, settings: Settings, *, log_info: Callable[[str], None]) -> None:
        """Open the directory of `settings` and write its sidecar. Raises OSError if the disk refuses.

        Call `RunWriter.open` instead: it returns the writer that this process already has.
        """
        self.settings = settings
        self.run_dir = settings.run_dir
        self.pid = os.getpid()
        self.released = False
        self.dropped_rows = 0
        self.warn = WarnOnce()
        self.may_be_overtaken = False
        self._lock = threading.RLock()
        self._put_off: list[Callable[[], None]] = []
        self._json_lock = threading.Lock()
        self._version, self._written = 1, 0  # counts changes of the state, and which of them the JSON files hold
        self._retry_at = self._json_at = 0.0
        self._buffer: list[Row] = []
        self._waiting_values = 0
        self._error = ""
        self._open(log_info)
        self._warn_of_large_hparams()
        self._write_state(self._snapshot())
        self._beat()
        self._timer = self._new_timer()

    def _open(self, log_info: Callable[[str], None]) -> None:
        """Take over the state of the run from its directory. Raises OSError."""
        opened = open_directory(self.settings, warn=self.warn, log_info=log_info)
        self.media, self.session, self.stats, self.step = opened.media, opened.session, opened.stats, opened.step
        self._metrics_file, self._hparams, self._summary = opened.metrics, opened.hparams, opened.summary
        document = opened.sidecar.document
        self._entry = document.sessions[self.session]
        if opened.first:
            self._entry.fit, document.status, document.ended_at = True, "running", None
        self.status, self.ended_at, self.checkpoint = document.status, document.ended_at, document.checkpoint_path
        self._before_fit: _BeforeFit | None = None
        self._sidecar = opened.sidecar  # the last, so that a Ctrl-C lets `_catch_up` begin anew

    @classmethod
    def open(
        cls,
        run_dir: str | os.PathLike[str],
        run_id: str,
        *,
        tags: Iterable[str] | str | None = None,
        notes: str = "",
        display_name: str = "",
        **options: Any,
    ) -> RunWriter:
        """Open `run_dir` for a run called `run_id`, as RegistryLogger does, and return its writer.

        `options` are those of RegistryLogger too: `on_existing`, `time_column`, and `flush_every`. Raises OSError if
        the directory cannot be written, and FileExistsError if it holds a run and `on_existing` is "error".
        """
        return open_writer(Settings.make(run_dir, run_id, tags=tags, notes=notes, display_name=display_name, **options))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if os.getpid() != self.pid and os.getppid() == self.pid:
            return  # a forked child leaves the block; the run goes on in its parent
        self.finalize("success" if error is None else "failed")
        self.release()

    @property
    def log_dir(self) -> str:
        """Return the run directory."""
        return str(self.run_dir)

    @property
    def metrics_file_path(self) -> str:
        """Return the path of metrics.csv."""
        return str(self._metrics_file.path)

    @property
    def hparams(self) -> dict[str, Any]:
        """Return the hyperparameters that this start and earlier ones logged."""
        return dict(self._hparams.nested)

    @property
    def rows(self) -> int:
        """Return the number of rows that this start and earlier ones logged."""
        return self._metrics_file.rows + len(self._buffer)

    @property
    def is_fit(self) -> bool:
        """Return whether this start trains, which lets it change status, end and heartbeat."""
        return self._entry.fit is True

    @property
    def tags(self) -> list[str]:
        """Return the tags of the run, with people's edits on disk up to the last write."""
        return list(self._sidecar.document.tags)

    @tags.setter
    def tags(self, tags: Iterable[str]) -> None:
        self.edit(tags=unique_tags(tags))

    @property
    def notes(self) -> str:
        """Return the notes of the run, with people's edits on disk up to the last write."""
        return self._sidecar.document.notes

    @notes.setter
    def notes(self, notes: str) -> None:
        self.edit(notes=str(notes))

    @_one_at_a_time
    def log_metrics(self, metrics_dict: Mapping[str, Any], step: Any = None) -> None:
        """Add a row. Without `step`, its step is that of the last row plus 1."""
        now = time.time()
        if not self.is_fit and stage_of(running_trainer()) in (None, "fit"):
            self._begin_fit(None)
        if self._waiting_values >= _MAX_WAITING_VALUES:
            if time.monotonic() >= self._retry_at:
                self._flush()
            if self._buffer:
                self.dropped_rows += 1
                self._changed()
                return
        at_step = step_of(step, self.step, warn=self.warn)
        row = to_row(
            metrics_dict,
            at_step,
            now,
            stats=self.stats,
            time_column=self._metrics_file.time_column,
            warn=self.warn,
        )
        self.step = at_step
        self._buffer.append(row)
        self._waiting_values += len(row.names)
        self._changed()
        if self._timer is None:
            self.on_timer()  # no thread does it
        elif len(self._buffer) >= self.settings.flush_every and time.monotonic() >= self._retry_at:
            self._flush()

    @_one_at_a_time
    def log_hparams(self, params: object) -> None:
        """Add hyperparameters of any kind, on disk at once."""
        with self._retry_later():
            for key, name in self._hparams.update(params):
                self.warn(f"hparam {key}", f"Two hyperparameters are called {key!r}; one is kept as {name!r}.")
        self._warn_of_large_hparams()
        self._changed()
        self._write_json()

    log_hyperparams = log_hparams

    def log_image(
        self, key: str, images: Any, step: Any = None, caption: Sequence[str | None] | str | None = None
    ) -> None:
        """Store images of any kind under `key`. Without `step`, they get the step of the last row."""
        items = single_images(images)
        for item, text in zip(items, _for_each(caption, len(items)), strict=True):
            self.log_media(key, "image", functools.partial(encode_image, item), step=step, caption=text)

    def log_video(
        self,
        key: str,
        videos: Any,
        step: Any = None,
        caption: Sequence[str | None] | str | None = None,
        fps: Sequence[float] | float | None = None,
        format: Sequence[str] | str | None = None,  # noqa: A002 - WandbLogger's name
    ) -> None:
        """Store videos of any kind under `key`. Without `step`, they get the step of the last row."""
        items = list(videos) if isinstance(videos, list | tuple) else [videos]
        options = [_for_each(option, len(items)) for option in (caption, fps, format)]
        for item, text, rate, ending in zip(items, *options, strict=True):
            encode = functools.partial(encode_video, item, fps=rate, format=ending)
            self.log_media(key, "video", encode, step=step, caption=text)

    @_one_at_a_time
    def log_media(self, tag: str, kind: str, encode: Callable[[], Encoded], *, step: Any, caption: Any) -> None:
        """Store the image or video that `encode` returns. Warn if it cannot be encoded or stored."""
        try:
            at_step = (self.step or 0) if step is None else step_of(step, self.step, warn=self.warn)
            text = None if caption is None else str(caption)
            self.media.add(str(tag), at_step, kind, encode(), caption=text, session=self.session)
        except Exception as error:  # noqa: BLE001 - an item that fails must not end a training
            self.warn(
                f"media {tag}",
                f"{kind.capitalize()} {tag!r} at step {step} could not be stored: {type(error).__name__}: {error}",
            )
        self._changed()

    @_one_at_a_time
    def set_checkpoint(self, path: str) -> None:
        """Name the checkpoint that stands for the run, by its absolute path, on disk at once."""
        self.checkpoint = path if "://" in path else os.path.abspath(path)  # noqa: PTH100 - links stay as they are
        self._changed()
        self._write_json()

    @_one_at_a_time
    def edit(self, **fields: Any) -> None:
        """Set tags, notes, display_name or archived, on disk at once."""
        with self._json_lock, self._retry_later():
            self._sidecar.write(fields)
        self._changed()

    @_one_at_a_time
    def save(self) -> None:
        """Bring the rows to disk; the thread writes the JSON files within seconds."""
        if self._buffer and time.monotonic() >= self._retry_at:
            self._flush()

    def finalize(self, status: str) -> None:
        """Bring everything to disk and, in a fit, end the run with `status`.

        `status` is a word of Lightning's (success, failed, ...), or completed, failed or interrupted. Rows may still
        follow; they do not change it. What the disk refuses is tried again by the thread.
        """
        # Here, and not under the lock: the exception in flight and the Trainer on the stack are those of the caller.
        if self.is_fit and was_pruned(sys.exc_info()[1]):
            self.tags = [*self.tags, "pruned"]
        self._finalize(status_of(status), running_trainer())

    @_one_at_a_time
    def _finalize(self, status: str, trainer: Any | None) -> None:
        evaluates = stage_of(trainer) not in (None, "fit")
        before = self._before_fit
        if before is not None and trainer is not None and not evaluates and trainer.global_step == before.step:
            self._abandon_fit(before)
            return
        if self.is_fit and (self.status == "running" or not evaluates):
            self.status, self.ended_at, self._before_fit = status, _now(), None
        self._changed()
        self._write_json()
        self._warn_of_unwritten_rows()
        if self._version == self._written:
            self._stop()

    @_one_at_a_time
    def begin_fit(self, trainer: Any) -> None:
        """Show the run as running from now on, on disk at once: `trainer` begins to train in it.

        If it ends before its first training step, `finalize` puts status, end and heartbeat back.
        """
        if not self.is_fit or self.status != "running":
            self._begin_fit(first_step(trainer))

    def _begin_fit(self, step: int | None) -> None:
        beat = read_beat(self.run_dir)
        self._before_fit = _BeforeFit(self.status, self.ended_at, self._entry.fit, beat, step)
        self._entry.fit = True
        self.status, self.ended_at = "running", None
        self._changed()
        self._beat()
        self._write_json()

    def _abandon_fit(self, before: _BeforeFit) -> None:
        self._before_fit = None
        self.status, self.ended_at, self._entry.fit = before.status, before.ended_at, before.fit
        self._changed()
        self._write_json()
        with self._retry_later():
            restore_beat(self.run_dir, before.beat)

    @_one_at_a_time
    def release(self) -> None:
        """Bring everything to disk and write nothing more: another start continues the run, or the process ends."""
        if self._version != self._written:
            self._write_json()
        self._warn_of_unwritten_rows()
        self._stop()
        self.released = True

    def usable(self) -> bool:
        """Return whether this object still writes the directory: not after `release`, and not in a forked child."""
        return not self.released and self.pid == os.getpid()

    def on_timer(self) -> None:
        """Beat while the run is running, and save what is not on disk.

        The heartbeat needs no lock. If a call of the training holds the lock for long (a large video), a later tick
        saves.
        """
        self._beat()
        if time.monotonic() < self._retry_at or not self._lock.acquire(timeout=_LOCK_TIMEOUT):
            return
        try:
            if self._version == self._written:
                if self.status != "running" or not self.is_fit:
                    self._stop_timer()  # a later log call starts another one
                return
            self._flush()
            if time.monotonic() < self._json_at:
                return
            if self.may_be_overtaken and self._sidecar.is_overtaken(self.settings.token):
                return  # the child writes them
            state = self._snapshot()
        finally:
            self._lock.release()
        with self._retry_later():
            self._write_state(state)  # without the lock: the training does not wait for the disk

    def _catch_up(self) -> None:
        """Bring the rows to disk and read the run again, if a child wrote it meanwhile."""
        if self._sidecar.is_overtaken(self.settings.token):
            rows = len(self._buffer)
            self._flush()
            if self._buffer:
                return  # the disk refuses them; the next call tries again
            with self._json_lock, self._retry_later():
                self._metrics_file.close()
                self._open(lambda _: None)
                self._written = self._version
                self._version += rows > 0
        self.may_be_overtaken = False

    def _changed(self) -> None:
        self._version += 1
        if self._timer is None or not self._timer.is_alive():  # a program may fork itself into the background
            self._timer = self._new_timer()

    def _new_timer(self) -> BackgroundTimer | None:
        try:
            return BackgroundTimer(self)
        except RuntimeError as error:  # a limit of processes, or the end of this one from Python 3.12 on
            self.warn("thread", f"{self.run_dir} is written by log calls, since no thread can be started: {error}")
            return None

    def _beat(self) -> None:
        if self.is_fit and self.status == "running":
            try:
                touch_heartbeat(self.run_dir)
            except OSError as error:
                self.warn("heartbeat", f"The heartbeat of {self.run_dir} cannot be written: {error}")

    def _flush(self) -> None:
        with self._retry_later():
            self._metrics_file.append(self._buffer)
        if not self._buffer:
            self._waiting_values = 0

    def _write_json(self) -> None:
        """Bring rows, sidecar and summary to disk now."""
        self._flush()
        with self._retry_later():
            self._write_state(self._snapshot())

    def _snapshot(self) -> _State:
        """Return the present state as the two files are to hold it."""
        now = _now()
        epoch, version = self.stats.get("epoch"), self._summary.get("schema_version")
        sidecar = {
            "run_dir": str(self.run_dir),
            "status": self.status,
            "ended_at": self.ended_at,
            "updated_at": now,
            "hparams": self._hparams.flat,
            "summary": {name: stats.last for name, stats in self.stats.items()},
            "checkpoint_path": self.checkpoint,
        }
        summary = Summary(
            schema_version=version if type(version) is int and version > SCHEMA_VERSION else SCHEMA_VERSION,
            run_id=self._sidecar.document.run_id,
            run_dir=str(self.run_dir),
            updated_at=now,
            step=self.step,
            epoch=None if epoch is None else epoch.last,
            # While the disk refuses rows the statistics are ahead of them, and no use to a resume.
            rows=None if self._buffer else self._metrics_file.rows,
            metrics={name: copy.copy(stats) for name, stats in self.stats.items()},
        )
        return _State(self._version, sidecar, summary)

    def _write_state(self, state: _State) -> None:
        """Write the two files, unless they hold a later state already. Raises OSError."""
        with self._json_lock:
            if state.version > self._written:
                self._json_at = time.monotonic() + JSON_PAUSE
                self._metrics_file.sync()
                self._sidecar.write(state.sidecar)
                replace_file(self.run_dir / SUMMARY_NAME, encode_document(state.summary, self._summary))
                if state.summary.rows is not None:
                    self._written = state.version

    @contextlib.contextmanager
    def _retry_later(self) -> Iterator[None]:
        """Warn if the disk refuses what the block does, instead of raising OSError."""
        try:
            yield
        except OSError as error:
            self._error = str(error)
            self._retry_at = time.monotonic() + _RETRY_AFTER
            self.warn("disk", f"{self.run_dir} cannot be written: {error}. It is kept in memory and tried again.")

    def _warn_of_unwritten_rows(self) -> None:
        missing = len(self._buffer) + self.dropped_rows
        if missing:
            what = "1 row" if missing == 1 else f"{missing:,} rows"
            self.warn("unwritten rows", f"{what} of {self.run_dir} could not be written: {self._error}")

    def _warn_of_large_hparams(self) -> None:
        names = self._hparams.left_out
        if names:
            some = ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10:,} more" if len(names) > 10 else "")
            self.warn(
                f"large hparams {some}",
                f"The sidecar would be too large, so only {self._hparams.path} holds the hyperparameters {some}.",
            )

    def _stop(self) -> None:
        self._stop_timer()
        self._metrics_file.close()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.stop()


class _Writers:
    """The writers of this process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.by_directory: dict[Path, RunWriter] = {}


_writers = _Writers()


def open_writer(settings: Settings, *, log_info: Callable[[str], None] = lambda _: None) -> RunWriter:
    """Return this process's writer of `settings.run_dir`. Raises OSError if the directory cannot be written.

    One start of a run has one writer, however many copies of its logger there are. Another start takes the directory
    over, after the rows of the earlier one are on disk. `log_info` is called with a sentence if a run is resumed.
    """
    with _writers.lock:
        writer = _writers.by_directory.get(settings.run_dir)
        if writer is not None and writer.usable():
            if writer.settings.token == settings.token:
                return writer
            writer.release()
        if not _writers.by_directory:  # the first of this process
            atexit.register(_release_all)
            # The children of multiprocessing end without atexit.
            util.Finalize(None, _release_all, exitpriority=100)
        writer = _writers.by_directory[settings.run_dir] = RunWriter(settings, log_info=log_info)
        return writer


def _release_all() -> None:
    with _writers.lock:
        for writer in _writers.by_directory.values():
            if writer.usable():
                writer.release()


def _forget_writers() -> None:
    """Forget the writers in a forked child: they, their threads and their rows belong to the parent."""
    _writers.__init__()  # type: ignore[misc]


def _expect_children() -> None:
    """Let each writer look, at its next use, whether a forked child wrote its run. Most children load data."""
    for writer in list(_writers.by_directory.values()):
        writer.may_be_overtaken = True


os.register_at_fork(after_in_parent=_expect_children, after_in_child=_forget_writers)


def _now() -> float:
    return round(time.time(), 6)


def _for_each(option: Any, count: int) -> list[Any]:
    """Return one value for each of `count` items: the entries of a list, then None; or the one value for all."""
    if isinstance(option, list | tuple):
        return [*option[:count], *[None] * (count - len(option))]
    return [option] * count

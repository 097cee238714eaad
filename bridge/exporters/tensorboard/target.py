"""Write one run's folder: append to it, or replace it by a complete new one.

Data come first, flushed to the disk, then the state that acknowledges them, then old files are removed. Small runs do
so together (`Batch`): a flush takes the disk ten milliseconds, however much there is to flush. A process killed in
between leaves files that the next export finishes or removes. The scalars' file is a function of the run directory
alone: whatever exports there were, it holds the bytes that one clean export would write.

A watching TensorBoard follows a growing file, but does not notice one that is replaced under its old name. So appends
are appends, and everything else gets a new generation in its name.
"""

from __future__ import annotations

import contextlib
import functools
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from msgspec.structs import replace

from bridge.errors import RebuildNeededError, TargetRefusedError, TargetUnavailableError
from bridge.exporters.contract import Applied
from bridge.exporters.tensorboard.events import encode_block, version_record
from bridge.exporters.tensorboard.facts import (
    fact_notices,
    facts_file,
    metric_notices,
    metric_tags,
    sent_digests,
    shown_facts,
    suffix_notices,
    unsupported_params,
)
from bridge.exporters.tensorboard.media import encode_media, ordered_records
from bridge.exporters.tensorboard.state import (
    MARKER_NAME,
    STATE_NAME,
    EventFile,
    FolderState,
    encode_marker,
    encode_state,
    find_damage,
    flush_files,
    folder_owner,
    leftover_files,
    os_errors,
    parse_event_file_name,
    read_state,
    write_all,
)
from bridge.locks import open_locked, unlock
from bridge.model import DeltaKind, Notice, NoticeKind
from logger.files import keep_access, replace_file

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from bridge.exporters.contract import TargetContent
    from bridge.exporters.tensorboard.facts import ShownFacts
    from bridge.exporters.tensorboard.state import FileRecord
    from bridge.model import Block, Cursor, Delta, Run
    from bridge.options import ContentOptions

_NEW_STATE = f".{STATE_NAME}.new"
_NO_LOCKS = "two exports at once would not notice each other"
_LARGEST = (2 - 2**-24) * 2.0**127
"""From here on a float64 rounds to an infinite float32."""

_STEP_LIMIT = 2**31
"""The HPARAMS page fails for all runs if a step does not fit into 32 bits."""


class Batch:
    """The writes of several targets, which share the flushes to the disk: first all data, then all states.

    While it is open, a write waits until `commit`; else it is acknowledged at once.
    """

    def __init__(self) -> None:
        self._writers: dict[str, FolderWriter] = {}
        self._is_open = False

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Keep writes waiting while the block runs, then acknowledge them. Raise TargetError."""
        self._is_open = True
        try:
            yield
        finally:
            self._is_open = False
            self.commit()

    def add(self, writer: FolderWriter) -> None:
        """Take over a finished write with the lock of its folder. Raise TargetError."""
        self._writers[writer.folder] = writer
        if not self._is_open:
            self.commit()

    def commit_folder(self, folder: str) -> None:
        """Call `commit` if a write into `folder` waits: it holds the folder's lock. Raise TargetError."""
        if folder in self._writers:
            self.commit()

    def commit(self) -> None:
        """Write the states of the writes that wait. Raise TargetError after undoing what was not acknowledged."""
        writers = list(self._writers.values())
        self._writers.clear()
        if not writers:
            return
        try:
            with os_errors(writers[0].folder):
                flush_files([path for writer in writers for path in writer.written])
                flush_files([writer.write_state() for writer in writers])
                for writer in writers:
                    writer.acknowledge()
        except BaseException:
            for writer in writers:
                writer.abandon()
            raise
        finally:
            for writer in writers:
                unlock(writer.lock)


class _LockedFolder(msgspec.Struct):
    """A locked folder: its state, its damage as `find_damage` says it, the names in it, notes for the report.

    `lock` is a descriptor. If it is None, the lock does not end with `_locked`.
    """

    lock: int | None
    state: FolderState | None = None
    damage: str = ""
    names: Sequence[str] = ()
    notes: tuple[str, ...] = ()


class TensorBoardTarget:
    """The folder of one run: `group` below `logdir`. `lock_wait` is in seconds.

    The folder is created by `apply` or `rebuild`. What they write is acknowledged by `batch`.
    """

    def __init__(
        self, logdir: str, group: str, run: Run, content: ContentOptions, *, lock_wait: float, batch: Batch
    ) -> None:
        self._logdir = logdir
        self._folder = f"{logdir}/{group}"
        self._run = run
        self._content = content
        self._group = group
        self._lock_wait = lock_wait
        self._batch = batch
        self._files: Mapping[str, FileRecord] | None = None

    def apply(self, delta: Delta) -> Applied:
        """Append `delta` durably, then write the state. A delta of kind NEW replaces whatever there was.

        Do nothing if the folder already covers `delta`. Raise RebuildNeededError if the folder is damaged,
        TargetUnavailableError if another export moved its cursor.
        """
        with self._locked() as held:
            state = held.state
            if state is not None and not held.damage and _covers(state.cursor, delta):
                self._files = state.files
                return Applied(notes=held.notes)
            if delta.kind is DeltaKind.NEW:
                return self._write((delta,), held, fresh=True)
            if state is None or held.damage:
                raise RebuildNeededError(f"{self._folder}: {held.damage or 'it is empty'}")
            # The parts of a full read have no `before`: each follows what this target wrote or found last.
            follows = (
                state.files == self._files
                if delta.before is None
                else _position(state.cursor) == _position(delta.before)
            )
            if not follows:
                raise self._overtaken()
            if delta.remember is not None and state.cursor is not None:
                remembered = replace(state, cursor=delta.remember.with_(sent=state.cursor.sent))
                replace_file(f"{self._folder}/{STATE_NAME}", encode_state(remembered))
            return self._write((delta,), held, fresh=False)

    def rebuild(self, deltas: Iterable[Delta]) -> Applied:
        """Write new event files beside the old ones, then the state, then remove the old ones."""
        with self._locked() as held:
            return self._write(deltas, held, fresh=True)

    def read(self, *, only: Collection[str] | None = None) -> TargetContent:
        """Return what TensorBoard's own reader finds. Raise TargetError if a file is damaged or missing."""
        from bridge.exporters.tensorboard.readback import read_content

        return read_content(Path(self._folder), self._run, only=only)

    def where(self) -> str:
        """Return the folder's path."""
        return self._folder

    def _write(self, deltas: Iterable[Delta], held: _LockedFolder, *, fresh: bool) -> Applied:
        """Append `deltas`, or with `fresh` write everything again. If the old files are damaged, a note says how."""
        done = Applied(notes=held.notes)
        if held.damage:
            done += Applied(notes=(f"{self._folder}: rebuilt, because {held.damage}",))
        writer = FolderWriter(self._folder, held, self._run, self._content, group=self._group, fresh=fresh)
        try:
            for delta in deltas:
                done += writer.add(delta)
            done += writer.finish()
        except BaseException:
            writer.abandon()
            raise
        self._files = writer.state.files
        assert held.lock is not None
        writer.lock, held.lock = held.lock, None
        self._batch.add(writer)
        return done

    @contextlib.contextmanager
    def _locked(self) -> Iterator[_LockedFolder]:
        """Create and lock the folder, and make sure that it belongs to this run.

        Yield what the folder holds. The lock ends with the block, unless somebody took it over.
        """
        self._batch.commit_folder(self._folder)
        if f"{_real_path(self._logdir)}/{self._group}/".startswith(f"{self._run.path}/"):
            raise TargetRefusedError(
                f"The event files would go into the run directory itself: {self._folder}.",
                hint="Choose a --logdir outside the run directories.",
            )
        with os_errors(self._folder):
            is_new = _make_folder(self._folder)
            try:
                lock, is_held = open_locked(f"{self._folder}/{MARKER_NAME}", wait=self._lock_wait)
            except TimeoutError:
                raise TargetUnavailableError(
                    f"{self._folder} is being written by another export.",
                    hint="Wait until it is done and run this one again.",
                ) from None
            held = _LockedFolder(lock)
            try:
                if not is_held:
                    held.notes = (f"{self._folder}: this file system has no locks; {_NO_LOCKS}",)
                has_marker = bool(os.fstat(lock).st_size)
                if has_marker or not is_new:  # else nobody has written into it yet
                    held.names = os.listdir(self._folder)  # noqa: PTH208 - names only
                state = read_state(self._folder) if STATE_NAME in held.names else None
                owner = state.identity if state else folder_owner(self._folder) if held.names else None
                if owner not in (None, self._run.identity):
                    raise self._overtaken()
                if owner is None or not has_marker:
                    if has_marker:
                        os.truncate(lock, 0)
                    os.write(lock, encode_marker(self._run.identity))
                held.state, held.damage = state, find_damage(self._folder, state, held.names)
                yield held
            finally:
                if held.lock is not None:
                    unlock(held.lock)

    def _overtaken(self) -> TargetUnavailableError:
        return TargetUnavailableError(
            f"{self._folder} was changed by someone else while it was being exported.", hint="Run the export again."
        )


def _make_folder(folder: str) -> bool:
    """Create `folder` if needed, and the folders above it. Return whether it was missing."""
    try:
        os.mkdir(folder)  # noqa: PTH102 - called for thousands of folders
    except FileExistsError:
        return False
    except FileNotFoundError:
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103
    return True


def _covers(held: Cursor | None, delta: Delta) -> bool:
    """Return whether the target holds what `delta` brings, from an earlier call or from another export."""
    after = delta.after
    if held is None or not held.complete or not after.complete:
        return False
    if _position(held) == _position(after):
        return delta.kind is not DeltaKind.SAME
    return (
        held.rows >= after.rows and held.media_lines >= after.media_lines and dict(held.content) == dict(after.content)
    )


def _position(cursor: Cursor | None) -> object:
    """Return what is equal for cursors that cover the same rows and media lines."""
    if cursor is None:
        return None
    return (cursor.complete, cursor.rows, cursor.digest, cursor.media_lines, cursor.media_digest, dict(cursor.content))


class FolderWriter:
    """Writes deltas into a run's folder: `add` each, then `finish`; or `abandon` after an error.

    `held` says what the folder holds. With `fresh` everything is written into new files; the old ones stay until
    `acknowledge`. After `finish`, the folder stays locked: the caller makes the files `written` durable, calls
    `write_state`, makes that durable, and calls `acknowledge`.
    """

    def __init__(
        self, folder: str, held: _LockedFolder, run: Run, content: ContentOptions, *, group: str, fresh: bool
    ) -> None:
        self.folder = folder
        self.lock = -1
        self.written: list[str] = []
        old = held.state or FolderState(run.identity)
        self.state = FolderState(run.identity, generations=old.generations) if fresh else old
        for name in held.names:  # no name is used twice
            if (parsed := parse_event_file_name(name)) is not None:
                kind, generation = parsed
                self.state.generations[kind] = max(generation, self.state.generations.get(kind, -1))
        self._held = held
        self._group = group
        self._content = content
        self._run = run
        self._open_files: dict[str, EventFile] = {}
        self._tag_of: dict[str, str] = {}
        self._old_media = frozenset(self.state.media_steps)
        self._is_unordered = False
        self._bytes = 0

    def add(self, delta: Delta) -> Applied:
        """Write the points and pictures of `delta`, without acknowledging them."""
        state, self._run = self.state, delta.run
        notices = self._choose_tags(delta)
        for block in delta.blocks:
            notices += _overflow_notices(block)
            state.fits_hparams = state.fits_hparams and _fits_hparams(block)
            for records in encode_block(block, [self._tag_of[name].encode() for name in block.names]):
                self._write("scalars", records.data)
        shown = 0
        metrics = set(self._tag_of.values()) if delta.media else set()
        for event in delta.media:
            items, lost = encode_media(event, metrics)
            notices += lost
            shown += bool(items)
            if not items:
                state.unsupported.add(f"media.{event.tag}")
            for item in items:
                last = state.media_steps.get(item.tag, item.step - 1)
                self._is_unordered = self._is_unordered or item.step <= last
                state.media_steps[item.tag] = max(last, item.step)
                self._write("media", item.data)
        state.cursor = delta.after
        return Applied(points=delta.points, media=shown, notices=tuple(notices))

    def finish(self) -> Applied:
        """Write the run's facts, and complete the state that acknowledges everything that was added."""
        state = self.state
        assert state.cursor is not None
        if self._is_unordered:
            self._order_media()
        for kind in set(state.files) - set(self._open_files) - {"facts"}:
            if self._has_leftovers(kind):
                self._open_files[kind] = self._open(kind)
        for kind, file in self._open_files.items():
            self._finish_file(kind, file)
        facts = shown_facts(self._run.notes, self._run.params, self._run.tags, self._content)
        notices = suffix_notices(state.media_steps.keys() - self._old_media) + self._write_facts(facts)
        others = {item for item in state.unsupported if not item.startswith("params")}
        state.unsupported = others | unsupported_params(facts)
        state.cursor = state.cursor.with_(sent=sent_digests(self._run, facts, group=self._group))
        return Applied(bytes=self._bytes, notices=tuple(notices))

    def write_state(self) -> str:
        """Write the new state beside the old one, and return the path of its file."""
        path = f"{self.folder}/{_NEW_STATE}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            if STATE_NAME in self._held.names:
                keep_access(Path(self.folder, STATE_NAME), descriptor)
            write_all(descriptor, encode_state(self.state))
        finally:
            os.close(descriptor)
        return path

    def acknowledge(self) -> None:
        """Replace the old state by the new one, then remove the files that only the old one names."""
        os.replace(f"{self.folder}/{_NEW_STATE}", f"{self.folder}/{STATE_NAME}")  # noqa: PTH105
        self._open_files.clear()  # acknowledged: they stay, whatever fails from here on
        # The renames are not flushed one by one: if a power cut takes one back, the next export notices and repeats it.
        for name in leftover_files(self.folder, self.state, self._held.names):
            with contextlib.suppress(FileNotFoundError):  # this write took over what a killed one left
                os.unlink(f"{self.folder}/{name}")  # noqa: PTH108

    def abandon(self) -> None:
        """Restore the folder as far as the disk allows. What was acknowledged stays."""
        for file in self._open_files.values():
            file.abandon()
        if self._open_files:
            with contextlib.suppress(OSError):
                os.unlink(f"{self.folder}/{_NEW_STATE}")  # noqa: PTH108

    def _choose_tags(self, delta: Delta) -> list[Notice]:
        """Give the metrics of `delta` their tags. Return a notice for each new tag that is not the expected one."""
        renamed, rename = self.state.renamed, self._content.rename
        tags = metric_tags(delta.metrics, rename, tuple(renamed.items()))
        # A metric may take a tag that an image or a caption in the media file has.
        self._is_unordered = self._is_unordered or not self.state.media_steps.keys().isdisjoint(tags.values())
        seen = self._tag_of.keys() | renamed.values()
        new = {name: tag for name, tag in tags.items() if name not in seen}
        self._tag_of |= tags
        renamed |= {tag: name for name, tag in new.items() if tag != name}
        return metric_notices(new, dict(rename))

    def _write(self, kind: str, data: bytes | memoryview[int]) -> None:
        if kind not in self._open_files:
            self._open_files[kind] = self._open(kind)
        self._open_files[kind].write(data)
        self._bytes += len(data)

    def _open(self, kind: str) -> EventFile:
        """Open the event file of `kind` for appending, or a new one if there is none that can be continued."""
        record = self.state.files.get(kind)
        if record is not None and not self._has_leftovers(kind):
            return EventFile(self.folder, kind, self.state.generations[kind], after=record)
        file = self._create(kind)
        try:
            if record is None:
                file.write(version_record(self._run.start))
            else:
                # A watching TensorBoard may have read what a killed export wrote beyond the record.
                file.copy(f"{self.folder}/{record.name}", record.length)
        except BaseException:
            file.abandon()
            raise
        return file

    def _create(self, kind: str) -> EventFile:
        generation = self.state.generations[kind] = self.state.generations.get(kind, -1) + 1
        return EventFile(self.folder, kind, generation)

    def _finish_file(self, kind: str, file: EventFile) -> None:
        self.state.files[kind] = file.finish()
        self.written.append(file.path)

    def _has_leftovers(self, kind: str) -> bool:
        record = self.state.files[kind]
        return os.stat(f"{self.folder}/{record.name}").st_size > record.length  # noqa: PTH116

    def _order_media(self) -> None:
        """Replace the media file by a new one with its records in order."""
        old = self._open_files.get("media") or self._open("media")
        new = self._create("media")
        try:
            first = version_record(self._run.start)
            new.write(first)
            self.state.media_steps.clear()
            with old.content() as (content, end):
                for record in ordered_records(content, len(first), end, set(self._tag_of.values())):
                    self.state.media_steps[record.tag] = record.step
                    new.write(record.data)
                    self._bytes += len(record.data)
        except BaseException:
            new.abandon()
            raise
        old.abandon()
        self._open_files["media"] = new

    def _write_facts(self, facts: ShownFacts) -> list[Notice]:
        """Replace the facts' file if they changed. Return the notices of what could not be carried over."""
        metrics, fits_hparams = set(self._tag_of.values()), self.state.fits_hparams
        data = facts_file(self._run, facts, group=self._group, metrics=metrics, fits_hparams=fits_hparams)
        old = self.state.files.get("facts")
        same = old is not None and (old.length, old.checksum) == (len(data), zlib.crc32(data))
        if same and not self._has_leftovers("facts"):
            return []
        file = self._open_files["facts"] = self._create("facts")
        file.write(data)
        self._finish_file("facts", file)
        self._bytes += len(data)
        return fact_notices(self._run, facts, metrics=metrics, fits_hparams=fits_hparams)


@functools.lru_cache(maxsize=64)
def _real_path(folder: str) -> str:
    return os.path.realpath(folder)


def _overflow_notices(block: Block) -> list[Notice]:
    """Return a notice for each metric of `block` with finite values beyond float32."""
    large = np.abs(block.values) >= _LARGEST
    if not large.any():
        return []
    counts = (large & np.isfinite(block.values) & block.present).sum(axis=1)
    return [
        Notice(NoticeKind.CLIPPED, block.names[index], "beyond 32 bits, stored as infinite", int(counts[index]))
        for index in np.flatnonzero(counts)
    ]


def _fits_hparams(block: Block) -> bool:
    return not len(block.step) or bool(block.step.min() >= -_STEP_LIMIT and block.step.max() < _STEP_LIMIT)

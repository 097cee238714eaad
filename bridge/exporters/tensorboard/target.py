"""Write one run's folder: append to it, or replace it by a complete new one.

Data come first, then the state that acknowledges them, then old files are removed. A process killed in between leaves
files that the next export finishes or removes. A power cut may leave the newest files short or empty. Then a length or
the state's digest is wrong, and the next export writes the run again. What could be damaged without such a trace is on
the disk before the state is written (`EventFile.finish`). The scalars' file is a function of the run directory alone:
whatever exports there were, it holds the bytes that one clean export would write.

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
from bridge.exporters.tensorboard.media import encode_media
from bridge.exporters.tensorboard.state import (
    STATE_NAME,
    EventFile,
    FolderState,
    encode_marker,
    event_file_name,
    find_damage,
    folder_owner,
    leftover_files,
    os_errors,
    parse_event_file_name,
    read_state,
    write_state,
)
from bridge.files import TARGET_MARK
from bridge.locks import file_lock
from bridge.model import DeltaKind, Notice, NoticeKind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from bridge.exporters.contract import TargetContent
    from bridge.exporters.tensorboard.state import FileRecord
    from bridge.model import Block, Cursor, Delta, Run
    from bridge.options import ContentOptions

_NO_LOCKS = "two exports at once would not notice each other"
_LARGEST = (2 - 2**-24) * 2.0**127
"""From here on a float64 rounds to an infinite float32."""

_STEP_LIMIT = 2**31
"""The HPARAMS page fails for all runs if a step does not fit into 32 bits."""


class _LockedFolder(msgspec.Struct):
    """A locked folder: its state, its damage as `find_damage` says it, the names in it, notes for the report."""

    state: FolderState | None = None
    damage: str = ""
    names: Sequence[str] = ()
    notes: tuple[str, ...] = ()


class TensorBoardTarget:
    """The folder of one run: `group` below `logdir`. `lock_wait` is in seconds.

    The folder is created by `apply` or `rebuild`.
    """

    def __init__(self, logdir: str, group: str, run: Run, content: ContentOptions, *, lock_wait: float) -> None:
        self._logdir = logdir
        self._folder = f"{logdir}/{group}"
        self._run = run
        self._content = content
        self._group = group
        self._lock_wait = lock_wait
        self._files: Mapping[str, FileRecord] | None = None

    def apply(self, delta: Delta) -> Applied:
        """Append `delta`, then write the state. A delta of kind NEW replaces whatever there was.

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
                write_state(self._folder, remembered)
            return self._write((delta,), held, fresh=False)

    def rebuild(self, deltas: Iterable[Delta]) -> Applied:
        """Write new event files beside the old ones, then the state, then remove the old ones."""
        with self._locked() as held:
            return self._write(deltas, held, fresh=True)

    def read(self, *, only: Collection[str] | None = None) -> TargetContent:
        """Return what the event files hold, as TensorBoard decodes it. Raise TargetError if one is damaged or gone."""
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
        return done

    @contextlib.contextmanager
    def _locked(self) -> Iterator[_LockedFolder]:
        """Create and lock the folder, make sure that it belongs to this run, and yield what it holds."""
        if f"{_real_path(self._logdir)}/{self._group}/".startswith(f"{self._run.path}/"):
            raise TargetRefusedError(
                f"The event files would go into the run directory itself: {self._folder}.",
                hint="Choose a --logdir outside the run directories.",
            )
        marker = f"{self._folder}/{TARGET_MARK}"
        with os_errors(self._folder), contextlib.ExitStack() as stack:
            is_new = _make_folder(self._folder)
            try:
                is_locked = stack.enter_context(file_lock(marker, wait=self._lock_wait))
            except TimeoutError:
                raise TargetUnavailableError(
                    f"{self._folder} is being written by another export.",
                    hint="Wait until it is done and run this one again.",
                ) from None
            held = _LockedFolder()
            if not is_locked:
                held.notes = (f"{self._folder}: this file system has no locks; {_NO_LOCKS}",)
            has_marker = bool(os.stat(marker).st_size)  # noqa: PTH116
            if has_marker or not is_new:  # else nobody has written into it yet
                held.names = os.listdir(self._folder)  # noqa: PTH208 - names only
            held.state = read_state(self._folder) if STATE_NAME in held.names else None
            owner = held.state.identity if held.state else folder_owner(self._folder) if held.names else None
            if owner not in (None, self._run.identity):
                raise self._overtaken()
            if owner is None or not has_marker:
                with open(marker, "wb", buffering=0) as file:  # noqa: PTH123 - called for thousands of folders
                    file.write(encode_marker(self._run.identity))
            held.damage = find_damage(self._folder, held.state, held.names)
            yield held

    def _overtaken(self) -> TargetUnavailableError:
        return TargetUnavailableError(
            f"{self._folder} was changed by someone else while it was being exported.", hint="Export again."
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

    `held` says what the folder holds. With `fresh` everything is written into new files; `finish` removes the old ones.
    """

    def __init__(
        self, folder: str, held: _LockedFolder, run: Run, content: ContentOptions, *, group: str, fresh: bool
    ) -> None:
        self._folder = folder
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
        self._bytes = 0

    def add(self, delta: Delta) -> Applied:
        """Write the points and pictures of `delta`, without acknowledging them.

        Raise RebuildNeededError if the steps of a tag's pictures would not increase, or if a metric takes such a tag.
        """
        state, self._run = self.state, delta.run
        notices = self._choose_tags(delta)
        for block in delta.blocks:
            notices += _overflow_notices(block)
            state.fits_hparams = state.fits_hparams and _fits_hparams(block)
            for records in encode_block(block, [self._tag_of[name].encode() for name in block.names]):
                self._write("scalars", records.data)
        shown = 0
        metrics = set(self._tag_of.values()) if delta.media else set()
        for event in sorted(delta.media, key=lambda event: event.step):
            encoded, lost = encode_media(event, metrics)
            notices += lost
            shown += bool(encoded)
            if not encoded:
                state.unsupported.add(f"media.{event.tag}")
            for tag, data in encoded.items():
                last = state.media_steps.get(tag)
                if last is not None and last >= event.step:
                    raise RebuildNeededError(f"{event.where}: {event.tag} at step {event.step} comes after step {last}")
                state.media_steps[tag] = event.step
                self._write("media", data)
        state.cursor = delta.after
        return Applied(points=delta.points, media=shown, notices=tuple(notices))

    def finish(self) -> Applied:
        """Write the run's facts and the state that acknowledges everything. Remove the files that it does not name."""
        state = self.state
        assert state.cursor is not None
        for kind in set(state.files) - set(self._open_files) - {"facts"}:
            if self._has_leftovers(kind):
                self._open(kind)
        for kind, file in self._open_files.items():
            state.files[kind] = file.finish()
        shown = shown_facts(self._run, self._content)
        notices = suffix_notices(state.media_steps.keys() - self._old_media) + self._write_facts(shown)
        others = {item for item in state.unsupported if not item.startswith("params")}
        state.unsupported = others | unsupported_params(shown)
        state.cursor = state.cursor.with_(sent=sent_digests(shown, group=self._group))
        write_state(self._folder, state)
        self._open_files.clear()  # acknowledged: they stay, whatever fails from here on
        for name in leftover_files(self._folder, state, self._held.names):
            with contextlib.suppress(FileNotFoundError):  # this write took over what a killed one left
                os.unlink(f"{self._folder}/{name}")  # noqa: PTH108
        return Applied(bytes=self._bytes, notices=tuple(notices))

    def abandon(self) -> None:
        """Restore the folder as far as the disk allows. What was acknowledged stays."""
        for file in self._open_files.values():
            file.abandon()

    def _choose_tags(self, delta: Delta) -> list[Notice]:
        """Give the metrics of `delta` their tags. Return a notice for each new tag that is not the expected one."""
        renamed, rename = self.state.renamed, self._content.rename
        tags = metric_tags(delta.metrics, rename, tuple(renamed.items()))
        if taken := self.state.media_steps.keys() & set(tags.values()):
            raise RebuildNeededError(f"a metric has the tag of pictures or captions: {min(taken)}")
        seen = self._tag_of.keys() | renamed.values()
        new = {name: tag for name, tag in tags.items() if name not in seen}
        self._tag_of |= tags
        renamed |= {tag: name for name, tag in new.items() if tag != name}
        return metric_notices(new, dict(rename))

    def _write(self, kind: str, data: bytes | memoryview[int]) -> None:
        if kind not in self._open_files:
            self._open(kind)
        self._open_files[kind].write(data)
        self._bytes += len(data)

    def _open(self, kind: str) -> None:
        """Open the event file of `kind` for appending, or a new one if there is none that can be continued."""
        record = self.state.files.get(kind)
        if record is None:
            self._create(kind).write(version_record(self._run.start))
        elif self._has_leftovers(kind):
            # A watching TensorBoard may have read what a killed export wrote beyond the record.
            self._create(kind).copy(f"{self._folder}/{record.name}", record.length)
        else:
            self._open_files[kind] = EventFile(self._folder, record.name, after=record)

    def _create(self, kind: str) -> EventFile:
        generation = self.state.generations[kind] = self.state.generations.get(kind, -1) + 1
        file = self._open_files[kind] = EventFile(self._folder, event_file_name(kind, generation))
        return file

    def _has_leftovers(self, kind: str) -> bool:
        record = self.state.files[kind]
        return os.stat(f"{self._folder}/{record.name}").st_size > record.length  # noqa: PTH116

    def _write_facts(self, shown: Run) -> list[Notice]:
        """Replace the facts' file if they changed. Return the notices of what could not be carried over."""
        metrics, fits_hparams = set(self._tag_of.values()), self.state.fits_hparams
        data = facts_file(shown, group=self._group, metrics=metrics, fits_hparams=fits_hparams)
        old = self.state.files.get("facts")
        same = old is not None and (old.length, old.checksum) == (len(data), zlib.crc32(data))
        if same and not self._has_leftovers("facts"):
            return []
        file = self._create("facts")
        file.write(data)
        self.state.files["facts"] = file.finish()
        self._bytes += len(data)
        return fact_notices(self._run, shown, metrics=metrics, fits_hparams=fits_hparams)


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

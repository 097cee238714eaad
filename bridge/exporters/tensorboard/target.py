"""The folder of one run under the log directory."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from bridge.errors import RebuildNeededError, TargetRefusedError, TargetUnavailableError
from bridge.exporters.contract import Applied
from bridge.exporters.tensorboard.files import generation_of, translated
from bridge.exporters.tensorboard.lock import locked
from bridge.exporters.tensorboard.state import MARKER, State, checked, owner, read_state, write_marker, write_state
from bridge.exporters.tensorboard.writing import Writing
from bridge.model import DeltaKind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from pathlib import Path

    from bridge.cursor import ContentOptions, Cursor
    from bridge.exporters.contract import TargetContent
    from bridge.exporters.tensorboard.files import Kept
    from bridge.model import Delta, Run

__all__ = ["TensorBoardTarget"]


class TensorBoardTarget:
    """Where one run goes: `folder`, which lies at `group` below the log directory.

    The scalars' file is a function of the run directory alone: it grows byte for byte into what one clean export
    would write. `lock_wait` is how long to wait for another export of this run, in seconds.
    """

    def __init__(self, folder: Path, run: Run, content: ContentOptions, *, group: str, lock_wait: float) -> None:
        self._folder = folder
        self._run = run
        self._content = content
        self._group = group
        self._lock_wait = lock_wait
        self._last: Delta | None = None
        self._files: Mapping[str, Kept] | None = None

    def apply(self, delta: Delta) -> Applied:
        """Cut off what no state speaks of, append, flush, then the state. A delta of kind NEW makes all anew.

        What is there already, by this delta or by another export of the run, is not written again.
        """
        with self._held() as (state, reason, notes):
            last, self._last = self._last, delta
            if not reason and _covers(state, delta):
                return Applied(notes=notes)
            if delta.kind is DeltaKind.NEW:
                return self._make((delta,), state, reason) + Applied(notes=notes)
            if state is None or reason:
                raise RebuildNeededError(f"{self._folder}: {reason}")
            if not self._follows(delta, last, state):
                raise self._overtaken()
            if delta.remember is not None and state.cursor is not None:
                write_state(self._folder, state.with_(cursor=delta.remember.with_(sent=state.cursor.sent)))
            return self._write((delta,), state, fresh=False) + Applied(notes=notes)

    def rebuild(self, deltas: Iterable[Delta]) -> Applied:
        """Write new event files beside the old ones, then the state, then remove the old ones."""
        with self._held() as (state, reason, notes):
            return self._make(deltas, state, reason) + Applied(notes=notes)

    def remember_times(self) -> None:
        """Bring what the state says of the event files' times up to date, where the files are what it says.

        Raises TargetError.
        """
        with self._held() as (state, reason, _):
            if state is not None and not reason:
                write_state(self._folder, state)

    def read(self, *, only: Collection[str] | None = None) -> TargetContent:
        """What TensorBoard's own reader finds, checksums included. Raises TargetError for a file that is damaged."""
        from bridge.exporters.tensorboard.reader import read_held

        return read_held(self._folder, self._run, only=only)

    def where(self) -> str:
        """The folder."""
        return str(self._folder)

    def _follows(self, delta: Delta, last: Delta | None, state: State) -> bool:
        """Whether `delta` goes on where `state` ends.

        The portions of a whole run do not say what they follow: it is what this target was given `last`.
        """
        if delta.before is not None:
            return _place(state.cursor) == _place(delta.before)
        if last is None:
            return False
        return state.files == self._files or (last.after.complete and _place(state.cursor) == _place(last.after))

    def _make(self, deltas: Iterable[Delta], state: State | None, reason: str) -> Applied:
        """Make all anew; the notes say why, where what there was could not be trusted."""
        said = reason and (state is not None or any(generation_of(path.name) for path in self._folder.iterdir()))
        notes = (f"{self._folder}: made anew, since {reason}",) if said else ()
        return self._write(deltas, state or State(self._run.identity), fresh=True) + Applied(notes=notes)

    def _write(self, deltas: Iterable[Delta], state: State, *, fresh: bool) -> Applied:
        writing = Writing(self._folder, state, self._run, self._content, group=self._group, fresh=fresh)
        try:
            done, last = Applied(), None
            for delta in deltas:
                done += writing.add(delta)
                last = delta
            if last is None:
                raise TargetRefusedError(f"{self._run.path}: there is nothing to write.")
            done += writing.finish(last)
            self._files = writing.files
            return done
        except BaseException:
            writing.abandon()
            raise

    @contextlib.contextmanager
    def _held(self) -> Iterator[tuple[State | None, str, tuple[str, ...]]]:
        """Make the folder if it is not there, lock it, make sure that it is this run's.

        Gives its state, why that cannot be trusted, and notes.
        """
        resolved = self._folder.resolve()
        if resolved.is_relative_to(self._run.path):
            raise TargetRefusedError(
                f"The event files would go into the run directory itself: {resolved}.",
                hint="Choose a --logdir outside the run directories.",
            )
        with translated(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            with locked(self._folder, wait=self._lock_wait) as notes:
                state = read_state(self._folder)
                holder = owner(self._folder) if state is None else state.identity
                if holder not in (None, self._run.identity):
                    raise self._overtaken()
                if state is None or not (self._folder / MARKER).exists():
                    write_marker(self._folder, self._run.identity)
                yield *checked(self._folder, state, os.listdir(self._folder)), notes  # noqa: PTH208 - names only

    def _overtaken(self) -> TargetUnavailableError:
        return TargetUnavailableError(
            f"{self._folder} was changed by someone else while it was being exported.", hint="Run the export again."
        )


def _covers(state: State | None, delta: Delta) -> bool:
    """Whether what `delta` brings is in the target already, by another export or by the same delta before."""
    held, after = None if state is None else state.cursor, delta.after
    if held is None or not held.complete or not after.complete:
        return False
    if _place(held) == _place(after):
        return delta.kind is not DeltaKind.SAME
    return (
        held.rows >= after.rows
        and held.media_lines >= after.media_lines
        and (held.early_rows, held.early) == (after.early_rows, after.early)
        and dict(held.content) == dict(after.content)
    )


def _place(cursor: Cursor | None) -> object:
    """How far a cursor is: equal for two that cover the same rows and media lines."""
    if cursor is None:
        return None
    return (cursor.complete, cursor.rows, cursor.digest, cursor.media_lines, cursor.media_digest, dict(cursor.content))

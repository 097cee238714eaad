"""The folder of one run under the log directory."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from bridge.errors import RebuildNeededError, TargetRefusedError, TargetUnavailableError
from bridge.exporters.tensorboard.files import generation_of, translated
from bridge.exporters.tensorboard.lock import locked
from bridge.exporters.tensorboard.state import MARKER, State, distrust, owner, read_state, write_marker, write_state
from bridge.exporters.tensorboard.writing import Writing
from bridge.model import Applied, DeltaKind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

    from bridge.model import Cursor, Delta, Held, Run, Shape

__all__ = ["TensorBoardTarget"]


class TensorBoardTarget:
    """Where one run goes: `folder`, which lies at `group` below the log directory.

    The scalars' file is a function of the run directory alone: it grows byte for byte into what one clean export
    would write. `lock_wait` is how long to wait for another export of this run, in seconds.
    """

    def __init__(self, folder: Path, run: Run, shape: Shape, *, group: str, lock_wait: float) -> None:
        self._folder = folder
        self._run = run
        self._shape = shape
        self._group = group
        self._lock_wait = lock_wait

    def apply(self, delta: Delta) -> Applied:
        """Cut off what no state speaks of, append, flush, then the state. A delta of kind NEW makes all anew."""
        if delta.kind is DeltaKind.NEW:
            return self.rebuild((delta,))
        with self._held() as (state, notes):
            reason = distrust(self._folder, state)
            if state is None or reason:
                raise RebuildNeededError(f"{self._folder}: {reason}")
            if _place(state.cursor) == _place(delta.after) and delta.kind is not DeltaKind.SAME:
                return Applied(notes=notes)
            if delta.before is not None and _place(state.cursor) != _place(delta.before):
                raise self._overtaken()
            if delta.remember is not None and state.cursor is not None:
                write_state(self._folder, state.with_(cursor=delta.remember.with_(sent=state.cursor.sent)))
            return self._write((delta,), state, fresh=False) + Applied(notes=notes)

    def rebuild(self, deltas: Iterable[Delta]) -> Applied:
        """Write new event files beside the old ones, then the state, then remove the old ones."""
        with self._held() as (state, notes):
            reason = distrust(self._folder, state) if state is not None or _event_files(self._folder) else ""
            said = (f"{self._folder}: made anew, since {reason}",) if reason else ()
            return self._write(deltas, state or State(self._run.identity), fresh=True) + Applied(notes=notes + said)

    def read(self, *, only: Collection[str] | None = None) -> Held:
        """What TensorBoard's own reader finds, checksums included. Raises TargetError for a file that is damaged."""
        from bridge.exporters.tensorboard.reader import read_held

        return read_held(self._folder, self._run, only=only)

    def where(self) -> str:
        """The folder."""
        return str(self._folder)

    def _write(self, deltas: Iterable[Delta], state: State, *, fresh: bool) -> Applied:
        writing = Writing(self._folder, state, self._run, self._shape, group=self._group, fresh=fresh)
        try:
            done, last = Applied(), None
            for delta in deltas:
                done += writing.add(delta)
                last = delta
            if last is None:
                raise TargetRefusedError(f"{self._run.path}: there is nothing to write.")
            return done + writing.finish(last)
        except BaseException:
            writing.abandon()
            raise

    @contextlib.contextmanager
    def _held(self) -> Iterator[tuple[State | None, tuple[str, ...]]]:
        """Make the folder if it is not there, lock it, make sure that it is this run's; its state, and notes."""
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
                yield state, notes

    def _overtaken(self) -> TargetUnavailableError:
        return TargetUnavailableError(
            f"{self._folder} was changed by someone else while it was being exported.", hint="Run the export again."
        )


def _event_files(folder: Path) -> bool:
    return any(generation_of(path.name) for path in folder.iterdir())


def _place(cursor: Cursor | None) -> object:
    """How far a cursor is: equal for two that cover the same rows and media lines."""
    if cursor is None:
        return None
    return (cursor.rows, cursor.digest, cursor.media_lines, cursor.media_digest, dict(cursor.shape))

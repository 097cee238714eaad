"""The TensorBoard exporter: one folder of event files per run, below a log directory."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Self

from bridge.errors import NewerFormatError, TargetError, TargetRefusedError
from bridge.exporters.contract import Capabilities, TargetState
from bridge.exporters.tensorboard import facts, pictures, ui
from bridge.exporters.tensorboard.files import generation_of, translated
from bridge.exporters.tensorboard.folders import Place, place_runs
from bridge.exporters.tensorboard.protos import need_tensorboard
from bridge.exporters.tensorboard.state import MARKER, checked, left_over, read_state
from bridge.exporters.tensorboard.target import TensorBoardTarget

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from bridge.cursor import ContentOptions, Cursor
    from bridge.exporters.contract import Interface
    from bridge.model import Notice, Run

__all__ = ["TensorBoardExporter"]

_LEFT_OVER = "left-over files"


class TensorBoardExporter:
    """Replays runs into event files below `logdir`.

    `lock_wait` is how long to wait for another export of the same run, in seconds.
    """

    name = "tensorboard"
    default_port = ui.DEFAULT_PORT

    def __init__(self, logdir: Path, *, lock_wait: float = 30.0) -> None:
        self._logdir = Path(logdir).absolute()
        self._lock_wait = lock_wait
        self._places: dict[str, Place] = {}
        self._touched: set[str] = set()

    @property
    def capabilities(self) -> Capabilities:
        """Series with increasing steps, values of 32 bits; what is superseded is a rebuild."""
        return Capabilities(
            ordered_steps=True,
            value_bits=32,
            time_step=1e-6,
            statuses=facts.STATUSES,
            media_kept=pictures.KEPT,
            media_converted=pictures.CONVERTED if pictures.can_convert() else frozenset(),
        )

    def prepare(self, runs: Sequence[Run], content: ContentOptions) -> None:
        """Find or choose the folder of each run.

        Raises MissingExtraError where tensorboard is not installed, TargetRefusedError where `logdir` is no folder.
        """
        need_tensorboard()
        if self._logdir.exists() and not self._logdir.is_dir():
            raise TargetRefusedError(f"{self._logdir} is no folder.", hint="Choose another --logdir.")
        self._find_places(runs)

    def cursors(self, runs: Sequence[Run]) -> Mapping[str, TargetState]:
        """What the state files say, where the event files bear them out."""
        if any(run.identity not in self._places for run in runs):
            self._find_places(runs)
        return {run.identity: self._known(run.identity) for run in runs}

    def stale(self, run: Run, cursor: Cursor, content: ContentOptions) -> Sequence[str]:
        """The facts that are not as last sent, whether the folder has another name, or a killed export left files."""
        place = self._places.get(run.identity)
        sent = facts.sent(run, content, group="" if place is None else place.folder)
        if place is None:
            del sent["folder"]
        changed = [key for key in sent if cursor.sent.get(key) != sent[key]]
        return tuple(changed + [key for key in (_LEFT_OVER,) if key in cursor.sent])

    def open(self, run: Run, content: ContentOptions) -> TensorBoardTarget:
        """The folder of `run`, which need not be there."""
        if run.identity not in self._places:
            self._find_places([run])
        return self._target(run, content, lock_wait=self._lock_wait)

    def finish(self, runs: Sequence[Run], content: ContentOptions) -> Sequence[Notice]:
        """Remember the times of files that were copied or touched, so that the next export need not read them."""
        for run in runs:
            if run.identity in self._touched:
                # It only spares the next export some reading: another time will do.
                with contextlib.suppress(TargetError):
                    self._target(run, content, lock_wait=0.0).remember_times()
        self._touched.clear()
        return ()

    def interface(self, port: int) -> Interface:
        """TensorBoard on the log directory."""
        return ui.interface(self._logdir, port)

    def close(self) -> None:
        """Nothing is kept open; which folder is whose is looked up again next time."""
        self._places.clear()
        self._touched.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _find_places(self, runs: Sequence[Run]) -> None:
        with translated(self._logdir):
            self._places.update(place_runs(self._logdir, runs))

    def _target(self, run: Run, content: ContentOptions, *, lock_wait: float) -> TensorBoardTarget:
        group = self._places[run.identity].folder
        return TensorBoardTarget(self._logdir / group, run, content, group=group, lock_wait=lock_wait)

    def _known(self, identity: str) -> TargetState:
        place = self._places[identity]
        folder = self._logdir / place.folder
        extras = tuple(str(self._logdir / extra) for extra in place.extras)
        try:
            names = os.listdir(folder)  # noqa: PTH208 - asked of thousands of folders
        except (FileNotFoundError, NotADirectoryError):
            return TargetState(extras=extras)
        try:
            state = read_state(folder)
        except NewerFormatError as error:
            return TargetState(exists=True, error=error, extras=extras)
        if state is None and not (MARKER in names and any(map(generation_of, names))):
            return TargetState(extras=extras)
        found, damage = checked(folder, state, names)
        if state is None or state.cursor is None or damage:
            return TargetState(exists=True, extras=extras)
        if found is not state:
            self._touched.add(identity)
        cursor = state.cursor
        if left_over(folder, state, names):
            # It makes the run stale, so that the next export cleans up even where nothing else is new.
            cursor = cursor.with_(sent={**cursor.sent, _LEFT_OVER: ""})
        return TargetState(cursor=cursor, exists=True, extras=extras)

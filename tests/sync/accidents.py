"""Exporters for worker processes, apart from the tests: a worker imports what it is given, and pytest takes long."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

from tests.memory_exporter import MemoryExporter

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.model import Run
    from bridge.options import ContentOptions
    from tests.memory_exporter import MemoryTarget


class Deadly(MemoryExporter):
    """Kills every process except the first that opens the target of run03, as when memory runs out.

    If there is a file `forgiving` it does so once, and its first copy for a worker cannot be made, as Dask sees it.
    """

    def __init__(self, folder: Path, *, forgiving: Path | None = None) -> None:
        super().__init__(folder)
        self.parent, self.forgiving = os.getpid(), forgiving

    def happens(self, what: str) -> bool:
        """Return whether an accident is to happen: each time, or the first time."""
        if self.forgiving is None:
            return what == "kill"
        marker = self.forgiving / what
        happens = not marker.exists()
        marker.touch()
        return happens

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.happens("copy"):
            raise TypeError("cannot unpack")

    def open(self, run: Run, content: ContentOptions) -> MemoryTarget:
        if run.run_id == "run03" and os.getpid() != self.parent and self.happens("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().open(run, content)


class Elsewhere(MemoryExporter):
    """Notes the runs that another process opens, as files in `notes`."""

    def __init__(self, folder: Path, notes: Path) -> None:
        super().__init__(folder)
        self.parent, self.notes = os.getpid(), notes

    def open(self, run: Run, content: ContentOptions) -> MemoryTarget:
        if os.getpid() != self.parent:
            (self.notes / run.run_id).touch()
        return super().open(run, content)

"""Run the command line with a target that takes a minute per run: `python -m tests.slow_program FOLDER export ...`.

Each run that begins leaves a file FOLDER/PID of its process.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.memory_exporter import MemoryExporter

if TYPE_CHECKING:
    from bridge.model import Run
    from bridge.options import ContentOptions
    from tests.memory_exporter import MemoryTarget


class SlowExporter(MemoryExporter):
    """Takes a minute to open a target."""

    def open(self, run: Run, content: ContentOptions) -> MemoryTarget:
        (self.folder / str(os.getpid())).touch()
        time.sleep(60)
        return super().open(run, content)


def main() -> None:
    from bridge.__main__ import main as command
    from bridge.cli import export
    from bridge.sync import parallel

    folder = Path(sys.argv.pop(1))
    export.exporter_of = lambda _target: SlowExporter(folder)  # type: ignore[attr-defined]
    parallel.WORTH_WORKERS = 0
    command()


if __name__ == "__main__":
    main()

"""Progress of an export: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TextIO

from bridge.errors import counted
from bridge.sync.report import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from bridge.sync.report import RunReport

LINE_EVERY = 10.0
"""Seconds between two lines of progress without a terminal."""


class LineProgress(Progress):
    """Count runs and points, and write a line every LINE_EVERY seconds: for log files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._runs = self._done = self._points = 0
        self._began = self._last = time.monotonic()

    def start(self, runs: int) -> None:
        """Begin to count."""
        self._runs, self._began = runs, time.monotonic()

    def moved(self, points: int) -> None:
        """Count points."""
        self._points += points
        self._show()

    def run_done(self, report: RunReport) -> None:
        """Count a run."""
        self._done += 1
        self._show()

    @property
    def _rate(self) -> str:
        rate = self._points / max(time.monotonic() - self._began, 1e-9)
        return f"{counted(self._points, 'point')}, {rate:,.0f} points/s"

    def _show(self) -> None:
        """Write a line if the last one was long enough ago."""
        now = time.monotonic()
        if now - self._last < LINE_EVERY:
            return
        self._last = now
        remaining = (now - self._began) / self._done * (self._runs - self._done) if self._done else 0.0
        left = f", about {remaining:.0f} s left" if remaining else ""
        self._stream.write(f"{self._done:,} of {counted(self._runs, 'run')} done, {self._rate}{left}\n")
        self._stream.flush()


class BarProgress(LineProgress):
    """Draw a bar of runs on a terminal, with the points and the time that remains.

    The bar appears `after` so many seconds, and goes when all is done.
    """

    def __init__(self, stream: TextIO, *, after: float = 0.0) -> None:
        super().__init__(stream)
        self._after = after
        self._bar: RichProgress | None = None

    def start(self, runs: int) -> None:
        """Make the bar."""
        from rich import progress
        from rich.console import Console
        from rich.theme import Theme

        super().start(runs)
        self._bar = progress.Progress(
            progress.TextColumn("runs"),
            progress.BarColumn(bar_width=20),
            progress.TextColumn("{task.completed:.0f}/{task.total:.0f}", justify="right"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            # Rich's own colours suit a dark terminal only.
            console=Console(file=self._stream, theme=Theme({"progress.remaining": "none", "bar.back": "bright_black"})),
            transient=True,
        )
        self._bar.add_task("", total=runs, rate="")
        self._show()

    def _show(self) -> None:
        if self._bar is None or time.monotonic() - self._began < self._after:
            return
        self._bar.start()
        rate = self._rate if self._points else ""
        self._bar.update(self._bar.task_ids[0], completed=self._done, rate=rate)

    def __exit__(self, *_error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

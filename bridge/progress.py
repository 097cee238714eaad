"""Progress of an export: bars on a terminal, a line now and then elsewhere, or nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, Self, TextIO

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from bridge.report import RunReport

__all__ = ["BarProgress", "LineProgress", "Progress", "SilentProgress", "progress_on"]

LINE_EVERY = 10.0
"""Seconds between two progress lines where there is no terminal."""


class Progress(Protocol):
    """Told what an export does, from one thread at a time. A context manager."""

    def start(self, runs: int) -> None:
        """`runs` runs are about to be done."""
        ...

    def points(self, count: int) -> None:
        """`count` more points are in their target."""
        ...

    def run_done(self, report: RunReport) -> None:
        """One more run is done."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class SilentProgress:
    """Says nothing."""

    def start(self, runs: int) -> None:
        """Take no notice."""

    def points(self, count: int) -> None:
        """Take no notice."""

    def run_done(self, report: RunReport) -> None:
        """Take no notice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class LineProgress(SilentProgress):
    """A line every LINE_EVERY seconds: for log files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._runs = self._done = self._points = 0
        self._began = self._last = time.monotonic()

    def start(self, runs: int) -> None:
        """Begin counting."""
        self._runs = runs
        self._began = self._last = time.monotonic()

    def points(self, count: int) -> None:
        """Count the points."""
        self._points += count
        self._line()

    def run_done(self, report: RunReport) -> None:
        """Count the run."""
        self._done += 1
        self._line()

    def _line(self) -> None:
        now = time.monotonic()
        if now - self._last < LINE_EVERY:
            return
        self._last = now
        seconds = now - self._began
        rate = self._points / seconds
        left = (self._runs - self._done) * seconds / self._done if self._done else None
        remaining = "" if left is None else f", about {left:.0f} s left"
        self._stream.write(
            f"{self._done}/{self._runs} runs, {self._points:,} points, {rate:,.0f} points/s{remaining}\n"
        )
        self._stream.flush()


class BarProgress(SilentProgress):
    """Two bars on a terminal: runs with the remaining time, points with their rate."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bars: Bars | None = None
        self._runs: TaskID | None = None
        self._points = 0
        self._began = time.monotonic()

    def start(self, runs: int) -> None:
        """Draw the bars."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rate]}"),
            console=Console(file=self._stream),
            transient=True,
        )
        self._began = time.monotonic()
        self._runs = self._bars.add_task("runs", total=runs, rate="")
        self._bars.start()

    def points(self, count: int) -> None:
        """Show the rate."""
        self._points += count
        if self._bars is not None and self._runs is not None:
            rate = self._points / max(time.monotonic() - self._began, 1e-9)
            self._bars.update(self._runs, rate=f"{self._points:,} points, {rate:,.0f}/s")

    def run_done(self, report: RunReport) -> None:
        """Move the bar on."""
        if self._bars is not None and self._runs is not None:
            self._bars.advance(self._runs)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()


def progress_on(stream: TextIO, *, quiet: bool = False) -> Progress:
    """The progress that suits `stream`: bars on a terminal, lines elsewhere, nothing where `quiet`."""
    if quiet:
        return SilentProgress()
    return BarProgress(stream) if stream.isatty() else LineProgress(stream)

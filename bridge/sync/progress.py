"""Progress of an export: bars on a terminal, a line now and then elsewhere, or nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, Self, TextIO

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from bridge.sync.report import RunReport

__all__ = ["BarProgress", "LineProgress", "Progress", "SilentProgress", "progress_on"]

LINE_EVERY = 10.0
"""Seconds between two progress lines where there is no terminal."""


class Progress(Protocol):
    """Told what an export does, from one thread at a time. A context manager."""

    def start(self, runs: int, size: int) -> None:
        """`runs` runs are about to be done, and about `size` bytes of them to be read."""
        ...

    def moved(self, size: int, points: int) -> None:
        """So many more of these bytes were read, and so many more points are in their target."""
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

    def start(self, runs: int, size: int) -> None:
        """Take no notice."""

    def moved(self, size: int, points: int) -> None:
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
        self._runs = self._done = self._size = self._read = self._points = 0
        self._began = self._last = time.monotonic()

    def start(self, runs: int, size: int) -> None:
        """Begin counting."""
        self._runs, self._size = runs, size
        self._began = self._last = time.monotonic()

    def moved(self, size: int, points: int) -> None:
        """Count the bytes and the points."""
        self._read += size
        self._points += points
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
        seconds = max(now - self._began, 1e-9)
        part = self._read / self._size if self._size else self._done / self._runs
        remaining = f", about {seconds / part - seconds:.0f} s left" if part else ""
        rate = self._points / seconds
        self._stream.write(
            f"{self._done}/{self._runs} runs, {self._points:,} points, {rate:,.0f} points/s, {part:.0%}{remaining}\n"
        )
        self._stream.flush()


class BarProgress(SilentProgress):
    """Two bars on a terminal, both with the time that remains: runs, and points, which are measured in bytes read.

    They appear `after` so many seconds, and go when all is done.
    """

    def __init__(self, stream: TextIO, *, after: float = 0.0) -> None:
        self._stream = stream
        self._after = after
        self._bars: Bars | None = None
        self._runs: TaskID | None = None
        self._read: TaskID | None = None
        self._total = self._done = self._points = 0
        self._began = time.monotonic()

    def start(self, runs: int, size: int) -> None:
        """Draw the bars."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}", justify="right"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rate]}"),
            console=Console(file=self._stream),
            transient=True,
        )
        self._began, self._total = time.monotonic(), runs
        self._runs = self._bars.add_task("runs", total=runs, count=f"0/{runs}", rate="")
        self._read = self._bars.add_task("points", total=size, count="0", rate="", visible=size > 0)
        self._draw()

    def moved(self, size: int, points: int) -> None:
        """Move the bar of points on."""
        self._points += points
        if self._bars is not None and self._read is not None:
            rate = f"{self._points / max(time.monotonic() - self._began, 1e-9):,.0f}/s"
            self._bars.update(self._read, advance=size, count=f"{self._points:,}", rate=rate)
            self._draw()

    def run_done(self, report: RunReport) -> None:
        """Move the bar of runs on."""
        self._done += 1
        if self._bars is not None and self._runs is not None:
            rate = f"{self._done / max(time.monotonic() - self._began, 1e-9):,.1f}/s"
            self._bars.update(self._runs, advance=1, count=f"{self._done}/{self._total}", rate=rate)
            self._draw()

    def _draw(self) -> None:
        if self._bars is not None and time.monotonic() - self._began >= self._after:
            self._bars.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()


def progress_on(stream: TextIO, *, quiet: bool = False, after: float = 0.0) -> Progress:
    """The progress that suits `stream`: bars on a terminal, lines elsewhere, nothing where `quiet`.

    Bars appear `after` so many seconds: what is over by then needs none.
    """
    if quiet:
        return SilentProgress()
    return BarProgress(stream, after=after) if stream.isatty() else LineProgress(stream)

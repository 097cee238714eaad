"""Progress of an export: a bar on a terminal, a line now and then elsewhere, or nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self, TextIO

from bridge.errors import counted

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from bridge.sync.report import RunReport

LINE_EVERY = 10.0
"""Seconds between two progress lines without a terminal."""


class Progress:
    """Hears how an export goes on, from one thread. A context manager. This one shows nothing."""

    def start(self, runs: int) -> None:
        """Receive the number of runs that are about to be exported."""

    def waiting(self, step: str) -> None:
        """Receive what takes long before the first run is written."""

    def moved(self, points: int) -> None:
        """Receive the number of points that have reached their target."""

    def run_done(self, report: RunReport) -> None:
        """Receive the report of a run that is done."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class _CountedProgress(Progress):
    """Count runs and points, and call `show` after each change."""

    def __init__(self) -> None:
        self.runs = self.done = self.points = 0
        self.began = time.monotonic()

    def start(self, runs: int) -> None:
        """Begin to count."""
        self.runs, self.began = runs, time.monotonic()
        self.show()

    def moved(self, points: int) -> None:
        """Count points."""
        self.points += points
        self.show()

    def run_done(self, report: RunReport) -> None:
        """Count a run."""
        self.done += 1
        self.show()

    @property
    def rate(self) -> str:
        """Return the points per second so far."""
        return (
            f"{counted(self.points, 'point')}, {self.points / max(time.monotonic() - self.began, 1e-9):,.0f} points/s"
        )

    def show(self) -> None:
        """Show the counts."""


class LineProgress(_CountedProgress):
    """Write a line every LINE_EVERY seconds: for log files."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._last = self.began

    def waiting(self, step: str) -> None:
        """Write the step at once."""
        self._stream.write(f"{step[:1].upper()}{step[1:]} ...\n")
        self._stream.flush()

    def show(self) -> None:
        """Write a line if the last one was long enough ago."""
        now = time.monotonic()
        if now - self._last < LINE_EVERY:
            return
        self._last = now
        remaining = (now - self.began) / self.done * (self.runs - self.done) if self.done else 0.0
        left = f", about {remaining:.0f} s left" if remaining else ""
        self._stream.write(f"{self.done:,} of {counted(self.runs, 'run')} done, {self.rate}{left}\n")
        self._stream.flush()


class BarProgress(_CountedProgress):
    """Draw a bar of runs on a terminal, with the points and the time that remains.

    The bar appears `after` so many seconds, and goes when all is done.
    """

    def __init__(self, stream: TextIO, *, after: float = 0.0) -> None:
        super().__init__()
        self._stream = stream
        self._after = after
        self._rich: RichProgress | None = None
        self._task: TaskID | None = None
        self._step = ""

    def start(self, runs: int) -> None:
        """Make the bar."""
        from rich import progress
        from rich.console import Console
        from rich.theme import Theme

        self._rich = progress.Progress(
            progress.TextColumn("runs"),
            progress.BarColumn(bar_width=20),
            progress.TextColumn("{task.completed:.0f}/{task.total:.0f}", justify="right"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            # Rich's own colours suit a dark terminal only.
            console=Console(file=self._stream, theme=Theme({"progress.remaining": "none", "bar.back": "bright_black"})),
            transient=True,
        )
        self._task = self._rich.add_task("", total=runs, rate="")
        super().start(runs)

    def waiting(self, step: str) -> None:
        """Draw the bar with the step until the first points have arrived."""
        self._step = step
        self.show()

    def show(self) -> None:
        """Draw the bar as it is now."""
        if self._rich is None or self._task is None or time.monotonic() - self.began < self._after:
            return
        self._rich.start()
        self._rich.update(self._task, completed=self.done, rate=self.rate if self.points else self._step)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich is not None:
            self._rich.stop()


def progress_on(stream: TextIO, *, quiet: bool = False, after: float = 0.0) -> Progress:
    """Return the progress that suits `stream`: a bar on a terminal, lines elsewhere, nothing if `quiet`.

    The bar appears `after` so many seconds: what is over by then needs none.
    """
    if quiet:
        return Progress()
    return BarProgress(stream, after=after) if stream.isatty() else LineProgress(stream)

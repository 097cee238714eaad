"""Export a run with any exporter, look at its target, and break a delta in the middle."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bridge.errors import TargetUnavailableError
from bridge.options import ContentOptions
from bridge.rundir import ReadOptions, read_delta, read_run, read_whole
from bridge.sync.export import ExportTask, export_run
from bridge.sync.report import Verdict
from bridge.sync.verify import check_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bridge.exporters.contract import Exporter, Target, TargetContent, TargetState
    from bridge.model import Block, Cursor, Delta, Run
    from bridge.sync.report import RunCheck, RunReport


class BrokenBlocks(tuple["Block", ...]):
    """Yields the first block of a delta, then fails as if the target had gone away."""

    def __iter__(self) -> Iterator[Block]:
        """Yield one block and fail."""
        yield self[0]
        raise TargetUnavailableError("The connection broke in the middle of a delta.")


@dataclass
class Bench:
    """One exporter on a target of one test, with the test's runs."""

    folder: Path
    make: Callable[[Path], Exporter]
    content: ContentOptions = field(default_factory=ContentOptions)
    exporter: Exporter = field(init=False)

    def __post_init__(self) -> None:
        self.exporter = self.make(self.folder / "target")

    def fresh(self) -> Bench:
        """Return the same exporter on another target, for a clean export to compare with."""
        return Bench(folder=self.folder / "clean", make=self.make, content=self.content)

    @property
    def wanted(self) -> ReadOptions:
        capabilities = self.exporter.capabilities
        return ReadOptions(
            ordered=capabilities.ordered_steps,
            replaces=capabilities.replaces_points,
            limit=capabilities.points_a_delta,
        )

    def open(self, run: Run) -> Target:
        self.exporter.prepare([run], self.content)
        return self.exporter.open(run, self.content)

    def whole(self, run: Run) -> list[Delta]:
        """Return everything that the run holds, as deltas for a fresh target."""
        return list(read_whole(run, self.content, self.wanted))

    def delta(self, run: Run, cursor: Cursor) -> Delta:
        return read_delta(run, cursor, self.content, self.wanted)

    def known(self, run: Run) -> TargetState:
        return self.exporter.cursors([run])[run.identity]

    def cursor(self, run: Run) -> Cursor:
        cursor = self.known(run).cursor
        assert cursor is not None
        return cursor

    def export(self, path: Path, **options: Any) -> RunReport:
        """Export one run as `bridge export` does, and assert that it does not fail."""
        run = read_run(path)
        self.exporter.prepare([run], self.content)
        report = export_run(ExportTask(run, self.known(run), self.content, **options), self.exporter)
        assert not report.failed, report.reason
        self.exporter.finish([run], self.content)
        return report

    def read(self, path: Path) -> TargetContent:
        return self.open(read_run(path)).read()

    def check(self, path: Path) -> RunCheck:
        run = read_run(path)
        return check_run(run, self.known(run), self.exporter)

    def assert_verified(self, path: Path) -> None:
        """Assert that verify finds the run equal, up to date and only once."""
        check = self.check(path)
        assert check.verdict is Verdict.SAME, "\n".join([check.reason, *map(str, check.differences.first)])
        run = read_run(path)
        assert tuple(self.known(run).extras) == ()
        if not run.running:
            assert check.behind.rows == 0

    def interrupted(self, delta: Delta) -> Delta:
        """Return `delta` with blocks that break after the first."""
        return delta.with_(blocks=BrokenBlocks(delta.blocks))


def points_of(held: TargetContent, name: str) -> list[tuple[int, float | None]]:
    """Return step and value of a series by step, with None for NaN."""
    series = held.series.get(name)
    if series is None:
        return []
    pairs = sorted(zip(series.step.tolist(), series.value.tolist(), strict=True), key=lambda pair: pair[0])
    return [(step, None if math.isnan(value) else value) for step, value in pairs]

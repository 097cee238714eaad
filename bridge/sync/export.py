"""Export: bring runs into a target, as a plan that is carried out or only rehearsed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from bridge.cursor import ContentOptions
from bridge.rundir import read_run
from bridge.sync.gather import gather
from bridge.sync.progress import SilentProgress
from bridge.sync.replay import Job
from bridge.sync.report import Report
from bridge.sync.together import Hands, backlog, replay_all

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bridge.exporters.contract import Exporter
    from bridge.rundir import Clock
    from bridge.sync.gather import Gathered
    from bridge.sync.progress import Progress
    from bridge.sync.report import RunReport
    from bridge.sync.select import Selection

__all__ = ["Options", "export_gathered", "export_runs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How an export is done. `heartbeat_timeout` is in seconds.

    `dry_run` plans and touches nothing; `rebuild` replaces every target; without `reshape` a target that was made with
    other options is left as it is, and its run fails; `new_identity` is `--as`; `hands` are those who work.
    """

    content: ContentOptions = field(default_factory=ContentOptions)
    selection: Selection | None = None
    dry_run: bool = False
    rebuild: bool = False
    reshape: bool = True
    new_identity: str | None = None
    heartbeat_timeout: float = 180.0
    hands: Hands = field(default_factory=Hands)


def export_runs(
    roots: Sequence[Path],
    exporter: Exporter,
    options: Options | None = None,
    *,
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> Report:
    """Bring the runs at and below `roots` into the target of `exporter`; the report has a line for each.

    A run that fails does not stop the others. Raises UsageError for roots or options that make no sense, and
    TargetError where the target cannot be reached at all.
    """
    options = options or Options()
    gathered = gather(
        roots,
        selection=options.selection,
        new_identity=options.new_identity,
        read=partial(read_run, clock=clock, heartbeat_timeout=options.heartbeat_timeout),
    )
    return export_gathered(gathered, exporter, options, progress=progress)


def export_gathered(
    gathered: Gathered, exporter: Exporter, options: Options, *, progress: Progress | None = None
) -> Report:
    """Bring runs that were already read into the target of `exporter`. Raises TargetError as `export_runs` does."""
    started = time.perf_counter()
    content, runs = options.content, gathered.runs
    with progress or SilentProgress() as shown, exporter:
        exporter.prepare(runs, content)
        known = exporter.cursors(runs)
        lines: list[RunReport] = []
        jobs = [Job(run, known[run.identity], rebuild=options.rebuild, reshape=options.reshape) for run in runs]
        shown.start(len(jobs), sum(map(backlog, jobs)))
        for line in replay_all(jobs, exporter, content, dry_run=options.dry_run, progress=shown, hands=options.hands):
            lines.append(line)
            shown.run_done(line)
        notices = () if options.dry_run else tuple(exporter.finish(runs, content))
    return Report(
        exporter=exporter.name,
        runs=(*lines, *gathered.failed),
        notices=notices,
        seconds=time.perf_counter() - started,
        dry_run=options.dry_run,
    )

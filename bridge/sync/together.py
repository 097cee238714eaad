"""Many replays at once: here, in threads, in processes or on a cluster."""

from __future__ import annotations

import functools
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.sync.replay import Job, Reading, Replay, read, replay
from bridge.sync.tally import Tally
from bridge.sync.wire import Wire, attach, tell
from bridge.sync.workers import Crew

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor

    from bridge.cursor import ContentOptions
    from bridge.exporters.contract import Exporter
    from bridge.model import Delta
    from bridge.sync.progress import Progress
    from bridge.sync.replay import Step
    from bridge.sync.report import RunReport

__all__ = ["Hands", "backlog", "replay_all"]

WORTH_A_CREW = 64 << 20
"""Bytes of run directories to read below which starting workers costs more than it saves."""


@dataclass(frozen=True, slots=True)
class Hands:
    """Who works: `workers` processes, `threads` where waiting dominates (by default as many), or a Dask cluster.

    `dask` is a scheduler's address (`tcp://host:8786`) or the path of its scheduler file.
    """

    workers: int = 1
    dask: str | None = None
    threads: int | None = None

    def count(self, *, threads: bool) -> int:
        """How many are at work at once on this machine."""
        return self.threads if threads and self.threads is not None else self.workers

    def window(self, *, threads: bool) -> int:
        """How many tasks may be in flight: enough that nobody waits, few enough that results do not pile up."""
        return 64 if self.dask is not None else 2 * self.count(threads=threads)

    def hire(self, *, threads: bool, begin: Callable[[], None] | None = None) -> Executor:
        """A fresh executor; on this machine `begin` is called first in each of its threads or processes."""
        from concurrent.futures import ThreadPoolExecutor

        if self.dask is not None:
            from bridge.sync.cluster import ClusterExecutor

            return ClusterExecutor(self.dask)
        if threads:
            return ThreadPoolExecutor(self.count(threads=True), initializer=begin)
        from bridge.sync.processes import Processes

        return Processes(self.workers, begin=begin)


@dataclass(frozen=True, slots=True)
class _Whole:
    """A whole replay as a task for another process; the exporter travels as bytes, made once per process.

    `number` is the place of its job among the jobs.
    """

    number: int
    job: Job
    exporter: bytes
    content: ContentOptions
    dry_run: bool


@dataclass(frozen=True, slots=True)
class _Part:
    """The reading of one delta as a task; `number` is the place of its replay among the jobs."""

    number: int
    reading: Reading


def replay_all(
    jobs: Sequence[Job],
    exporter: Exporter,
    content: ContentOptions,
    *,
    dry_run: bool,
    progress: Progress,
    hands: Hands,
) -> Iterator[RunReport]:
    """The report line of each job, in the order in which they are done.

    A target with a single writer is written here, while workers read and encode; for others a worker does all.
    """
    sizes = [backlog(job) for job in jobs]
    tally = Tally(progress, sizes)
    threads = exporter.capabilities.threads
    # Threads cost nothing to start, and what they wait for is the same for small runs as for large ones.
    worth = 1 if threads else WORTH_A_CREW
    if hands.dask is None and (hands.count(threads=threads) < 2 or len(jobs) < 2 or sum(sizes) < worth):
        lines = _replay_here(jobs, exporter, content, dry_run=dry_run, tally=tally)
    elif exporter.capabilities.single_writer:
        lines = _read_elsewhere(jobs, exporter, content, dry_run=dry_run, tally=tally, hands=hands)
    else:
        lines = _replay_elsewhere(jobs, exporter, content, dry_run=dry_run, tally=tally, hands=hands)
    for number, line in lines:
        tally.done(number, line.points)
        yield line


def _replay_here(
    jobs: Sequence[Job], exporter: Exporter, content: ContentOptions, *, dry_run: bool, tally: Tally
) -> Iterator[tuple[int, RunReport]]:
    for number, job in enumerate(jobs):
        yield number, replay(job, exporter, content, dry_run=dry_run, tell=functools.partial(tally.told, number))


def _replay_elsewhere(
    jobs: Sequence[Job], exporter: Exporter, content: ContentOptions, *, dry_run: bool, tally: Tally, hands: Hands
) -> Iterator[tuple[int, RunReport]]:
    threads = exporter.capabilities.threads
    frozen = pickle.dumps(exporter)
    with Wire() as wire:

        def listen() -> None:
            for message in wire.messages():
                tally.told(*message)

        hire = functools.partial(hands.hire, threads=threads, begin=functools.partial(attach, wire.end))
        with Crew(hire, _replay_whole, window=hands.window(threads=threads), tick=listen) as crew:
            for number, job in enumerate(jobs):
                crew.submit(_Whole(number, job, frozen, content, dry_run), size=backlog(job))
            for task, outcome in crew.results():
                line = Replay(task.job, exporter, content).fail(outcome) if isinstance(outcome, Exception) else outcome
                yield task.number, line


def _read_elsewhere(
    jobs: Sequence[Job], exporter: Exporter, content: ContentOptions, *, dry_run: bool, tally: Tally, hands: Hands
) -> Iterator[tuple[int, RunReport]]:
    replays = [
        Replay(job, exporter, content, dry_run=dry_run, tell=functools.partial(tally.told, number))
        for number, job in enumerate(jobs)
    ]
    crew = Crew(functools.partial(hands.hire, threads=False), _read_part, window=hands.window(threads=False))

    def go_on(number: int, step: Step) -> Iterator[tuple[int, RunReport]]:
        if isinstance(step, Reading):
            crew.submit(_Part(number, step), size=backlog(jobs[number]))
        else:
            yield number, step

    with crew:
        for number, replaying in enumerate(replays):
            yield from go_on(number, replaying.begin())
        for part, outcome in crew.results():
            yield from go_on(part.number, replays[part.number].take(_given(outcome), part.reading))


def _given(outcome: Delta | Exception) -> functools.partial[Delta]:
    """A reader that has read already: it gives `outcome`, or raises it."""

    def give(outcome: Delta | Exception, _reading: Reading) -> Delta:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return functools.partial(give, outcome)


def _read_part(part: _Part) -> Delta:
    return read(part.reading)


def _replay_whole(task: _Whole) -> RunReport:
    how_far = functools.partial(tell, task.number)
    return replay(task.job, _exporter(task.exporter), task.content, dry_run=task.dry_run, tell=how_far)


@functools.lru_cache(maxsize=2)
def _exporter(frozen: bytes) -> Exporter:
    exporter: Exporter = pickle.loads(frozen)  # noqa: S301 - made by this very program, for its own workers
    return exporter


def backlog(job: Job) -> int:
    """Bytes of the run directory that the target has not acknowledged, as far as sizes tell."""
    cursor = job.known.cursor
    sizes = {name: file.size for name, file in job.run.files.items()}
    seen = (cursor.offset + cursor.media_offset) if cursor is not None else 0
    return max(sizes.get("metrics.csv", 0) + sizes.get("media.jsonl", 0) - seen, 0)

"""Many tasks over an executor: largest first, few in flight, and a worker that dies costs only its own task."""

from __future__ import annotations

import heapq
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, runtime_checkable

from bridge.errors import BridgeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

__all__ = ["Crew", "LostWorkerError"]

T = TypeVar("T")
R = TypeVar("R")

TICK = 0.25
"""Seconds between two ticks."""


@runtime_checkable
class Losable(Protocol):
    """An executor that can lose those who work for it without telling the tasks."""

    def is_lost(self) -> bool:
        """Whether what is in flight will never end."""
        ...


class LostWorkerError(BridgeError):
    """The process that worked on a task died while it had that task alone."""


@dataclass(slots=True)
class Crew(Generic[T, R]):
    """Work on tasks of type T in the executors that `hire` makes; results of type R come as they are ready.

    `work` must be importable by name and its argument and result picklable where processes are hired. At most `window`
    tasks are in flight, so that neither tasks nor results pile up. When an executor breaks because a worker died (a
    process pool breaks as a whole, and names nobody), it is made anew, and the tasks that were in flight are tried one
    by one: the one that breaks it again is the culprit and ends as a LostWorkerError. A task that was cancelled (on a
    cluster whose scheduler is gone) is lost in the same way. Where no executor can be had any more, all tasks that are
    left end with the error that said so; where the first one cannot be had, `results` raises it. While results are
    waited for, `tick` is called now and then, and always before one is handed out.
    """

    hire: Callable[[], Executor]
    work: Callable[[T], R]
    window: int
    tick: Callable[[], None] = lambda: None
    _queue: list[tuple[float, int, T]] = field(default_factory=list)
    _suspects: list[T] = field(default_factory=list)
    _flying: dict[Future[R], T] = field(default_factory=dict)
    _alone: bool = False
    _count: int = 0
    _executor: Executor | None = None
    _broke: bool = False
    _gone: BridgeError | None = None

    def submit(self, task: T, *, size: float = 0.0) -> None:
        """Queue `task`; of those that wait the largest is begun first. May be called while results are taken."""
        heapq.heappush(self._queue, (-size, self._count, task))
        self._count += 1

    def results(self) -> Iterator[tuple[T, R | Exception]]:
        """Each task with its result, or with the exception that it raised, until nothing is queued."""
        while self._queue or self._flying or self._suspects:
            self._fill()
            done, _ = wait(self._flying, timeout=TICK, return_when=FIRST_COMPLETED)
            self.tick()
            broken = [future for future in done if _is_lost(future)]
            for future in done:
                if future not in broken:
                    outcome = _outcome(future)
                    yield self._flying.pop(future), outcome
            if broken or (not done and isinstance(self._executor, Losable) and self._executor.is_lost()):
                yield from self._mend()

    def _fill(self) -> None:
        """Put tasks in flight: as many as the window takes, or one suspect alone."""
        if self._suspects:
            if not self._flying:
                self._alone = True
                self._fly(self._suspects.pop())
            return
        if self._alone and self._flying:
            return
        self._alone = False
        while self._queue and len(self._flying) < self.window:
            self._fly(heapq.heappop(self._queue)[2])

    def _fly(self, task: T) -> None:
        future: Future[R] = Future()
        try:
            future = self._hired().submit(self.work, task)
        except BrokenExecutor as error:
            future.set_exception(error)
        except BridgeError as error:
            if not self._broke:
                raise
            self._gone = error
            future.set_exception(error)
        self._flying[future] = task

    def _hired(self) -> Executor:
        """The executor, a new one if need be. Raises what `hire` raises, once and for all."""
        if self._gone is not None:
            raise self._gone
        if self._executor is None:
            self._executor = self.hire()
        return self._executor

    def _mend(self) -> Iterator[tuple[T, R | Exception]]:
        """Dismiss the broken executor. What was in flight becomes suspect; a suspect that flew alone is guilty."""
        self._broke = True
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None
        flying, self._flying = self._flying, {}
        wait(flying, timeout=10.0)
        lost = [task for future, task in flying.items() if not future.done() or _is_lost(future)]
        for future, task in flying.items():
            if task not in lost:
                outcome = _outcome(future)
                yield task, outcome
        if self._alone:
            yield (
                lost[0],
                LostWorkerError(
                    "The worker process died while it had this run (out of memory?).",
                    hint="Try --workers 1, or give the job more memory.",
                ),
            )
        else:
            self._suspects.extend(lost)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the workers go; after an exception (Ctrl-C) without waiting for what is in flight, which is ended."""
        if self._executor is None:
            return
        # A process pool has no public way to end its workers before Python 3.14, would keep this one waiting for them,
        # and forgets them when it is shut down.
        workers = list((getattr(self._executor, "_processes", None) or {}).values())
        self._executor.shutdown(wait=kind is None, cancel_futures=True)
        if kind is not None:
            for worker in workers:
                worker.terminate()
        self._executor = None


def _is_lost(future: Future[R]) -> bool:
    """Whether a future that is done says nothing of its task, only that nobody works on it any more."""
    return future.cancelled() or isinstance(future.exception(), BrokenExecutor)


def _outcome(future: Future[R]) -> R | Exception:
    try:
        return future.result()
    except Exception as error:  # noqa: BLE001 - whatever the task raised is its outcome, told to whoever submitted it
        return error

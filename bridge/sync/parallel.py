"""Work on many runs at once, in batches: in this process, or by a `concurrent.futures` executor.

Executors are threads where waiting for a server dominates, processes of this machine, or a Dask cluster.

Tasks never raise: a run's failure is its report. So whatever a future raises comes from its executor (a killed worker,
a lost scheduler). The runs that were in flight then are tried once more, one by one in fresh executors, so that the one
that kills its worker again is known by name. A run that was exported after all is unchanged the second time.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import threading
from collections import deque
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeAlias, TypeVar
from uuid import uuid4

import msgspec

from bridge.errors import BridgeError, MissingExtraError, TargetUnavailableError
from bridge.interrupts import interrupts_held

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from bridge.exporters.contract import Exporter

P = ParamSpec("P")
Pool: TypeAlias = "tuple[Callable[[], Executor], int]"
"""A maker of executors, and how many batches may be in flight in each."""

T = TypeVar("T")
R = TypeVar("R")

WORTH_WORKERS = 64 << 20
"""Bytes of run directories to read, below which starting worker processes costs more than it saves."""

CONNECT_TIMEOUT = 30.0
"""Seconds within which a Dask scheduler must answer."""

DASK_BATCHES = 64
"""Batches that may be in flight on a Dask cluster."""

TICK = 0.25
"""Seconds between two looks at whether an executor is lost."""


class Workers(msgspec.Struct, frozen=True, kw_only=True):
    """The workers of an export: processes, threads where waiting dominates (default: as many), or a Dask cluster.

    `dask` is a scheduler's address (`tcp://host:8786`) or the path of its scheduler file.
    """

    processes: int = 1
    threads: int | None = None
    dask: str | None = None

    def pool(self, *, count: int, size: int, wait: bool) -> Pool | None:
        """Return the pool for `count` tasks, with `size` bytes of run directories to read; None if we do the work.

        With `wait` the work is mostly waiting for a server.
        """
        if self.dask is not None:
            return functools.partial(DaskExecutor, self.dask), DASK_BATCHES
        if count < 2:
            return None
        if wait:
            # Threads cost nothing to start, and each run waits for the server, however small it is.
            from concurrent.futures import ThreadPoolExecutor

            most = self.threads or self.processes
            return (functools.partial(ThreadPoolExecutor, most), 2 * most) if most > 1 else None
        if self.processes < 2 or size < WORTH_WORKERS:
            return None
        return functools.partial(WorkerProcesses, self.processes), 2 * self.processes


def run_batches(
    waiting: deque[list[T]], work: Callable[[list[T], Exporter], Sequence[R]], exporter: Exporter, pool: Pool | None
) -> Generator[tuple[T, R | Exception], None, None]:
    """Do `work(batch, exporter)` for each batch, in this order, by `pool` or without one in this process.

    Yield each task with its result, or with what its executor raised. Batches are taken out of `waiting`; the caller
    may take some out too. If an executor loses a batch, each of its tasks is tried once more, alone. Raises what the
    first executor's maker raises; later that is the outcome of all tasks that are left.
    """
    if pool is None:
        while waiting:
            batch = waiting.popleft()
            yield from zip(batch, work(batch, exporter), strict=True)
        return
    make_executor, in_flight = pool
    # With a number, since a later export of this process must not get the exporter of this one.
    elsewhere = functools.partial(_work_elsewhere, work, pickle.dumps((uuid4(), exporter)))
    lost, is_first = deque[list[T]](), True
    while waiting or lost:
        try:
            executor = make_executor()
        except BridgeError as error:
            if is_first:
                raise
            left = [task for batch in (*lost, *waiting) for task in batch]
            waiting.clear()
            yield from ((task, error) for task in left)
            return
        is_first, is_alone = False, bool(lost)
        batches = deque([lost.popleft()]) if is_alone else waiting
        with _ended(executor):
            for batch, outcome in _until_broken(executor, batches, elsewhere, in_flight):
                if not isinstance(outcome, Exception):
                    yield from zip(batch, outcome, strict=True)
                elif is_alone:
                    yield from ((task, _explained(outcome)) for task in batch)
                else:
                    lost.extend([task] for task in batch)


def _work_elsewhere(work: Callable[[list[T], Exporter], Sequence[R]], exporter: bytes, batch: list[T]) -> Sequence[R]:
    """Return `work(batch, exporter)`; the exporter comes pickled."""
    return work(batch, _unpickled(exporter))


@functools.lru_cache(maxsize=2)
def _unpickled(exporter: bytes) -> Exporter:
    """Return the exporter, the same one for all batches of an export in one process."""
    made: Exporter = pickle.loads(exporter)[1]  # noqa: S301 - pickled by this program for its own workers
    return made


def _until_broken(
    executor: Executor, batches: deque[T], work: Callable[[T], R], in_flight: int
) -> Iterator[tuple[T, R | Exception]]:
    """Take from `batches` until none is left or the executor is broken. Yield each with its result or error."""
    submitted: dict[Future[R], T] = {}
    broken = False
    while submitted or (batches and not broken):
        while batches and not broken and len(submitted) < in_flight:
            batch = batches.popleft()
            try:
                submitted[executor.submit(work, batch)] = batch
            except Exception as error:  # noqa: BLE001 - whatever the executor raises, the batch is tried once more
                broken = True
                yield batch, error
        done, _ = wait(submitted, timeout=TICK, return_when=FIRST_COMPLETED)
        for future in done:
            outcome: R | Exception
            try:
                outcome = future.result()
            except Exception as error:  # noqa: BLE001 - tasks raise nothing, so this is the executor's
                outcome = error
                broken = broken or isinstance(error, BrokenExecutor)
            yield submitted.pop(future), outcome
        if not done and isinstance(executor, DaskExecutor) and executor.is_lost():
            # What was submitted may never end.
            yield from ((batch, BrokenExecutor("the Dask scheduler is gone")) for batch in submitted.values())
            return


def _explained(error: Exception) -> Exception:
    """Return an error for people; `error` was raised by the executor of a task that it had alone."""
    if isinstance(error, BrokenExecutor):
        return BridgeError(
            "The worker process died while it had this run (out of memory?).",
            hint="Try --workers 1, or give the job more memory.",
        )
    return error


@contextlib.contextmanager
def _ended(executor: Executor) -> Iterator[None]:
    """End the executor; after an exception (Ctrl-C) do not wait for what is in flight, but end the workers."""
    try:
        yield
    except BaseException:
        # A process pool has no public way to end its workers before Python 3.14, and forgets them at its shutdown.
        workers = list((getattr(executor, "_processes", None) or {}).values())
        executor.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()
        raise
    executor.shutdown(wait=True, cancel_futures=True)


class WorkerProcesses(ProcessPoolExecutor):
    """So many worker processes, which end with their parent and leave Ctrl-C to it.

    A terminal sends Ctrl-C to every process of a command; only the parent acts on it. When the parent has ended or was
    killed, each worker ends at once, whatever it is doing.
    """

    def __init__(self, count: int) -> None:
        # Not forked: forking a process that has threads (arrow, a database driver) can hang the child.
        super().__init__(count, mp_context=get_context("spawn"), initializer=_start_watching_parent)

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Submit a task. The first ones start the workers."""
        with interrupts_held():
            return super().submit(fn, *args, **kwargs)


def _start_watching_parent() -> None:
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    # Targets survive this like a kill.
    os._exit(1)


class DaskExecutor(Executor):
    """The Dask cluster whose scheduler is at `address` (`tcp://host:8786`, or the path of its scheduler file).

    Dask does a task whose worker is lost again on another worker. If the scheduler is lost, tasks are cancelled or
    never end (`is_lost`). Raises MissingExtraError without the extra `dask`, TargetUnavailableError if no scheduler
    answers.
    """

    def __init__(self, address: str) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise MissingExtraError.of("dask", purpose="--dask") from error
        where = {"scheduler_file": address} if Path(address).is_file() else {"address": address}
        try:
            self._client = Client(**where, timeout=CONNECT_TIMEOUT)  # type: ignore[no-untyped-call]
        except (OSError, TimeoutError, ValueError) as error:
            raise TargetUnavailableError(
                f"No Dask scheduler answers at {address}: {error}",
                hint="Give the address that dask-scheduler printed, or the path of its scheduler file.",
            ) from error
        # Not pure: two tasks with equal arguments are two tasks, also when one is tried again.
        self._executor: Executor = self._client.get_executor(pure=False)  # type: ignore[no-untyped-call]

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Submit a task to the cluster. Raises distributed's ClosedClientError if its scheduler was lost for good."""
        return self._executor.submit(fn, *args, **kwargs)

    def is_lost(self) -> bool:
        """Return whether the scheduler is gone for good."""
        return self._client.status in ("closing", "closed")

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster, which goes on for others. Without `wait`, what was submitted is cancelled."""
        from distributed.client import ClosedClientError

        # A client that lost its scheduler for good has closed itself, and there is nothing left to cancel.
        with contextlib.suppress(ClosedClientError):
            self._executor.shutdown(wait=wait)
        self._client.close()  # type: ignore[no-untyped-call]

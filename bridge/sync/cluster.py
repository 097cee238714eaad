"""A Dask cluster as an executor: the same work over many machines that see the same file system."""

from __future__ import annotations

import contextlib
import functools
from concurrent.futures import BrokenExecutor, Executor, Future
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from bridge.errors import MissingExtraError, TargetUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ClusterExecutor"]

P = ParamSpec("P")
R = TypeVar("R")

CONNECT_TIMEOUT = 30.0
"""Seconds within which the scheduler must answer."""


class DeliveredError(Exception):
    """No error: a task's result on its way home from a worker (`deliver`)."""

    def __init__(self, value: object) -> None:
        super().__init__(value)
        self.value = value


def deliver(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> tuple[None, DeliveredError, None]:
    """Run a task on a worker; its result in the form in which Dask gives an error.

    Where a worker dies just after its result was fetched, Dask's executor (distributed/cfexecutor.py) takes the result
    for the error of a failed task, and raises the second of its three parts.
    """
    return None, DeliveredError(fn(*args, **kwargs)), None


def hand_over(outcome: Future[R], task: Future[tuple[None, DeliveredError, None]]) -> None:
    """Give `outcome` what became of `task`, which is done."""
    if task.cancelled():
        outcome.cancel()
        outcome.set_running_or_notify_cancel()
        return
    error = task.exception()
    delivered = task.result()[1] if error is None else error
    if isinstance(delivered, DeliveredError):
        outcome.set_result(delivered.value)  # type: ignore[arg-type]  # what `fn` gave
    else:
        outcome.set_exception(delivered)


class ClusterExecutor(Executor):
    """Tasks on the Dask cluster whose scheduler is at `address` (`tcp://host:8786`, or its scheduler file's path).

    A task whose worker is lost is done again by another one; where the scheduler is lost, it is cancelled, or never ends
    (`is_lost`). Raises MissingExtraError without the extra `dask`, and TargetUnavailableError where no scheduler answers.
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
        # Not pure: two tasks with the same arguments are two tasks, also after a retry.
        self._tasks: Executor = self._client.get_executor(pure=False)  # type: ignore[no-untyped-call]

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Put a task on the cluster. Raises BrokenExecutor where its scheduler was lost for good."""
        from distributed.client import ClosedClientError

        try:
            task = self._tasks.submit(deliver, fn, *args, **kwargs)
        except ClosedClientError as error:
            raise BrokenExecutor(str(error)) from error
        outcome: Future[R] = Future()
        task.add_done_callback(functools.partial(hand_over, outcome))
        return outcome

    def is_lost(self) -> bool:
        """Whether the scheduler is gone for good: what was submitted may then wait for ever."""
        return self._client.status in ("closing", "closed")

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster, which goes on for others; without `wait` what was submitted is cancelled."""
        from distributed.client import ClosedClientError

        # A client that lost its scheduler for good has closed itself, and nothing is left that could be cancelled.
        with contextlib.suppress(ClosedClientError):
            self._tasks.shutdown(wait=wait and not cancel_futures)
        self._client.close()  # type: ignore[no-untyped-call]

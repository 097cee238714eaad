"""A Dask cluster as an executor: the same work over many machines that see the same file system."""

from __future__ import annotations

import contextlib
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
            return self._tasks.submit(fn, *args, **kwargs)
        except ClosedClientError as error:
            raise BrokenExecutor(str(error)) from error

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

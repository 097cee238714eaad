"""Run functions in other processes: kill one at some instant, or run several at once."""

from __future__ import annotations

import multiprocessing
import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.context import ForkServerContext

_PRELOADED = [
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow",
    "bridge.exporters.mlflow.exporter",
    "bridge.sync.export",
]


def _context() -> ForkServerContext:
    # A fork server has imported MLflow once: each process then starts in milliseconds and shares nothing with pytest.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def kill_after(seconds: float, function: Callable[..., object], *arguments: Any) -> bool:
    """Run `function` in another process and SIGKILL it after `seconds`; return False if it had ended well before.

    The time counts from the moment when the process is about to call `function`.
    """
    context = _context()
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_announced, args=(there, function, arguments))
    process.start()
    there.close()
    here.recv()
    here.close()
    process.join(seconds)
    killed = process.is_alive()
    process.kill()  # nothing happens to one that has ended by now
    process.join()
    assert killed or process.exitcode == 0, f"ended by itself with {process.exitcode}"
    killed = process.exitcode == -signal.SIGKILL
    process.close()
    return killed


def all_at_once(count: int, function: Callable[..., object], *arguments: Any) -> None:
    """Run `function` in `count` processes that start together, and fail if one of them fails."""
    each_at_once(function, [arguments] * count)


def each_at_once(function: Callable[..., object], each: Sequence[tuple[Any, ...]]) -> None:
    """Run `function` in processes that start together, each with its own arguments."""
    count = len(each)
    context = _context()
    together = context.Barrier(count)
    processes = [context.Process(target=_waited, args=(together, function, arguments)) for arguments in each]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * count


def _waited(together: Any, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    together.wait()
    function(*arguments)


def _announced(there: Any, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    there.send("here")
    there.close()
    function(*arguments)

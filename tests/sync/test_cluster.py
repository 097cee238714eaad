"""What a task of the cluster's executor hands over, also where its worker died just after its result was fetched."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from bridge.sync.cluster import deliver, hand_over
from tests.require import require

if TYPE_CHECKING:
    from collections.abc import Callable


class Fetched:
    """A Dask future whose result has arrived; `status` is what it says of itself a moment later."""

    def __init__(self, status: str, task: Callable[[], Any]) -> None:
        self.status = status
        self._task = task

    async def _result(self, *, raiseit: bool) -> Any:
        assert not raiseit
        try:
            return deliver(self._task)
        except ValueError as error:
            return type(error), error, error.__traceback__


def refuse() -> None:
    raise ValueError("no")


@pytest.mark.parametrize("status", ["finished", "pending", "lost"])
def test_a_result_that_was_fetched_is_the_result(status: str) -> None:
    """Dask's own executor takes it for an error when the worker that had it is gone by then."""
    assert handed_over(Fetched(status, lambda: [1, 2])).result(0) == [1, 2]


def test_an_error_of_the_task_stays_one() -> None:
    """What the task raised is raised."""
    with pytest.raises(ValueError, match="no"):
        handed_over(Fetched("error", refuse)).result(0)


def test_a_cancelled_task_is_cancelled() -> None:
    """Nothing is handed over, and whoever waits is woken."""
    assert handed_over(Fetched("cancelled", list)).cancelled()


def handed_over(fetched: Fetched) -> Future[Any]:
    """What becomes of a task by way of Dask's executor."""
    require(find_spec("distributed") is not None, "Dask")
    from distributed.cfexecutor import _cascade_future

    task: Future[Any] = Future()
    outcome: Future[Any] = Future()
    task.add_done_callback(lambda done: hand_over(outcome, done))

    async def cascade() -> None:
        await _cascade_future(fetched, task)

    with ThreadPoolExecutor(1) as thread:  # where no loop runs, which a browser's tests leave in ours
        thread.submit(asyncio.run, cascade()).result()
    return outcome

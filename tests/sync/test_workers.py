"""The crew: real processes, real deaths."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING

import pytest

from bridge.sync.workers import Crew, LostWorkerError

if TYPE_CHECKING:
    from pathlib import Path


def processes(count: int = 2) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"))


def double(number: int) -> int:
    return 2 * number


def die_at_seven(number: int) -> int:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def die_once(marker: Path) -> str:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return marker.name


def refuse_seven(number: int) -> int:
    if number == 7:
        raise ValueError("no sevens")
    return 2 * number


def sleep_long(started: Path) -> None:
    started.touch()
    time.sleep(60)


def test_every_task_comes_back_with_its_result() -> None:
    """Each task is worked on once."""
    with Crew(processes, double, window=4) as crew:
        for number in range(20):
            crew.submit(number)
        assert sorted(crew.results()) == [(number, 2 * number) for number in range(20)]


def test_the_largest_task_is_begun_first() -> None:
    """Of the tasks that wait the largest goes first."""
    with Crew(functools.partial(ThreadPoolExecutor, 1), double, window=1) as crew:
        for number in (3, 9, 1):
            crew.submit(number, size=number)
        assert [task for task, _ in crew.results()] == [9, 3, 1]


def test_tasks_may_follow_from_results() -> None:
    """A task can be submitted while results are taken."""
    with Crew(functools.partial(ThreadPoolExecutor, 1), double, window=2) as crew:
        crew.submit(1)
        seen = []
        for task, _ in crew.results():
            seen.append(task)
            if task < 4:
                crew.submit(task + 1)
    assert seen == [1, 2, 3, 4]


def test_what_a_task_raises_is_its_outcome() -> None:
    """An exception belongs to its task; the others go on."""
    with Crew(processes, refuse_seven, window=4) as crew:
        for number in range(5, 10):
            crew.submit(number)
        outcomes = dict(crew.results())
    assert {task: str(outcome) for task, outcome in outcomes.items()} == {
        5: "10", 6: "12", 7: "no sevens", 8: "16", 9: "18",
    }  # fmt: skip


def test_a_worker_that_dies_costs_its_own_task_alone() -> None:
    """A killed worker breaks the pool; only the task that kills again when it is alone is lost, and by name."""
    with Crew(processes, die_at_seven, window=4) as crew:
        for number in range(12):
            crew.submit(number)
        outcomes = dict(crew.results())
    assert isinstance(outcomes.pop(7), LostWorkerError)
    assert outcomes == {number: 2 * number for number in range(12) if number != 7}


def test_a_task_whose_worker_was_killed_once_is_done_the_second_time(tmp_path: Path) -> None:
    """A kill from outside, among others in flight, loses nothing."""
    tasks = [tmp_path / "a", tmp_path / "b"]
    tasks[1].touch()
    with Crew(processes, die_once, window=2) as crew:
        for task in tasks:
            crew.submit(task)
        assert sorted(crew.results()) == [(task, task.name) for task in tasks]


def test_an_interrupt_does_not_wait_for_the_workers(tmp_path: Path) -> None:
    """Ctrl-C ends what is in flight at once."""
    started = tmp_path / "started"

    def interrupt() -> None:
        while not started.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    began = time.monotonic()
    crew = Crew(processes, sleep_long, window=2)
    crew.submit(started)
    thread.start()
    with pytest.raises(KeyboardInterrupt), crew:
        list(crew.results())
    thread.join()
    assert time.monotonic() - began < 20

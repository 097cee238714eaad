"""Points replaced within one session are a notice with their number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bridge.model import DeltaKind, NoticeKind
from bridge.options import ContentOptions
from bridge.rundir import ReadOptions, read_delta, read_run, read_whole
from tests.run_dirs import write_metrics, write_sidecar
from tests.rundir.event_writing import START, age, append, scalar, write_events
from tests.rundir.targets import look

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from bridge.model import Delta

HEADER = ("loss", "step")


def superseded(deltas: Iterable[Delta]) -> list[int]:
    """Return the numbers in the notices of superseded points."""
    return [notice.count for delta in deltas for notice in delta.notices if notice.kind is NoticeKind.SUPERSEDED]


def fits(count: int) -> list[list[float]]:
    """Return the rows of several fits of ten steps each, with other values each time."""
    return [[fit + step / 100, step] for fit in range(count) for step in range(10)]


@pytest.mark.parametrize(
    ("sessions", "rows", "count"),
    [
        pytest.param(None, fits(3), 20, id="a CSVLogger's directory is one session"),
        pytest.param([0, 10, 20], fits(3), 0, id="a requeue replaces points of an earlier session"),
        pytest.param([0, 10], fits(3), 10, id="a requeue and two fits"),
        pytest.param([], fits(3), 0, id="the original says nothing of sessions"),
        pytest.param([0], [[1.0, 0], [1.0, 0], [2.0, 1]], 0, id="equal values"),
    ],
)
@pytest.mark.parametrize("budget", [1, 1 << 20])
def test_points_replaced_within_a_session_are_counted(
    tmp_path: Path, sessions: list[int] | None, rows: list[list[float]], count: int, budget: int
) -> None:
    """Only another value at the same step of the same session supersedes a point."""
    if sessions is not None:
        write_sidecar(tmp_path, sessions=[{"rows": first} for first in sessions])
    write_metrics(tmp_path, HEADER, rows)
    run = read_run(tmp_path)
    for options in (ReadOptions(ordered=True), ReadOptions(replaces=True)):
        assert superseded(read_whole(run, ContentOptions(), options, budget=budget)) == [count] * (count > 0)
        assert superseded([read_delta(run, None, ContentOptions(), options, budget=budget)]) == [count] * (count > 0)


def test_a_notice_tells_of_the_new_points_only(tmp_path: Path) -> None:
    """An export counts the points that its new rows replace."""
    write_sidecar(tmp_path, sessions=[{"rows": 0}])
    write_metrics(tmp_path, HEADER, fits(2))
    first = look(tmp_path, replaces=True)
    write_metrics(tmp_path, (), fits(3)[20:], append=True)
    second = look(tmp_path, first.after, replaces=True)
    assert (superseded([first]), superseded([second])) == ([10], [10])


def test_each_event_file_is_a_session(tmp_path: Path) -> None:
    """A start that goes on and replaces a point of an earlier start's file supersedes nothing."""
    write_events(tmp_path, 0, [("loss", step, 1.0, START + step) for step in range(5)])
    newest = write_events(tmp_path, 1, [("loss", 5, 1.0, START + 9)])
    age(tmp_path)
    first = look(tmp_path, replaces=True)
    append(newest, scalar("loss", 3, 2.0, START + 10))
    age(tmp_path)
    second = look(tmp_path, first.after, replaces=True)
    assert (second.kind, second.replace_from, superseded([second])) == (DeltaKind.REWIND, 3, [])

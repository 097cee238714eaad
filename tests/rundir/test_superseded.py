"""Points replaced within one session are a notice with their number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bridge.model import NoticeKind
from bridge.options import ContentOptions
from bridge.rundir import ReadOptions, read_delta, read_run, read_whole
from tests.run_dirs import CREATED_S, make_run, write_metrics, write_sidecar

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from bridge.model import Delta

HEADER = ("loss", "step", "wall_time")


def superseded(deltas: Iterable[Delta]) -> list[int]:
    """Return the numbers in the notices of superseded points."""
    return [notice.count for delta in deltas for notice in delta.notices if notice.kind is NoticeKind.SUPERSEDED]


def fits(count: int) -> list[list[float]]:
    """Return the rows of several fits of ten steps each, with other values each time."""
    return [[fit + step / 100, step, CREATED_S + 10 * fit + step] for fit in range(count) for step in range(10)]


@pytest.mark.parametrize("budget", [1, 1 << 20])
@pytest.mark.parametrize("options", [ReadOptions(ordered=True), ReadOptions(replaces=True)])
def test_three_fits_on_one_logger(tmp_path: Path, options: ReadOptions, budget: int) -> None:
    """Three fits of ten steps in one CSVLogger directory supersede 20 points."""
    run_dir = tmp_path / "version_0"
    run_dir.mkdir()
    write_metrics(run_dir, HEADER[:2], [row[:2] for row in fits(3)])
    run = read_run(run_dir)
    assert superseded(read_whole(run, ContentOptions(), options, budget=budget)) == [20]
    assert superseded([read_delta(run, None, ContentOptions(), options, budget=budget)]) == [20]


def test_a_notice_tells_of_the_new_points_only(tmp_path: Path) -> None:
    """An export counts the points that its new rows replace."""
    run_dir = make_run(tmp_path / "a", sessions=[{"rows": 0}])
    write_metrics(run_dir, HEADER, fits(2))
    options = ReadOptions(replaces=True)
    first = read_delta(read_run(run_dir), None, ContentOptions(), options)
    write_metrics(run_dir, (), fits(3)[20:], append=True)
    second = read_delta(read_run(run_dir), first.after, ContentOptions(), options)
    assert (superseded([first]), superseded([second])) == ([10], [10])


def test_a_requeue_is_no_loss(tmp_path: Path) -> None:
    """Points that a later session replaces are not counted."""
    run_dir = make_run(tmp_path / "a", sessions=[{"rows": 0}, {"rows": 10}, {"rows": 20}])
    write_metrics(run_dir, HEADER, fits(3))
    assert superseded(read_whole(read_run(run_dir), ContentOptions(), ReadOptions())) == []
    write_sidecar(run_dir, sessions=[{"rows": 0}, {"rows": 10}])
    assert superseded(read_whole(read_run(run_dir), ContentOptions(), ReadOptions())) == [10]


def test_the_original_says_nothing_of_sessions(tmp_path: Path) -> None:
    """Without sessions in the sidecar a rewind counts as a requeue."""
    run_dir = make_run(tmp_path / "a")
    write_metrics(run_dir, HEADER, fits(3))
    assert superseded(read_whole(read_run(run_dir), ContentOptions(), ReadOptions())) == []


def test_a_repeated_value_is_no_loss(tmp_path: Path) -> None:
    """An equal value at the same step replaces nothing."""
    run_dir = make_run(tmp_path / "a", sessions=[{"rows": 0}])
    write_metrics(run_dir, HEADER, [[1.0, 0, CREATED_S], [1.0, 0, CREATED_S + 1], [2.0, 1, CREATED_S + 2]])
    assert superseded(read_whole(read_run(run_dir), ContentOptions(), ReadOptions())) == []

"""Two readers of metrics.csv that share nothing: the plain one of verify, and the fast one of exports, must agree."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bridge.cursor import ContentOptions
from bridge.rundir import read_run, read_whole
from bridge.rundir.wanted import ReadOptions
from bridge.sync import truth
from bridge.sync.export import export_runs
from bridge.sync.verify import verify_runs
from tests.memory_exporter import MEMORY, MemoryExporter
from tests.run_dirs import write_sidecar

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bridge.exporters.contract import Capabilities
    from bridge.model import Delta

Points: TypeAlias = "dict[str, list[tuple[int, str, str]]]"
"""By metric: step, value and time as text (so that NaN equals NaN and -0.0 is not 0.0), sorted."""

NUMBERS = st.sampled_from(
    ["0.1", "1", "1", "2", "nan", "inf", "-inf", "-0.0", "0.0", "1e-320", "9007199254740993", "True"]
)
CELLS = st.one_of(NUMBERS, st.just(""), st.sampled_from(["False", "text", '"te,xt"', '"two\nlines"', " 3", "1_000"]))
STEPS = st.one_of(
    st.integers(0, 6).map(str),
    st.sampled_from(["", "-1", "3.5", "x", "9223372036854775807", "9223372036854775808", " 2", "1_0"]),
)
TIMES = st.one_of(
    st.integers(1_775_822_400, 1_775_822_500).map(str),
    st.sampled_from(["", "later", "1775822400.25", "1e300", "-0.5", "inf", "nan"]),
)
ROWS = st.builds(lambda *cells: ",".join(cells), CELLS, CELLS, STEPS, TIMES)
GOOD_ROWS = st.builds(
    lambda *cells: ",".join(cells), NUMBERS, NUMBERS, st.integers(0, 6).map(str), st.just("1775822400.25")
)
ODD_LINES = st.sampled_from(
    ["1", "1,2,3,4,5", "b,a,step,wall_time", "a,step,wall_time", "a,b,step,wall_time", '"1","2","3","4"']
)
LINES = st.lists(st.one_of(GOOD_ROWS, GOOD_ROWS, ROWS, ODD_LINES), max_size=25)
NEWLINES = st.sampled_from(["\r\n", "\n"])

ALL_WANTED = {
    "anything": ReadOptions(),
    "ordered": ReadOptions(ordered=True),
    "removals": ReadOptions(removals=True),
    "small deltas": ReadOptions(limit=3),
}


def csv_of(lines: list[str], newline: str) -> bytes:
    return newline.join(["a,b,step,wall_time", *lines, ""]).encode()


def write(folder: Path, data: bytes) -> Path:
    path = write_sidecar(folder / "run")
    (path / "metrics.csv").write_bytes(data)
    return path


def of_truth(read: truth.Truth) -> Points:
    return {
        name: sorted(_rows(series.step.tolist(), series.value.tolist(), series.time.tolist()), key=_step_and_value)
        for name, series in read.series.items()
    }


def of_deltas(deltas: Iterable[Delta]) -> Points:
    points: Points = {}
    for delta in deltas:
        for block in delta.blocks:
            for number, name in enumerate(block.names):
                here = block.present[number]
                columns = (block.step[here], block.values[number][here], block.time[here])
                points.setdefault(name, []).extend(_rows(*(column.tolist() for column in columns)))
    return {name: sorted(rows, key=_step_and_value) for name, rows in points.items() if rows}


def _step_and_value(row: tuple[int, str, str]) -> tuple[int, str]:
    """Equal points stay in the order of their rows: of their times some are estimated, which one reader does not do."""
    return row[:2]


def _rows(steps: list[int], values: list[float], times: list[float]) -> list[tuple[int, str, str]]:
    return [(step, str(value), str(time)) for step, value, time in zip(steps, values, times, strict=True)]


def assert_same(found: Points, expected: Points) -> None:
    """Equal, but that a time which the source does not say may have been estimated."""
    assert {name: [row[:2] for row in rows] for name, rows in found.items()} == {
        name: [row[:2] for row in rows] for name, rows in expected.items()
    }
    for name, rows in expected.items():
        for mine, theirs in zip(rows, found[name], strict=True):
            if not math.isnan(float(mine[2])):
                assert mine == theirs


@pytest.mark.parametrize("wanted", ALL_WANTED.values(), ids=ALL_WANTED)
@given(lines=LINES, newline=NEWLINES, cut=st.integers(0, 40))
@example(lines=["1,,0,", "1,,0,", "2,,0,", "1,,0,"], newline="\r\n", cut=0)
@settings(max_examples=60, deadline=None)
def test_both_readers_leave_the_same_points(lines: list[str], newline: str, cut: int, wanted: ReadOptions) -> None:
    """Of any file, torn anywhere near its end, both readers leave the same points and number of rows."""
    data = csv_of(lines, newline)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), data[: len(data) - cut])
        deltas = list(read_whole(read_run(path), ContentOptions(), wanted))
        read = truth.read(path)
        assert_same(of_deltas(deltas), of_truth(read))
        assert deltas[-1].after.rows == read.rows


KINDS: dict[str, dict[str, object]] = {
    "replaces": {},
    "ordered": {"ordered_steps": True, "removes_points": False},
    "rebuilds": {"removes_points": False, "removes_media": False},
    "holds back": {"removes_points": False, "holds_back": True, "points_a_delta": 4},
}


def capabilities(kind: str) -> Capabilities:
    from dataclasses import replace

    return replace(MEMORY, **KINDS[kind])  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@given(lines=LINES, cuts=st.lists(st.floats(0, 1), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_any_history_of_exports_verifies(lines: list[str], cuts: list[float], kind: str) -> None:
    """However a file grows between exports, torn in the middle or not, after each export verify finds it equal."""
    chosen = capabilities(kind)
    data = csv_of(lines, "\r\n")
    exporter = MemoryExporter(capabilities=chosen)
    with tempfile.TemporaryDirectory() as folder:
        for part in [*sorted(cuts), 1.0]:
            path = write(Path(folder), data[: round(part * len(data))])
            report = export_runs([path], exporter)
            assert [run.reason for run in report.runs if run.failed] == []
            checks = verify_runs([path], exporter, None).runs
            assert [(str(check.verdict), check.reason, check.first) for check in checks] == [("=", "", ())]

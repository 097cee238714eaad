"""The format's table of cases: each folder of tests/golden is a small run directory with its expected content."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bridge.options import ContentOptions
from bridge.rundir import ReadOptions, read_points, read_run, read_whole
from tests.rundir.targets import events_of

if TYPE_CHECKING:
    from bridge.model import Delta, Run

GOLDEN = Path(__file__).parent.parent / "golden"
EXPECTED: dict[str, dict[str, Any]] = {
    path.parent.name: json.loads(path.read_text()) for path in sorted(GOLDEN.glob("*/expected.json"))
}


def cases_with(*fields: str) -> pytest.MarkDecorator:
    """Return the cases that specify one of `fields`."""
    chosen = [name for name, expected in EXPECTED.items() if any(field in expected for field in fields)]
    assert chosen
    return pytest.mark.parametrize("case", chosen, indirect=True)


class Case:
    """A copy of one case with the file ages that it specifies."""

    def __init__(self, name: str, folder: Path) -> None:
        self.expected = EXPECTED[name]
        self.path = folder / "parent" / "case"
        shutil.copytree(GOLDEN / name / "run", self.path)
        self.now = time.time()
        for file in self.path.rglob("*"):
            # An hour before the run began, so that nothing is fresh by accident of the checkout.
            age = self.expected.get("ages", {}).get(file.relative_to(self.path).as_posix(), None)
            then = 1775818800.0 if age is None else self.now - age
            os.utime(file, (then, then))

    def run(self) -> Run:
        """Return the run; the minute's allowance for unknown clocks is taken from the time-out."""
        return read_run(self.path, heartbeat_timeout=120.0)

    def whole(self, *, ordered: bool = False, limit: int = 1_000_000) -> list[Delta]:
        """Return all deltas."""
        return list(read_whole(self.run(), ContentOptions(), ReadOptions(ordered=ordered, limit=limit)))

    def about(self, value: Any) -> Any:
        """Return a time that the case gives as an age of a file."""
        return (
            pytest.approx(self.now - value["age"], abs=0.001) if isinstance(value, dict) and "age" in value else value
        )


@pytest.fixture
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    """Return each case in turn."""
    return Case(request.param, tmp_path)


def value_of(text: float | str) -> str:
    """Return a value in a form that compares bit for bit, except for the sign of NaN."""
    if isinstance(text, str):
        return "nan" if text == "nan" else float.fromhex(text).hex()
    return float(text).hex()


@cases_with("series")
def test_series(case: Case) -> None:
    """The points that count, with their times, are those of the case, bit for bit."""
    expected = {
        name: [(step, then, value_of(value)) for step, then, value in points]
        for name, points in case.expected["series"].items()
    }
    for limit in (1, 2, 1_000_000):
        found: dict[str, list[tuple[int, float, str]]] = {}
        for _, step, then, values in events_of(case.whole(limit=limit)):
            for name, value in values:
                found.setdefault(name, []).append((step, then, value))
        assert {name: sorted(points) for name, points in found.items()} == expected


@cases_with("series")
def test_all_points_at_once(case: Case) -> None:
    """The same points are read at once, with times where metrics.csv has them, all metrics or only one."""
    run = case.run()
    for only in (None, *([name] for name in case.expected["series"])):
        series, _ = read_points(run, ContentOptions(), only=only)
        assert series.keys() == set(case.expected["series"] if only is None else only)
        for name, one in series.items():
            times = one.time.tolist() if run.time_column else [then for _, then, _ in case.expected["series"][name]]
            found = zip(one.step.tolist(), times, map(value_of, one.value.tolist()), strict=True)
            assert list(found) == [(step, then, value_of(value)) for step, then, value in case.expected["series"][name]]


@cases_with("events")
def test_order(case: Case) -> None:
    """The events of an ordered target come in the order of the case."""
    found = [(row, step, [name for name, _ in values]) for row, step, _, values in events_of(case.whole(ordered=True))]
    assert found == [(row, step, names) for row, step, names in case.expected["events"]]


@cases_with("notices")
def test_notices(case: Case) -> None:
    """The notices name and count what could not be read as a point."""
    expected = case.expected["notices"]
    found = [
        [notice.kind.value, notice.what, notice.detail, notice.count]
        for delta in case.whole()
        for notice in delta.notices
    ]
    assert [notice[: len(wanted)] for notice, wanted in zip(found, expected, strict=True)] == expected


@cases_with("rows")
def test_rows(case: Case) -> None:
    """All rows of the file count, bad ones included."""
    assert case.whole()[-1].after.rows == case.expected["rows"]


@cases_with("media")
def test_media(case: Case) -> None:
    """The media events that count have the formats of their files' bytes."""
    found = [
        [event.line, event.tag, event.step, event.index, event.type.value, event.format, event.time, event.caption]
        for delta in case.whole()
        for event in delta.media
    ]
    expected = [[case.about(item) for item in event] for event in case.expected["media"]]
    assert found == expected


@cases_with("run")
def test_run(case: Case) -> None:
    """Status, times, names and params are those of the case."""
    run = case.run()
    for name, wanted in case.expected["run"].items():
        found = getattr(run, name)
        if name == "tags":
            found = list(found)
        elif name == "sessions":
            found = len(found)
        assert found == case.about(wanted), name
    if "run_losses" in case.expected:
        assert [[notice.kind.value, notice.what] for notice in run.notices] == case.expected["run_losses"]
    assert run.parent == "parent"

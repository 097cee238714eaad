"""`--max-points`: buckets of 2^k rows, counted from row 0, keep the extremes of each metric and its last point."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import pytest

from bridge.cursor import ContentOptions
from bridge.model import DeltaKind
from bridge.rundir import delta as delta_module
from bridge.rundir import read_delta, read_run, read_whole
from bridge.rundir.thin import bucket_bits
from bridge.rundir.wanted import ReadOptions
from tests.run_dirs import CREATED_S, write_metrics, write_sidecar
from tests.rundir.oracle import Row, events, events_of
from tests.rundir.targets import Target

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta_module, "BETWEEN_LOOKS", 0.0)


def run_of(path: Path, rows: list[Row], *, status: str = "completed") -> Path:
    """A run directory with `rows`, of metrics a and b."""
    write_sidecar(path, status=status)
    (path / "heartbeat").touch()
    cells = [[row.cells.get("a"), row.cells.get("b"), row.step, row.time] for row in rows]
    write_metrics(path, ("a", "b", "step", "wall_time"), cells)
    return path


def thin(rows: list[Row], bits: int) -> list[tuple[int, str]]:
    """(row, metric) of the points that the buckets keep, in plain Python."""
    kept = set()
    buckets: dict[tuple[str, int], list[tuple[int, int, float]]] = {}
    for row, step, _, values in events(rows):
        for name, value in values:
            buckets.setdefault((name, row >> bits), []).append((row, step, float.fromhex(value)))
    for (name, _), points in buckets.items():
        numbers = [(value, row) for row, _, value in points if not math.isnan(value)]
        nans = [row for row, _, value in points if math.isnan(value)]
        kept |= {(min(numbers)[1], name)} if numbers else set()
        kept |= {(min((-value, row) for value, row in numbers)[1], name)} if numbers else set()
        kept |= {(max((step, row) for row, step, _ in points)[1], name)}
        kept |= {(min(nans), name)} if nans else set()
    return sorted(kept)


def kept(target: Target) -> list[tuple[int, str]]:
    """(row, metric) of what a target holds."""
    return sorted((row, name) for row, _, _, values in target.events for name, _ in values)


def wander(count: int, seed: int, *, rewinds: bool) -> list[Row]:
    """Rows of two metrics, one of them sparse, with NaN and equal values in them."""
    chance = random.Random(seed)
    rows, step = [], 0
    for number in range(count):
        step += 1 if not rewinds or chance.random() < 0.9 else -chance.randint(0, 9)
        cells: dict[str, float | str] = {"a": chance.choice([1.0, 2.0, 3.0, chance.random(), math.nan, math.inf])}
        if chance.random() < 0.2:
            cells["b"] = chance.random()
        rows.append(Row(step=step, time=CREATED_S + number, cells=cells))
    return rows


def test_the_size_of_buckets() -> None:
    """The least k that leaves at most the wanted number of points of a metric that every row has."""
    assert [bucket_bits(rows, 12) for rows in (0, 1, 12, 13, 16, 17, 32, 33, 64, 65)] == [0, 0, 0, 2, 2, 3, 3, 4, 4, 5]
    assert bucket_bits(1_000_000, 1000) == 12
    assert bucket_bits(10, 1) == 4


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_a_thinned_target_is_a_thinned_clean_read(tmp_path: Path, seed: int, ordered: bool) -> None:
    """Whatever the exports, a target ends with what the buckets of all rows keep, rewinds or not."""
    chance = random.Random(seed)
    rows = wander(150, seed, rewinds=seed % 2 == 1)
    target = Target(
        ReadOptions(ordered=ordered, removals=not ordered, limit=chance.choice([10, 1000])),
        ContentOptions(max_points=40),
    )
    for cut in sorted(chance.randint(0, len(rows)) for _ in range(4)):
        target.export(run_of(tmp_path / "run", rows[:cut], status="running"))
        assert target.cursor is not None
        assert target.cursor.rows % (1 << target.cursor.bucket) == 0
    target.export(run_of(tmp_path / "run", rows))
    assert bucket_bits(150, 40) == 4
    assert kept(target) == thin(rows, 4)
    clean = Target(target.wanted, target.content)
    clean.rebuild(tmp_path / "run")
    if ordered:
        assert target.events == clean.events


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    """The points that thinning leaves out are one notice with their number."""
    path = run_of(tmp_path / "run", [Row(step, CREATED_S + step, {"a": float(step)}) for step in range(8)])
    content = ContentOptions(max_points=6)
    for delta in (
        read_delta(read_run(path), None, content, ReadOptions()),
        *read_whole(read_run(path), content, ReadOptions(ordered=True)),
    ):
        assert [(row, step) for row, step, _, _ in events_of([delta])] == [(0, 0), (3, 3), (4, 4), (7, 7)]
        assert [(notice.kind.value, notice.what, notice.count) for notice in delta.notices] == [
            ("left out", "points", 4)
        ]


def test_larger_buckets_are_a_change(tmp_path: Path) -> None:
    """A run that outgrows its buckets is made anew, and so is one that went on after its end."""
    rows = [Row(step, CREATED_S + step, {"a": float(step)}) for step in range(40)]
    content = ContentOptions(max_points=12)
    path = run_of(tmp_path / "run", rows[:30])
    cursor = read_delta(read_run(path), None, content, ReadOptions()).after
    assert (cursor.rows, cursor.bucket) == (30, 3)
    delta = read_delta(read_run(run_of(path, rows[:32])), cursor, content, ReadOptions())
    assert (delta.kind, delta.reason) == (
        DeltaKind.CHANGED,
        "the run went on within a bucket of --max-points 12 that was sent at its end",
    )
    delta = read_delta(read_run(run_of(path, rows)), cursor, content, ReadOptions())
    assert (delta.kind, delta.reason) == (
        DeltaKind.CHANGED,
        "40 rows need buckets of 16 for --max-points 12, not of 8",
    )

"""`--best NAME:max|min` keeps a metric NAME.best whose latest value is the best so far, at its step."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from bridge.errors import RebuildNeededError, UsageError
from bridge.exporters.mlflow import MlflowExporter
from bridge.model import DeltaKind, NoticeKind
from bridge.options import ContentOptions
from bridge.sync.export import Options, export_runs
from bridge.sync.verify import verify_runs
from tests.deltas import block_of, delta_of, make_model_run
from tests.exporters.mlflow.conftest import Store
from tests.run_dirs import CREATED_S, make_run, write_metrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX = ContentOptions(best=("acc:max",))
MIN = ContentOptions(best=("acc:min",))


def rows_of(values: Sequence[float], *, first: int = 0) -> list[Mapping[str, float]]:
    """Return one row per value of `acc`, at rising steps."""
    return [{"step": first + at, "acc": value} for at, value in enumerate(values)]


def latest(store: Store) -> tuple[int, float]:
    """Return step and value of the latest point of acc.best, as MLflow's table of runs shows it."""
    step, value, _ = store.points("acc.best")[-1]
    assert store.run().data.metrics["acc.best"] == value
    return step, value


@pytest.mark.parametrize(
    ("content", "values", "expected"),
    [
        (MAX, [0.1, 0.3, math.nan, 0.3, 0.2], (1, 0.3)),
        (MIN, [0.5, 0.9, 0.4, 0.95, 0.4], (2, 0.4)),
        (MAX, [math.nan, -math.inf, -math.inf], (1, -1.7976931348623157e308)),
        (MAX, [0.5, math.inf, math.inf], (1, 1.7976931348623157e308)),
        (MAX, [math.nan], None),
    ],
)
def test_the_latest_value_is_the_best_at_its_step(
    any_store: Store, content: ContentOptions, values: list[float], expected: tuple[int, float] | None
) -> None:
    """Of equal values the first counts; infinities can be the best and NaN cannot. A metric without any has none."""
    any_store.export(make_model_run(), rows_of(values), content=content)
    assert set(any_store.run().data.metrics) == ({"acc", "acc.best"} if expected else {"acc"})
    assert expected is None or latest(any_store) == expected


def test_a_best_follows_a_growing_run(any_store: Store) -> None:
    """Only a strictly better value replaces the best."""
    seen = []
    for at, value in enumerate([0.5, 0.4, 0.7, 0.7, 0.9]):
        any_store.export(make_model_run(), rows_of([value], first=at), content=MAX)
        seen.append(latest(any_store))
    assert seen == [(0, 0.5), (0, 0.5), (2, 0.7), (2, 0.7), (4, 0.9)]


def test_with_and_without_a_best_a_run_keeps_its_id(any_store: Store) -> None:
    """Adding, dropping or changing --best keeps the run; through a server a dropped one stays."""
    run, other = make_model_run(), ContentOptions(best=("loss:min",))
    rows = [{"step": step, "acc": value, "loss": 1 - value} for step, value in enumerate([0.1, 0.8, 0.3])]
    seen = []
    for content in (MAX, ContentOptions(), other, MAX):
        any_store.export(run, rows if not seen else (), content=content)
        held = any_store.run()
        seen.append((held.info.run_id, sorted(held.data.metrics)))
        assert sorted(any_store.read(run, content).series) == ["acc", "loss"]
    assert len({run_id for run_id, _ in seen}) == 1
    kept = {"acc.best", "loss.best"} if any_store.is_server else set()
    assert [set(names) | kept for _, names in seen] == [
        {"acc", "loss", "acc.best"} | kept,
        {"acc", "loss"} | kept,
        {"acc", "loss", "loss.best"} | kept,
        {"acc", "loss", "acc.best"} | kept,
    ]
    assert latest(any_store) == (1, 0.8)


def test_another_direction_is_taken_where_points_can_be_deleted(any_store: Store) -> None:
    """Another direction applies in a database, and needs a rebuild through a server."""
    run = make_model_run()
    any_store.export(run, rows_of([0.5, 0.1, 0.9]), content=MAX)
    if any_store.is_server:
        with pytest.raises(RebuildNeededError, match="another direction"):
            any_store.export(run, content=MIN)
    else:
        any_store.export(run, content=MIN)
        assert latest(any_store) == (1, 0.1)


def test_a_metric_of_the_runs_own_wins(any_store: Store) -> None:
    """A logged metric named NAME.best wins over ours, with a notice."""
    rows = [{"step": 0, "acc": 0.5, "acc.best": 0.1}]
    applied = any_store.export(make_model_run(), rows, content=MAX)
    assert any_store.run().data.metrics == {"acc": 0.5, "acc.best": 0.1}
    assert [(notice.kind, notice.what) for notice in applied.notices] == [(NoticeKind.LEFT_OUT, "acc.best")]
    other = make_model_run(Path("/runs/other"))
    any_store.export(other, rows_of([0.5]), content=MAX)
    with pytest.raises(RebuildNeededError, match=r"logs acc\.best itself"):
        any_store.export(other, [{"step": 1, "acc": 0.1, "acc.best": 0.1}], content=MAX)


def test_after_a_rewind_the_best_is_that_of_what_counts(store: Store) -> None:
    """In a database a rewind removes a superseded best and restores an earlier one."""
    run = make_model_run()
    store.export(run, rows_of([0.1, 0.3, 0.9]), content=MAX)
    block = block_of([{"step": 2, "acc": 0.2}], first_row=3)
    fields = {"kind": DeltaKind.REWIND, "replace_from": 2, "blocks": (block,)}
    store.export(run, rows_of([0.2], first=2), content=MAX, **fields)
    assert store.points("acc.best") == [(1, 0.3, 1775822401000)]
    assert store.run().data.metrics == {"acc": 0.2, "acc.best": 0.3}


def test_through_a_server_a_best_that_moves_back_needs_a_rebuild(any_store: Store) -> None:
    """A best that moves back needs a rebuild through a server, which cannot delete points."""
    run = make_model_run()
    any_store.export(run, [{"step": 10, "acc": 0.1}, {"step": 30, "acc": 0.7}], content=MAX)
    better_before = [{"step": 25, "acc": 0.9}]
    if any_store.is_server:
        with pytest.raises(RebuildNeededError, match="moved to an earlier step"):
            any_store.export(run, better_before, content=MAX)
        any_store.rebuild(run, [delta_of(run, better_before, content=MAX)], MAX)
    else:
        any_store.export(run, better_before, content=MAX)
    assert latest(any_store) == (25, 0.9)


@pytest.mark.parametrize("text", ["acc", ":max", "acc:best", ""])
def test_a_best_says_which_end_is_best(text: str) -> None:
    """`--best acc` without a direction is wrong usage."""
    with pytest.raises(UsageError, match="does not say which end is best"):
        ContentOptions(best=(text,))
    with pytest.raises(UsageError, match="either its max or its min"):
        ContentOptions(best=("acc:max", "acc:min"))


WORDS = ("nan", "inf", "-inf", "-0.0", "0.0", "0.5", "1", "2.25", "")
"""Cells in which a best is easily mistaken."""


@pytest.mark.parametrize("seed", range(8))
def test_any_growth_ends_with_the_bests_of_one_clean_export(seed: int, tmp_path: Path, sqlite_uri: str) -> None:
    """Any growth, with equal times, infinities, NaN and rewinds, ends with the bests of one clean export."""
    random = Random(seed)
    path, options = tmp_path / "run", Options(content=ContentOptions(best=("x:max", "y:min")))
    make_run(path, [{"x": "", "y": "", "step": 0, "wall_time": CREATED_S}], uid="one", status="running")
    grown = MlflowExporter(tracking_uri=sqlite_uri, experiment="grown")
    step, time = 0, float(CREATED_S)
    for _ in range(random.randint(2, 4)):
        step = max(0, step - random.randint(0, 9))
        rows = []
        for _ in range(random.randint(1, 10)):
            time += random.choice([0, 0, 0.0004, 1])
            step += random.choice([0, 1, 1, 2])
            rows.append([random.choice(WORDS), random.choice(WORDS), step, repr(time)])
        write_metrics(path, [], rows, append=True)
        assert not export_runs([path], grown, options).failed
    clean = MlflowExporter(tracking_uri=sqlite_uri, experiment="clean")
    export_runs([path], clean, options)
    stores = [Store(sqlite_uri, experiment=name) for name in ("grown", "clean")]
    keys = [sorted(store.run().data.metrics) for store in stores]
    assert keys[0] == keys[1]
    for key in keys[0]:
        assert repr(stores[0].points(key)) == repr(stores[1].points(key))
    for exporter in (grown, clean):
        assert [(str(line.verdict), line.differences.first) for line in verify_runs([path], exporter).runs] == [
            ("=", ())
        ]

"""The running best: worked out by hand, and after any growth."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from bridge.cursor import ContentOptions
from bridge.errors import RebuildNeededError, TargetRefusedError, UsageError
from bridge.exporters.mlflow import MlflowExporter
from bridge.exporters.mlflow.best import best_names, running_best
from bridge.model import Block, Delta, Points, Series
from bridge.sync.export import Options, export_runs
from bridge.sync.verify import verify_runs
from tests.exporters.mlflow.by_hand import START, block_of, delta_of, run_of
from tests.run_dirs import CREATED_S, make_run, write_metrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bridge.exporters.mlflow.best import Best
    from tests.exporters.mlflow.conftest import Store

MAX = ContentOptions(best=("acc:max",))


def _best(
    rows: Sequence[Mapping[str, float]], content: ContentOptions = MAX, state: Mapping[str, Any] | None = None
) -> Best:
    return running_best(delta_of(run_of(), rows), content, state or {}, lambda name: None)


def _points(blocks: Sequence[Block]) -> list[tuple[int, float, float]]:
    return [
        (int(step), float(value), float(at))
        for block in blocks
        for step, value, at in zip(block.step, block.values[0], block.values[1], strict=True)
    ]


def test_a_point_each_time_it_improves() -> None:
    """Its value and its step, at the step and time of the improvement; NaN and equal values are none."""
    rows = [{"step": s, "acc": v} for s, v in enumerate([0.1, 0.3, math.nan, 0.3, 0.2, 0.5])]
    best = _best(rows)
    assert best_names(MAX) == ("best/acc", "best_step/acc")
    assert _points(best.blocks) == [(0, 0.1, 0.0), (1, 0.3, 1.0), (5, 0.5, 5.0)]
    assert best.blocks[0].time.tolist() == [START, START + 1, START + 5]


def test_it_goes_on_from_what_the_delta_before_left() -> None:
    """In parts it is the same as in one."""
    values = [0.5, 0.9, 0.4, 0.95, 0.3, 0.2, 0.1]
    rows = [{"step": step, "loss": value} for step, value in enumerate(values)]
    content = ContentOptions(best=("loss:min",))
    first = _best(rows[:3], content)
    second = _best(rows[3:], content, first.state)
    assert _points([*first.blocks, *second.blocks]) == _points(_best(rows, content).blocks)
    assert _points(second.blocks) == [(4, 0.3, 4.0), (5, 0.2, 5.0), (6, 0.1, 6.0)]


def test_a_metric_that_is_not_there_adds_nothing() -> None:
    """Not even a state."""
    best = _best([{"step": 0, "loss": 1.0}])
    assert (best.blocks, best.removed, best.state) == ((), None, {})


def test_the_first_number_is_the_first_best() -> None:
    """Also the least there is, and whether or not something better follows in the same delta; infinities are numbers."""
    rows = [{"step": s, "acc": v} for s, v in enumerate([math.nan, -math.inf, -math.inf, 0.5, math.inf, math.inf])]
    best = _best(rows)
    assert _points(best.blocks) == [(1, -math.inf, 1.0), (3, 0.5, 3.0), (4, math.inf, 4.0)]
    parts = [_best(rows[:2]), _best(rows[2:], state=_best(rows[:2]).state)]
    assert _points([block for part in parts for block in part.blocks]) == [
        (1, -math.inf, 1.0),
        (3, 0.5, 3.0),
        (4, math.inf, 4.0),
    ]


def test_the_last_best_stands_last() -> None:
    """A best found at a lower step than the one before it stands at that one's step, which is where MLflow looks."""
    rows = [{"step": 10, "acc": 0.1}, {"step": 30, "acc": 0.7}, {"step": 25, "acc": 0.9}, {"step": 40, "acc": 0.8}]
    best = _best(rows)
    assert _points(best.blocks) == [(10, 0.1, 10.0), (30, 0.7, 30.0), (30, 0.9, 25.0)]
    parts = [_best(rows[:2]), _best(rows[2:], state=_best(rows[:2]).state)]
    assert _points([block for part in parts for block in part.blocks]) == _points(best.blocks)


def test_a_best_that_was_rewound_is_made_anew() -> None:
    """The superseded best goes, and what remains is what a clean export would have."""
    held = {
        "best/acc": Series("best/acc", np.array([0, 1]), START + np.array([0.0, 1.0]), np.array([0.1, 0.9])),
        "best_step/acc": Series("best_step/acc", np.array([0, 1]), START + np.array([0.0, 1.0]), np.array([0.0, 1.0])),
    }
    best = running_best(_rewound(bests=(block_of([{"step": s, "acc": v} for s, v in COUNTING]),)), MAX, NINE, held.get)
    assert _points(best.blocks) == [(0, 0.1, 0.0), (1, 0.3, 1.0), (2, 0.6, 2.0)]
    assert best.removed is not None
    assert (best.removed.names, len(best.removed)) == (("best/acc", "best_step/acc"), 4)
    assert best.state == {"acc": [(0.6).hex(), 2]}


def test_without_all_points_a_rewound_best_asks_for_a_rebuild() -> None:
    """From the new points alone it cannot be known what the best of the old ones is."""
    with pytest.raises(RebuildNeededError):
        running_best(_rewound(), MAX, NINE, {}.get)


NINE = {"acc": [(0.9).hex(), 1]}
COUNTING = [(0, 0.1), (1, 0.3), (2, 0.6)]


def _rewound(**fields: Any) -> Delta:
    """Steps 1 and 2 come again."""
    gone = Points(
        ("acc",), np.array([0, 0], np.int32), np.array([1, 2]), START + np.array([1.0, 2.0]), np.array([0.9, 0.2])
    )
    before = delta_of(run_of(), [{"step": 0, "acc": 0.1}] * 3).after
    rows = [{"step": step, "acc": value} for step, value in COUNTING[1:]]
    return delta_of(run_of(), rows, before=before, removed=gone, **fields)


@pytest.mark.parametrize("text", ["acc", ":max", "acc:best", ""])
def test_a_best_says_which_end_is_best(text: str) -> None:
    """`--best acc` could mean either."""
    with pytest.raises(UsageError, match="does not say which end is best"):
        ContentOptions(best=(text,))
    with pytest.raises(UsageError, match="either its max or its min"):
        ContentOptions(best=("acc:max", "acc:min"))


WORDS = ("nan", "inf", "-inf", "-0.0", "0.0", "0.5", "1", "2.25", "")
"""Cells in which a best is easily mistaken."""


@pytest.mark.parametrize("seed", range(8))
def test_any_growth_ends_with_the_bests_of_one_clean_export(seed: int, tmp_path: Path, sqlite_uri: str) -> None:
    """Rows of one millisecond, infinities, NaN and rewinds, exported in parts: the same rows of both of MLflow's tables."""
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
    assert _rows(sqlite_uri, "grown") == _rows(sqlite_uri, "clean")
    for exporter in (grown, clean):
        assert [(str(line.verdict), line.differences.first) for line in verify_runs([path], exporter).runs] == [
            ("=", ())
        ]


def _rows(uri: str, experiment: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
        return [
            row
            for table in ("metrics", "latest_metrics")
            for row in connection.execute(
                f"SELECT m.key, m.step, m.timestamp, m.value, m.is_nan FROM {table} m JOIN runs r USING (run_uuid) "
                "JOIN experiments e USING (experiment_id) WHERE e.name = ? ORDER BY 1, 2, 3, 4, 5",
                [experiment],
            )
        ]


def test_a_metric_that_has_the_name_of_a_best_is_refused(store: Store) -> None:
    """A run that logs `best/acc` itself fails by name with --best acc:max: two series are never made one."""
    with pytest.raises(TargetRefusedError, match=r"logs a metric named best/acc itself"):
        store.export(run_of(), [{"step": 0, "acc": 0.5, "best/acc": 0.1}], content=MAX)
    assert [key for run in store.runs() for key in run.data.metrics] == []

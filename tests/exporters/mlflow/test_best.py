"""The running best, without a database."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from bridge.cursor import Shape
from bridge.exporters.mlflow.best import best_names, running_best
from bridge.model import Block, Points, Series
from tests.exporters.mlflow.by_hand import START, delta_of, run_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bridge.exporters.mlflow.best import Best

MAX = Shape(best=("acc:max",))


def _best(rows: Sequence[Mapping[str, float]], shape: Shape = MAX, state: Mapping[str, str] | None = None) -> Best:
    return running_best(delta_of(run_of(), rows), shape, state or {}, lambda name: None)


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
    shape = Shape(best=("loss:min",))
    first = _best(rows[:3], shape)
    second = _best(rows[3:], shape, first.state)
    assert _points([*first.blocks, *second.blocks]) == _points(_best(rows, shape).blocks)
    assert _points(second.blocks) == [(4, 0.3, 4.0), (5, 0.2, 5.0), (6, 0.1, 6.0)]


def test_a_metric_that_is_not_there_adds_nothing() -> None:
    """Not even a state."""
    best = _best([{"step": 0, "loss": 1.0}])
    assert (best.blocks, best.removed, best.state) == ((), None, {})


def test_a_best_that_was_rewound_is_made_anew() -> None:
    """The superseded best goes, and what remains is what a clean export would have."""
    held = {
        "acc": Series("acc", np.array([0, 1, 2]), START + np.array([0.0, 1.0, 2.0]), np.array([0.1, 0.9, 0.2])),
        "best/acc": Series("best/acc", np.array([0, 1]), START + np.array([0.0, 1.0]), np.array([0.1, 0.9])),
        "best_step/acc": Series("best_step/acc", np.array([0, 1]), START + np.array([0.0, 1.0]), np.array([0.0, 1.0])),
    }
    gone = Points(
        ("acc",), np.array([0, 0], np.int32), np.array([1, 2]), START + np.array([1.0, 2.0]), np.array([0.9, 0.2])
    )
    before = delta_of(run_of(), [{"step": 0, "acc": 0.1}] * 3).after
    rows = [{"step": 1, "acc": 0.3}, {"step": 2, "acc": 0.6}]
    delta = delta_of(run_of(), rows, before=before, removed=gone)
    best = running_best(delta, MAX, {"acc": (0.9).hex()}, held.get)
    assert _points(best.blocks) == [(0, 0.1, 0.0), (1, 0.3, 1.0), (2, 0.6, 2.0)]
    assert best.removed is not None
    assert (best.removed.names, len(best.removed)) == (("best/acc", "best_step/acc"), 4)
    assert best.state == {"acc": (0.6).hex()}

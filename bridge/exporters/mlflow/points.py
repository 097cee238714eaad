"""Points through MLflow's API: batches within its limits on count and bytes, and what was sent before left out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from bridge.exporters.mlflow.rows import milliseconds
from bridge.model import Series

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlflow.entities import Metric

    from bridge.model import Block

__all__ = ["BATCH_BYTES", "BATCH_POINTS", "held_points", "metric_batches", "series_of"]

BATCH_POINTS = 1000
"""Points that MLflow takes in one request."""

BATCH_BYTES = 900_000
"""Bytes of one request: MLflow takes 1,000,000."""

_FRAME = 120
"""Bytes that a point takes in a request beside its key: field names, value, time and step at their longest."""


def metric_batches(
    blocks: Sequence[Block],
    names: Mapping[str, str],
    *,
    held: Mapping[str, set[tuple[int, int, float]]] | None = None,
) -> Iterator[list[Metric]]:
    """The points of `blocks` in row order, as many at once as one request takes; `names` maps a metric to its key.

    Points that `held` has (by key: timestamp in milliseconds, step, value, with NaN as 0.0) are left out.
    """
    from mlflow.entities import Metric

    batch: list[Metric] = []
    size = 0
    weights = {key: len(json.dumps(key)) + _FRAME for key in names.values()}
    for key, value, timestamp, step in _in_row_order(blocks, names):
        if held and (timestamp, step, _comparable(value)) in held.get(key, ()):
            continue
        if batch and (len(batch) == BATCH_POINTS or size + weights[key] > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(Metric(key, value, timestamp, step))
        size += weights[key]
    if batch:
        yield batch


def held_points(history: Sequence[Metric]) -> set[tuple[int, int, float]]:
    """The points of one key as `metric_batches` compares them."""
    return {(point.timestamp, point.step, _comparable(point.value)) for point in history}


def series_of(name: str, history: Sequence[Metric]) -> Series:
    """The points of one key as a series, by step and then by time."""
    points = sorted(history, key=lambda point: (point.step, point.timestamp))
    return Series(
        name=name,
        step=np.array([point.step for point in points], dtype=np.int64),
        time=np.array([point.timestamp for point in points], dtype=np.float64) / 1000.0,
        value=np.array([point.value for point in points], dtype=np.float64),
    )


def _in_row_order(blocks: Sequence[Block], names: Mapping[str, str]) -> Iterator[tuple[str, float, int, int]]:
    for block in blocks:
        keys = [names.get(name, name) for name in block.names]
        rows, columns = np.nonzero(block.present.T)
        values = block.values.T[rows, columns].tolist()
        timestamps = milliseconds(block.time)[rows].tolist()
        steps = block.step[rows].tolist()
        for column, value, timestamp, step in zip(columns.tolist(), values, timestamps, steps, strict=True):
            yield keys[column], value, timestamp, step


def _comparable(value: float) -> float:
    """A value as MLflow gives it back: infinities clipped; NaN, which equals nothing, as a number nobody logs."""
    if value != value:  # noqa: PLR0124 - the quickest test for NaN
        return -1.2345e-300
    greatest = 1.7976931348623157e308
    return max(-greatest, min(greatest, value))

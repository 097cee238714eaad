"""Points through MLflow's API: batches within its limits on count and bytes, and what was sent before left out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from bridge.exporters.mlflow.rows import slices
from bridge.model import Series

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlflow.entities import Metric

    from bridge.exporters.mlflow.rows import KeyRows

__all__ = ["BATCH_BYTES", "BATCH_POINTS", "batches_of", "body_of", "entities_of", "series_of", "without_held"]

BATCH_POINTS = 1000
"""Points that MLflow takes in one request."""

BATCH_BYTES = 900_000
"""Bytes of one request: MLflow takes 1,000,000."""

_FRAME = 120
"""Bytes that a point takes in a request beside its key: field names, value, time and step at their longest."""


def batches_of(rows: Sequence[KeyRows]) -> Iterator[list[KeyRows]]:
    """`rows` in order, as many at once as one request takes."""
    longest = max((len(_text(part.key).encode()) for part in rows), default=0)
    return slices(rows, min(BATCH_POINTS, BATCH_BYTES // (longest + _FRAME)))


def body_of(run_id: str, rows: Sequence[KeyRows]) -> bytes:
    """The body of a request to `runs/log-batch` that holds these rows: written as text from the columns."""
    points: list[str] = []
    for part in rows:
        head = f'{{"key":{_text(part.key)},"value":'
        values = [repr(value) for value in part.value.tolist()]
        for at in np.flatnonzero(part.is_nan).tolist():
            values[at] = '"NaN"'
        columns = zip(values, part.timestamp.tolist(), part.step.tolist(), strict=True)
        points += [f'{head}{value},"timestamp":{timestamp},"step":{step}}}' for value, timestamp, step in columns]
    return f'{{"run_id":{_text(run_id)},"metrics":[{",".join(points)}]}}'.encode()


def entities_of(rows: Sequence[KeyRows]) -> list[Metric]:
    """The same as MLflow's entities, for tracking stores that are not asked over HTTP."""
    from mlflow.entities import Metric

    metrics: list[Metric] = []
    for part in rows:
        values = np.where(part.is_nan, np.nan, part.value).tolist()
        columns = zip(values, part.timestamp.tolist(), part.step.tolist(), strict=True)
        metrics += [Metric(part.key, value, timestamp, step) for value, timestamp, step in columns]
    return metrics


def without_held(rows: Sequence[KeyRows], held: Mapping[str, Sequence[Metric]]) -> list[KeyRows]:
    """`rows` without those that `held`, the points that a run has by key, has already."""
    left = []
    for part in rows:
        there = {(point.timestamp, point.step, _comparable(point.value)) for point in held.get(part.key, ())}
        values = np.where(part.is_nan, _NAN, part.value).tolist()
        columns = zip(part.timestamp.tolist(), part.step.tolist(), values, strict=True)
        new = np.fromiter((point not in there for point in columns), dtype=np.bool_, count=len(part))
        if new.any():
            left.append(part if new.all() else part.take(new))
    return left


def series_of(name: str, history: Sequence[Metric]) -> Series:
    """The points of one key as a series, by step and then by time."""
    points = sorted(history, key=lambda point: (point.step, point.timestamp))
    return Series(
        name=name,
        step=np.array([point.step for point in points], dtype=np.int64),
        time=np.array([point.timestamp for point in points], dtype=np.float64) / 1000.0,
        value=np.array([point.value for point in points], dtype=np.float64),
    )


_NAN = -1.2345e-300
"""Stands for NaN, which equals nothing, where points are compared: a number that nobody logs."""


def _comparable(value: float) -> float:
    return _NAN if value != value else value  # noqa: PLR0124 - the quickest test for NaN


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)

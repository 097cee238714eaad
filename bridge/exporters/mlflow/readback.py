"""What an MLflow run holds, read through MLflow's API and put in the source's words."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.exporters.mlflow.api import record_of
from bridge.exporters.mlflow.artifacts import NAMES_FILE
from bridge.exporters.mlflow.facts import facts_of
from bridge.exporters.mlflow.notes import description
from bridge.exporters.mlflow.params import volatile_tag
from bridge.exporters.mlflow.redact import Redaction
from bridge.exporters.mlflow.tags import Tag
from bridge.model import Held, Series

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from bridge.exporters.mlflow.place import Place
    from bridge.exporters.mlflow.records import Record
    from bridge.model import Run, Scalar, Shape

__all__ = ["read_back"]


def read_back(place: Place, run_id: str, run: Run, shape: Shape, *, only: Collection[str] | None = None) -> Held:
    """The MLflow run `run_id`, the target of `run`. `only` names metrics, as the run logged them.

    Params, tags and notes that stand as `run` says, by the rules that cleaned and cut them, are given back as `run` has
    them; what differs is given as it stands.
    """
    found = place.api.get(run_id)
    record = record_of(found)
    cursor = record.cursor(f"MLflow run {run_id}")
    names = _names(place, run_id) if cursor is not None and cursor.extra.get("maps") else {}
    series = {}
    for key in found.data.metrics:
        name = names.get("metrics", {}).get(key, key)
        if only is None or name in only:
            series[name] = _series(place, run_id, key, name)
    return Held(
        series=series,
        params=_params(record, found.data.params, names.get("params", {}), run, shape),
        tags=_tags(record, run, shape),
        notes=_notes(record, run),
        name=record.name,
        status=record.status,
        start=None if record.start is None else record.start / 1000.0,
        end=None if record.end is None else record.end / 1000.0,
        cursor=cursor,
    )


def _series(place: Place, run_id: str, key: str, name: str) -> Series:
    points = sorted(place.api.history(run_id, key), key=lambda point: (point.step, point.timestamp))
    return Series(
        name=name,
        step=np.array([point.step for point in points], dtype=np.int64),
        time=np.array([point.timestamp for point in points], dtype=np.float64) / 1000.0,
        value=np.array([point.value for point in points], dtype=np.float64),
    )


def _names(place: Place, run_id: str) -> dict[str, dict[str, str]]:
    """From key to name, for metrics and params that were renamed."""
    with tempfile.TemporaryDirectory() as folder:
        files = {file.path for file in place.api.files(run_id, "bridge")}
        if NAMES_FILE not in files:
            return {}
        data: Any = json.loads(place.api.fetch(run_id, NAMES_FILE, Path(folder)).read_bytes())
    return {kind: {key: name for name, key in names.items()} for kind, names in data.items()}


def _params(
    record: Record, held: Mapping[str, str], names: Mapping[str, str], run: Run, shape: Shape
) -> dict[str, Scalar]:
    wanted = facts_of(run, shape).params
    redaction = Redaction(shape.redact)
    params: dict[str, Scalar] = {}
    source = {key: name for name, key in wanted.keys.items()}
    for key, value in held.items():
        name = names.get(key, source.get(key, key))
        newest = record.tags.get(volatile_tag(key), value) if key in wanted.volatile else value
        # A secret stays masked: what is read back is what is held, and verify sees that it is not the secret.
        is_whole = name in run.params and wanted.values.get(key) == newest and redaction.is_open(name, run.params[name])
        params[name] = run.params[name] if is_whole else newest
    return params


def _tags(record: Record, run: Run, shape: Shape) -> tuple[str, ...] | None:
    """The tags as the run has them, where MLflow holds all of them as they were made; else what it holds of them."""
    facts = facts_of(run, shape)
    if record.tags.get(Tag.TAGS) == facts.own[Tag.TAGS]:
        missing = [key for key, value in facts.people.items() if record.tags.get(key) != value]
        redaction = Redaction(shape.redact)
        return tuple(redaction.tag(tag) for tag in run.tags if tag.partition(":")[0] not in missing)
    try:
        tags = json.loads(record.tags.get(Tag.TAGS, "[]"))
    except ValueError:
        return ()
    return tuple(str(tag) for tag in tags) if isinstance(tags, list) else ()


def _notes(record: Record, run: Run) -> str:
    held = record.tags.get(Tag.NOTES, "")
    return run.notes if held == description(run.notes)[0] else held

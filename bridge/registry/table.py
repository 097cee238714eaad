"""Records as a table: one column a field, hyperparameter and metric; for pandas, CSV, Parquet and the terminal."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from bridge.errors import BridgeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from bridge.registry.record import RunRecord

__all__ = ["columns", "time_columns", "write_csv", "write_parquet"]

_FIELDS = (
    "run_id", "name", "status", "alive", "created_at", "ended_at", "duration", "heartbeat", "updated_at", "tags",
    "notes", "parent", "run_dir", "identity", "archived", "checkpoint_path", "sessions",
)  # fmt: skip
time_columns = ("created_at", "ended_at", "heartbeat", "updated_at")
"""The columns that hold times, as ISO text in UTC."""


def columns(records: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """All that the records hold, as columns of one length: fields, then `hparams.*`, `summary.*`, `max.*`, `min.*`.

    None where a run holds nothing there; tags are joined by `, `.
    """
    table: dict[str, list[Any]] = {name: [_plain(getattr(record, name)) for record in records] for name in _FIELDS}
    for key in _names(record.hparams for record in records):
        table[f"hparams.{key}"] = [record.hparams.get(key) for record in records]
    metrics = _names((*record.summary, *record.stats) for record in records)
    for statistic in ("last", "max", "min"):
        for metric in metrics:
            head = "summary" if statistic == "last" else statistic
            table[f"{head}.{metric}"] = [record.metric(metric, statistic) for record in records]
    return table


def write_csv(table: dict[str, list[Any]], path: Path) -> None:
    """Write the table as CSV (UTF-8, one header line), replacing `path`; what is missing is an empty cell.

    Raises BridgeError where that fails.
    """
    import csv

    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    _write(path, text.getvalue().encode("utf-8", errors="backslashreplace"))


def write_parquet(table: dict[str, list[Any]], path: Path) -> None:
    """Write the table as Parquet, replacing `path`; a column of mixed kinds becomes text. Raises BridgeError as above."""
    import pyarrow as pa
    from pyarrow import parquet

    # Into memory: where it fails to write a file itself, it deletes it, whatever was there before.
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table({name: _array(pa, values) for name, values in table.items()}), sink)
    _write(path, sink.getvalue())


def _write(path: Path, data: Any) -> None:
    """Raises BridgeError where the disk does not take it."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise BridgeError(f"{path} cannot be written: {error.strerror}.") from error


def _array(pa: Any, values: list[Any]) -> Any:
    kinds = {type(value) for value in values if value is not None}
    try:
        if kinds <= {int, float} and float in kinds:
            return pa.array([None if value is None else float(value) for value in values], pa.float64())
        if len(kinds) == 1 and str not in kinds:
            return pa.array(values)
    except (OverflowError, pa.ArrowInvalid):
        pass  # a whole number beyond 64 bits, or beyond what a float holds
    texts = [None if value is None else str(value).encode("utf-8", "backslashreplace").decode() for value in values]
    return pa.array(texts, pa.string())


def _names(several: Iterable[Iterable[str]]) -> list[str]:
    return sorted({name for names in several for name in names})


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return ", ".join(value)
    return str(value) if isinstance(value, str) else value

"""The points of one run as a table: one row a point, with the overlap rule applied."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from bridge.options import ContentOptions
from bridge.rundir import ReadOptions, read_whole

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bridge.model import Block, Run

SCHEMA = pa.schema(
    [
        ("metric", pa.dictionary(pa.int32(), pa.string())),
        ("step", pa.int64()),
        ("time", pa.timestamp("us", tz="UTC")),
        ("value", pa.float64()),
    ]
)


def points_table(run: Run, metrics: Iterable[str] = ()) -> pa.Table:
    """Return the points of `run` that count, in the order of their steps, as a table with SCHEMA.

    `metrics` are globs on metric names; without any the table holds all metrics. The values of event files are float32
    if all of them are. Raises RunDirectoryError.
    """
    content = ContentOptions(metrics=tuple(metrics), media=False)
    blocks = [block for delta in read_whole(run, content, ReadOptions(ordered=True)) for block in delta.blocks]
    names = sorted({name for block in blocks for name in block.names})
    if not blocks:
        return SCHEMA.empty_table()
    table = pa.concat_tables([_table(block, names) for block in blocks])
    if run.event_files:
        value = table["value"].to_numpy()
        with np.errstate(over="ignore"):
            short = value.astype(np.float32)
        if np.array_equal(short, value, equal_nan=True):
            # Written as text, a float32 has the digits that somebody logged: 0.1, not 0.10000000149011612.
            return table.set_column(3, "value", pa.array(short))
    return table


def _table(block: Block, names: list[str]) -> pa.Table:
    # `present` is (k, n) for k metrics. Transposed, its nonzero entries come row by row: first all metrics of the
    # first row. `rows` and `places` are (points,): the row and the metric of each point.
    rows, places = np.nonzero(block.present.T)
    codes = np.array([names.index(name) for name in block.names], dtype=np.int32)
    microseconds = np.round(block.time[rows] * 1e6).astype(np.int64)
    return pa.table(
        [
            pa.DictionaryArray.from_arrays(pa.array(codes[places]), pa.array(names, pa.string())),
            pa.array(block.step[rows]),
            pa.array(microseconds).cast(pa.timestamp("us", tz="UTC")),
            pa.array(block.values[places, rows]),
        ],
        schema=SCHEMA,
    )


def csv_points(table: pa.Table) -> bytes:
    """Return a table of points as CSV in UTF-8."""
    text = io.BytesIO()
    csv.write_csv(table.set_column(0, "metric", table["metric"].cast(pa.string())), text)
    return text.getvalue()


def parquet_points(table: pa.Table) -> pa.Buffer:
    """Return a table of points as the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink)
    return sink.getvalue()


def json_columns(table: pa.Table) -> dict[str, list[Any]]:
    """Return a table of points as columns of JSON values: ISO times, and NaN and infinities as text."""
    shortest = map(float, table["value"].cast(pa.string()).to_pylist())
    values = [value if np.isfinite(value) else str(value) for value in shortest]
    times = [time.isoformat() for time in table["time"].to_pylist()]
    return {"metric": table["metric"].to_pylist(), "step": table["step"].to_pylist(), "time": times, "value": values}

"""The reader reads back exactly what our logger writes, also after tears, resumes and new columns."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.rundir import ReadOptions
from logger.csv_file import MetricsFile
from logger.row import Row as LoggedRow
from tests.run_dirs import CREATED_S, write_sidecar
from tests.rundir.targets import Row, Target, expected

NAMES = ("loss", "val/acc", 'odd "name", with\nmore', "损失", "epoch")

values = st.one_of(
    st.floats(),
    st.integers(-(2**70), 2**70),
    st.booleans(),
    st.sampled_from([1e-320, 2.0**53 + 2, math.nan, math.inf, -0.0]),
)
rows = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(NAMES), values, min_size=1, max_size=3), st.integers(-(2**63), 2**63 - 1)
    ),
    max_size=6,
)
sessions = st.lists(st.tuples(rows, st.integers(1, 40)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sessions, st.booleans())
def test_any_table_is_read_back(history: list[tuple[list[tuple[dict[str, float], int]], int]], exports: bool) -> None:
    """All complete rows of sessions that end torn somewhere are read, bit for bit."""
    logged_rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        path = write_sidecar(Path(folder) / "run")
        target = Target(ReadOptions(ordered=True))
        for logged, torn in [*history, ([], 0)]:
            file = MetricsFile(path / "metrics.csv", time_column="wall_time")
            if (path / "metrics.csv").exists():
                file.resume()
                del logged_rows[file.rows :]
            for cells, step in logged:
                then = CREATED_S + len(logged_rows)
                file.append([LoggedRow(tuple(cells), tuple(cells.values()), step, then)])
                logged_rows.append(Row(step, then, {name: float(value) for name, value in cells.items()}))
                if exports:
                    target.export(path)
            file.close()
            if logged:
                data = (path / "metrics.csv").read_bytes()
                (path / "metrics.csv").write_bytes(data[: max(data.index(b"step"), len(data) - torn)])
        target.export(path)
    assert target.points == expected(logged_rows)

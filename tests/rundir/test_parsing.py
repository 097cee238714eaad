"""pyarrow, msgspec and the csv module give the same rows: values, text cells, numbers, offsets and digests."""

from __future__ import annotations

import csv
import io
import math
import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bridge.errors import RunDirectoryError
from bridge.model import NoticeKind
from bridge.rundir import metrics
from bridge.rundir.header import complete_rows, read_layout
from bridge.rundir.metrics import MetricsTable, parse_records

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bridge.rundir.rows import Rows

quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(path: Path, data: bytes, *, chunk: int = 1 << 22, few: int = metrics._FEW_BYTES) -> list[Rows]:
    """Return the rows of a metrics.csv with the content `data`; chunks of more than `few` bytes are for pyarrow.

    With 0 it parses each chunk in two blocks.
    """
    path.write_bytes(data)
    with path.open("rb", buffering=0) as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_FEW_BYTES", few)
        patch.setattr(metrics, "_MANY_ROWS", metrics._MANY_ROWS if few else 0)
        return list(MetricsTable(file, "wall_time").rows(chunk=chunk))


def slowly(data: bytes) -> list[Rows]:
    """Return the same rows by the csv module only; the header is the first line."""
    layout = read_layout(io.BytesIO(data), "wall_time")
    assert layout is not None
    start = layout.end
    cut = complete_rows(data[start:])
    return list(parse_records(data[start : start + cut], layout=layout, start=start, first=0, time_column="wall_time"))


def plain(rows: list[Rows]) -> list[tuple[object, ...]]:
    """Return rows as plain values, one entry per row: number, end, step, time, points."""
    found = []
    for part in rows:
        for place in range(len(part)):
            points = {
                name: part.values[line, place].tobytes()
                for line, name in enumerate(part.names)
                if part.present[line, place]
            }
            valid = part.valid is None or bool(part.valid[place])
            found.append(
                (
                    part.first + place,
                    part.offset(place + 1),
                    int(part.step[place]) if valid else None,
                    part.time[place].tobytes(),
                    points,
                )
            )
    return found


def odd_rows(rows: list[Rows]) -> dict[tuple[NoticeKind, str], list[int]]:
    """Return the numbers of the odd rows, by what is odd."""
    found: dict[tuple[NoticeKind, str], list[int]] = {}
    for part in rows:
        for what, numbers in part.odd.items():
            found.setdefault(what, []).extend(numbers.tolist())
    return {what: numbers for what, numbers in found.items() if numbers}


def digest(rows: list[Rows]) -> int:
    """Return the digest of all rows."""
    return sum(part.digest() for part in rows) % 2**64


def check_all_parsers(path: Path, data: bytes, chunk: int) -> list[Rows]:
    """Assert that all parsers give the same rows, whole or in chunks; return those of the csv module."""
    exact = slowly(data)
    for rows in (read(path, data), read(path, data, chunk=chunk), read(path, data, few=0)):
        assert (plain(rows), odd_rows(rows), digest(rows)) == (plain(exact), odd_rows(exact), digest(exact))
    return exact


numbers = st.one_of(
    st.floats().map(repr),
    st.integers(-(10**25), 10**25).map(str),
    st.sampled_from(["", "", "nan", "inf", "-inf", "1e-320", "-0.0", "-0", "1e999", " 7 ", "+3", ".5", "5.", "1E5"]),
    st.decimals(allow_nan=False, allow_infinity=False).map(str),
)
anything = st.one_of(
    numbers, st.sampled_from(["True", "False", "1_000", "x", "null", 'say "hi"', "two\r\nlines", "a,b", "٣", "0x1f"])
)
steps = st.one_of(
    st.integers(-(2**63), 2**63 - 1).map(str), st.sampled_from(["", "3.5", "9223372036854775808", "0x10", " 4"])
)


def written(cells: list[list[str]], end: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=end)
    writer.writerow(["b", "step", "a", "wall_time"])
    writer.writerows(cells)
    return text.getvalue().encode()


@quick
@given(
    st.lists(st.tuples(numbers, st.integers(-(2**63), 2**63 - 1).map(str), numbers, numbers), max_size=8),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([0, 1 << 18]),
)
def test_pyarrow_reads_what_python_reads(tmp_path: Path, cells: list[list[str]], end: str, few: int) -> None:
    """Numbers equal Python's float() bit for bit, except for the payload of NaN."""
    rows = read(tmp_path / "metrics.csv", written(cells, end), few=few)
    for place, row in enumerate(cells):
        for name, cell in zip(("b", "a"), (row[0], row[2]), strict=True):
            line = rows[0].names.index(name)
            assert bool(rows[0].present[line, place]) == (cell != "")
            if cell:
                assert rows[0].values[line, place].tobytes() == np.float64(float(cell)).tobytes()
        assert rows[0].step[place] == int(row[1])


@quick
@given(
    st.lists(st.tuples(anything, steps, anything, numbers), max_size=8),
    st.sampled_from(["\n", "\r\n"]),
    st.integers(1, 60),
)
@example([("1", "1", "", ""), ("two\r\nlines", "2", "", "")], "\r\n", 7)
@example([("null", "1", "2", "3")], "\n", 7)
def test_both_parsers_and_all_chunks_agree(tmp_path: Path, cells: list[list[str]], end: str, chunk: int) -> None:
    """Rows, offsets, text cells and digest depend neither on the parser nor on the cut into chunks."""
    check_all_parsers(tmp_path / "metrics.csv", written(cells, end), chunk)


def test_one_metric_beside_a_doubled_column(tmp_path: Path) -> None:
    """A metric is read alone also where another one has two columns."""
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss,acc,acc\n0,0.5,1,2\n")
    with path.open("rb") as file:
        (rows,) = MetricsTable(file, None).rows(only=frozenset({"loss"}))
    assert (rows.names, rows.values.tolist()) == (("loss",), [[0.5]])


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blank_lines_are_nothing(tmp_path: Path, end: str) -> None:
    """A blank line is no row for any parser, although pyarrow takes it for empty cells."""
    data = f"b,step,a,wall_time{end}1,0,2,3{end}{end}1,1,2,3{end}{end}{end}".encode()
    rows = check_all_parsers(tmp_path / "metrics.csv", data, 30)
    assert (sum(map(len, rows)), odd_rows(rows)) == (2, {})


def test_large_chunks_agree(tmp_path: Path) -> None:
    """Chunks parsed by several threads, with a column of numbers and texts, give the same rows."""
    chance = random.Random(3)
    odd = ["", "x", "True", "nan", "two\nlines", "1_0", "warm-up (1)"]
    cells = [
        [
            repr(chance.random()),
            str(place),
            chance.choice(odd) if 7000 < place < 9000 else repr(chance.random()),
            repr(float(place)),
        ]
        for place in range(15_000)
    ]
    data = written(cells, "\r\n")
    rows = check_all_parsers(tmp_path / "metrics.csv", data, len(data) // 2)
    assert len(odd_rows(rows)[NoticeKind.TEXT_CELL, "a"]) > 500


@pytest.mark.parametrize(
    ("changed", "is_same"),
    [
        ("new,step,b,wall_time,a\n,0,2.0,5.0,1e0\n,1,4,6,3\n,3.5,7,,\n", True),  # order, empty columns, number formats
        ("a,b,step,wall_time\r\n1,2,0,5\r\n3,4,1,6\r\nx,y,3.5,\r\n", True),  # line ends, what bad rows hold
        ("a,b,c,step,wall_time\n1,2,x,0,5\n3,4,,1,6\n,,,3.5,\n", True),  # text
        ("a,b,step,wall_time\n2,1,0,5\n3,4,1,6\n", False),
        ("a,b,step,wall_time\n3,4,1,6\n1,2,0,5\n", False),
        ("a,b,step,wall_time\n1,2,0,5\n3,-4,1,6\n", False),
        ("a,b,step,wall_time\n-1,-2,0,5\n3,4,1,6\n", False),
        ("a,b,step,wall_time\n1,2,1,5\n3,4,0,6\n", False),
        ("a,b,step,wall_time\n1,2,0,6\n3,4,1,5\n", False),
        ("a,b,step,wall_time\n1,,0,5\n3,4,1,6\n", False),
        ("a,c,step,wall_time\n1,2,0,5\n3,4,1,6\n", False),
        ("a,b,step,wall_time\n1,2,,5\n3,4,1,6\n", False),
    ],
)
def test_the_digest_knows_what_changed(tmp_path: Path, changed: str, is_same: bool) -> None:
    """Only a swap of values or another sign, step, time or name gives another digest."""
    rows = read(tmp_path / "a.csv", b"a,b,step,wall_time\n1,2,0,5\n3,4,1,6\n")
    assert (digest(read(tmp_path / "b.csv", changed.encode())) == digest(rows)) == is_same


def test_ten_thousand_columns(tmp_path: Path) -> None:
    """A row with ten thousand columns, longer than a chunk, is read like any other."""
    names = [f"m{number:05d}" for number in range(10_000)]
    header = ",".join([*names, "step"])
    lines = [
        ",".join([*(str(number + place) if number % 3 else "" for number in range(10_000)), str(place)])
        for place in range(3)
    ]
    rows = read(tmp_path / "metrics.csv", "\r\n".join([header, *lines, ""]).encode(), chunk=4096)
    assert [len(part) for part in rows] == [1, 1, 1]
    last = rows[2]
    assert last.names == tuple(names)
    assert np.count_nonzero(last.present) == 6666
    assert last.values[4, 0] == 6.0


def test_a_line_without_end_is_refused_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line over the limit is an error that names it, whatever the file's size."""
    monkeypatch.setattr(metrics, "LONGEST_ROW", 1 << 16)
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"a,step\r\n1,0\r\n")
    with path.open("r+b") as file:
        file.truncate(1 << 30)
    with path.open("rb", buffering=0) as file:
        table = MetricsTable(file, None)
        with pytest.raises(RunDirectoryError, match=r"metrics\.csv:3 is longer than"):
            list(table.rows())


def _numbers(count: int) -> Iterator[str]:
    chance = random.Random(7)
    for _ in range(count):
        bits = chance.getrandbits(64)
        value = np.uint64(bits).view(np.float64)
        if math.isfinite(value):
            yield chance.choice(
                [repr(float(value)), f"{float(value):.40e}", f"{bits}.{bits}e{chance.randint(-340, 300)}"]
            )


def test_a_hundred_thousand_decimals(tmp_path: Path) -> None:
    """Decimals of any length and size round as in Python."""
    cells = list(_numbers(100_000))
    data = "a,step\n" + "".join(f"{cell},{place}\n" for place, cell in enumerate(cells))
    values = np.concatenate([rows.values[0] for rows in read(tmp_path / "metrics.csv", data.encode())])
    np.testing.assert_array_equal(values.view(np.int64), np.array([float(cell) for cell in cells]).view(np.int64))

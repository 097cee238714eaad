"""The reader and the tests' oracle, which share no code, agree on any metrics and media."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bridge.errors import RunDirectoryError
from bridge.model import Cursor
from bridge.options import ContentOptions
from bridge.rundir import ReadOptions, read_points, read_run, read_small, read_whole
from logger.sidecar import Sidecar
from tests import oracle
from tests.pictures import png
from tests.run_dirs import make_run, write_sidecar
from tests.rundir.targets import events_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bridge.model import Delta, Series

Points: TypeAlias = "dict[str, list[tuple[int, str, str]]]"
"""By metric: step, value and time as text (so that NaN equals NaN and -0.0 is not 0.0), sorted."""

NUMBERS = st.sampled_from(
    ["0.1", "1", "1", "2", "nan", "inf", "-inf", "-0.0", "0.0", "1e-320", "9007199254740993", "True"]
)
CELLS = st.one_of(
    NUMBERS, st.just(""), st.sampled_from(["False", "text", '"te,xt"', '"two\nlines"', '"a ""b"",\r\n"', " 3", "1_000"])
)
STEPS = st.one_of(
    st.integers(0, 6).map(str),
    st.sampled_from(["", "-1", "3.5", "x", "9223372036854775807", "9223372036854775808", " 2", "1_0"]),
)
TIMES = st.one_of(
    st.integers(1_775_822_400, 1_775_822_500).map(str),
    st.sampled_from(["", "later", "1775822400.25", "1e300", "-0.5", "inf", "nan"]),
)
ROWS = st.builds(lambda *cells: ",".join(cells), CELLS, CELLS, STEPS, TIMES)
GOOD_ROWS = st.builds(
    lambda *cells: ",".join(cells), NUMBERS, NUMBERS, st.integers(0, 6).map(str), st.just("1775822400.25")
)
ODD_LINES = st.sampled_from(
    [
        "",
        "1",
        "1,2,3,4,5",
        "b,a,step,wall_time",
        "a,step,wall_time",
        "a,b,step,wall_time",
        '"1","2","3","4"',
        '5" pipe,2,3,4',
    ]
)
LINES = st.lists(st.one_of(GOOD_ROWS, GOOD_ROWS, ROWS, ODD_LINES), max_size=25)
NEWLINES = st.sampled_from(["\r\n", "\n"])

ALL_WANTED = {
    "anything": ReadOptions(),
    "ordered": ReadOptions(ordered=True),
    "replaces": ReadOptions(replaces=True),
    "small deltas": ReadOptions(limit=3),
}


def csv_of(lines: list[str], newline: str) -> bytes:
    return newline.join(["a,b,step,wall_time", *lines, ""]).encode()


def write(folder: Path, data: bytes) -> Path:
    path = write_sidecar(folder / "run")
    (path / "metrics.csv").write_bytes(data)
    return path


def shown(points: Mapping[str, Iterable[tuple[int, float, float]]]) -> Points:
    """Return (step, value, time) of each metric as Points. Sorting keeps equal points in row order."""
    found = {
        name: sorted(((step, str(value), str(time)) for step, value, time in rows), key=lambda row: row[:2])
        for name, rows in points.items()
    }
    return {name: rows for name, rows in found.items() if rows}


def of_oracle(found: oracle.OracleRun) -> Points:
    return shown({name: [(one.step, one.value, one.time) for one in points] for name, points in found.series.items()})


def of_series(found: Mapping[str, Series]) -> Points:
    return shown(
        {
            name: zip(*(column.tolist() for column in (one.step, one.value, one.time)), strict=True)
            for name, one in found.items()
        }
    )


def of_deltas(deltas: Iterable[Delta]) -> Points:
    points: dict[str, list[tuple[int, float, float]]] = {}
    for _, step, time, values in events_of(deltas):
        for name, value in values:
            points.setdefault(name, []).append((step, float.fromhex(value), time))
    return shown(points)


def assert_same(found: Points, expected: Points) -> None:
    """Assert equality, except for times that the source lacks and a reader estimates."""
    assert {name: [row[:2] for row in rows] for name, rows in found.items()} == {
        name: [row[:2] for row in rows] for name, rows in expected.items()
    }
    for name, rows in expected.items():
        for mine, theirs in zip(rows, found[name], strict=True):
            if not math.isnan(float(mine[2])):
                assert mine == theirs


@pytest.mark.parametrize("wanted", ALL_WANTED.values(), ids=ALL_WANTED)
@given(lines=LINES, newline=NEWLINES, cut=st.integers(0, 40))
@example(lines=["1,,0,", "1,,0,", "2,,0,", "1,,0,"], newline="\r\n", cut=0)
@settings(max_examples=60, deadline=None)
def test_both_readers_leave_the_same_points(lines: list[str], newline: str, cut: int, wanted: ReadOptions) -> None:
    """Both readers find the same points and number of rows in any file, torn anywhere near its end."""
    data = csv_of(lines, newline)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), data[: len(data) - cut])
        deltas = list(read_whole(read_run(path), ContentOptions(), wanted))
        expected = oracle.read(path)
        assert_same(of_deltas(deltas), of_oracle(expected))
        assert deltas[-1].after.rows == expected.rows


@given(lines=LINES, newline=NEWLINES, cut=st.integers(0, 40), rows=st.integers(0, 30))
@settings(max_examples=200, deadline=None)
def test_points_that_are_read_at_once(lines: list[str], newline: str, cut: int, rows: int) -> None:
    """The points among the first rows are those of a file of these rows; the short way of small files finds all."""
    data = csv_of(lines, newline)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), data[: len(data) - cut])
        series, total = read_points(read_run(path), ContentOptions(), until=Cursor("", "", rows=rows))
        assert_same(of_series(series), of_oracle(oracle.read(path, rows=rows)))
        assert total == range(oracle.read(path).rows)
        small = read_small(read_run(path), ContentOptions())
        if small is not None:
            assert_same(of_series(small), of_oracle(oracle.read(path)))


TEXTS = st.sampled_from(["", "a", "x/y", "a b", "größe", "\ud800", "1", "[1]"])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(), TEXTS)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
TIMES = st.sampled_from(["2026-04-10T12:00:00", "2026-04-10", "1775822400.5", -1, 1e300, 253402300800.0])
FIELDS = st.dictionaries(st.sampled_from(Sidecar.__struct_fields__), st.one_of(TIMES, TREES), max_size=8)


@given(sidecar=st.one_of(FIELDS, TREES), hparams=st.one_of(st.text(), TREES.map(repr), TREES.map(json.dumps)))
@settings(max_examples=150, deadline=None)
def test_any_sidecar_and_hparams(sidecar: Any, hparams: str) -> None:
    """Any sidecar but one that is no mapping is read, as is any hparams.yaml, and all texts can be encoded."""
    with tempfile.TemporaryDirectory() as folder:
        path = make_run(Path(folder) / "run", [{"step": 0, "loss": 1.0}], heartbeat_age=30.0)
        (path / "sidecar.json").write_text(json.dumps(sidecar))
        (path / "hparams.yaml").write_bytes(hparams.encode("utf-8", "surrogatepass"))
        if not isinstance(sidecar, dict):
            with pytest.raises(RunDirectoryError):
                read_run(path)
            return
        run = read_run(path)
        texts = [run.run_id, run.name, run.identity, run.status_word, run.tags, run.notes, dict(run.params)]
        texts += [(notice.what, notice.detail) for notice in run.notices]
        json.dumps(texts, ensure_ascii=False).encode()


PATHS = ["media/a.png", "media/b.gif", "media/c.mp4", "media/none.png", "../out.png", "media", "/etc/passwd"]
TORN_LINES = ['{"step": 1, "tag', '{"step": 1, {"step": 0, "tag": "s", "type": "image", "path": "media/a.png"}']
MEDIA_LINES = st.lists(
    st.one_of(
        st.builds(
            lambda **fields: json.dumps({key: value for key, value in fields.items() if value is not None}),
            step=st.sampled_from([0, 0, 1, 2.5, 2**63, None]),
            tag=st.sampled_from(["s", "s", "t", 3]),
            type=st.sampled_from(["image", "image", "video", "sound"]),
            path=st.sampled_from(PATHS),
            session=st.sampled_from([None, 0, 1, "x"]),
            caption=st.sampled_from([None, "c", 5]),
        ),
        st.sampled_from(["", "nonsense", "[1]", *TORN_LINES]),
    ),
    max_size=8,
)  # fmt: skip


@given(lines=MEDIA_LINES, torn=st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_media_lines(lines: list[str], torn: bool) -> None:
    """Both readers find the same events, in order and with their files, in any media.jsonl."""
    with tempfile.TemporaryDirectory() as folder:
        path = make_run(Path(folder) / "run")
        (path / "media").mkdir()
        (path.parent / "out.png").write_bytes(png(9))
        (path / "media" / "a.png").write_bytes(png(1))
        (path / "media" / "b.gif").write_bytes(b"GIF89a" + bytes(20))
        (path / "media" / "c.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(20))
        text = "".join(f"{line}\n" for line in lines)
        (path / "media.jsonl").write_text(text + '{"step"' * torn)
        deltas = list(read_whole(read_run(path), ContentOptions(), ReadOptions()))
        events = [event for delta in deltas for event in delta.media]
        expected = oracle.read(path)
        assert expected.media_lines == deltas[-1].after.media_lines == len(lines)
        assert expected.media == [
            oracle.OracleMedia(one.line, one.tag, one.step, one.path, one.format, one.caption, _digest(one.file.path))
            for one in sorted(events, key=lambda event: event.line)
        ]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

"""The plain reader that verify trusts, against the design's tables; every expected series is written out."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING

import pytest

from bridge.errors import RunDirectoryError
from bridge.rundir import read_run, read_series, read_summary
from bridge.sync import truth, truth_records
from tests.run_dirs import CREATED_S, make_run, write_sidecar

if TYPE_CHECKING:
    from pathlib import Path

PNG = b"\x89PNG\r\n\x1a\n" + b"picture"


def csv_run(path: Path, text: str | bytes, **sidecar: object) -> Path:
    write_sidecar(path, **sidecar)
    data = text if isinstance(text, bytes) else text.encode()
    (path / "metrics.csv").write_bytes(data)
    return path


def points(run: Path, name: str, **options: object) -> list[tuple[int, float]]:
    """Step and value of what counts of a metric; NaN as None."""
    series = truth.read(run, **options).series.get(name)
    if series is None:
        return []
    return [
        (step, None if math.isnan(value) else value)
        for step, value in zip(series.step.tolist(), series.value.tolist(), strict=True)
    ]


def media_run(path: Path, lines: list[dict[str, object]], files: dict[str, bytes]) -> Path:
    write_sidecar(path)
    for name, data in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    (path / "media.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def image(step: int, name: str, **fields: object) -> dict[str, object]:
    return {"step": step, "tag": "s", "type": "image", "path": f"media/{name}"} | fields


def test_points_of_a_plain_file(tmp_path: Path) -> None:
    """A row is a point of each metric that it has a value for, at its step and at its time."""
    run = make_run(tmp_path / "a", [{"step": 0, "loss": 0.5}, {"step": 1, "loss": 0.25, "acc": 1}])
    read = truth.read(run)
    assert sorted(read.series) == ["acc", "loss"]
    notice = read.series["loss"]
    assert notice.step.tolist() == [0, 1]
    assert notice.value.tolist() == [0.5, 0.25]
    assert notice.time.tolist() == [CREATED_S, CREATED_S + 1]
    assert notice.row.tolist() == [0, 1]
    assert read.series["acc"].row.tolist() == [1]
    assert (read.rows, read.points) == (2, 3)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1e300", "5.5", "-0.5", "253402300800", "later", ""], [CREATED_S, 5.5, 5.5, 5.5, 5.5, 5.5]),
        (["inf", "-inf", "7"], [CREATED_S, CREATED_S, 7.0]),
        (["", "1e300", "7", ""], [None, None, 7.0, 7.0]),
    ],
)
def test_times_that_no_clock_gives(tmp_path: Path, cells: list[str], expected: list[float | None]) -> None:
    """They are the row's before; the first the start of the run, unless a row before it said nothing at all."""
    rows = "".join(f"1,{step},{cell}\n" for step, cell in enumerate(cells))
    times = truth.read(csv_run(tmp_path / "a", f"a,step,wall_time\n{rows}")).series["a"].time.tolist()
    assert [None if math.isnan(time) else time for time in times] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("a,step\r\n1,0\r\n2,1\r\n", [(0, 1.0), (1, 2.0)], id="CRLF"),
        pytest.param("a,step\n1,0\n2,1\n", [(0, 1.0), (1, 2.0)], id="LF"),
        pytest.param("\ufeffa,step\n1,0\n", [(0, 1.0)], id="byte order mark"),
        pytest.param("a,step\n1,0\n2,1", [(0, 1.0)], id="last line without a newline"),
        pytest.param('a,step\n1,0\n"2\n', [(0, 1.0)], id="torn quoted cell"),
        pytest.param('a,step\n"1",0\n', [(0, 1.0)], id="quoted number"),
        pytest.param("a,step\n1,0\n5\n2,1\n", [(0, 1.0), (1, 2.0)], id="too few cells"),
        pytest.param("a,step\n1,0\n5,6,7\n2,1\n", [(0, 1.0), (1, 2.0)], id="too many cells"),
        pytest.param("a,step\n1,0\n2,3.5\n", [(0, 1.0)], id="step that is no int"),
        pytest.param("a,step\n1,9223372036854775807\n", [(2**63 - 1, 1.0)], id="greatest step"),
        pytest.param("a,step\n1,9223372036854775808\n2,1\n", [(1, 2.0)], id="step beyond int64"),
        pytest.param("a,step\n1,-5\n", [(-5, 1.0)], id="negative step"),
        pytest.param("a,step\n,0\n2,1\n", [(1, 2.0)], id="empty cell"),
        pytest.param("a,step\n1,\n2,1\n", [(1, 2.0)], id="empty step cell"),
        pytest.param("a,b\n1,0\n2,1\n", [(0, 1.0), (1, 2.0)], id="no step column"),
        pytest.param("a,step\nnan,0\ninf,1\n-inf,2\n", [(0, None), (1, math.inf), (2, -math.inf)], id="not finite"),
        pytest.param("a,step\n1e-320,0\n9007199254740993,1\n", [(0, 1e-320), (1, float(2**53 + 1))], id="float()"),
        pytest.param("a,step\nTrue,0\nFalse,1\n", [(0, 1.0), (1, 0.0)], id="bools"),
        pytest.param("a,step\n1,0\nhello,1\n2,2\n", [(0, 1.0), (2, 2.0)], id="text"),
        pytest.param("a,step\n1,0\na,step\n2,1\n", [(0, 1.0), (1, 2.0)], id="a header again"),
        pytest.param("a,step\n1,0\nstep,b,a\n1,7,2\n", [(0, 1.0), (1, 2.0)], id="another header"),
        pytest.param("a,a,step\n1,2,0\n3,,1\n", [(0, 2.0), (1, 3.0)], id="one name twice"),
        pytest.param("", [], id="empty file"),
        pytest.param("a,step\n", [], id="header only"),
    ],
)
def test_cells(tmp_path: Path, text: str, expected: list[tuple[int, float]]) -> None:
    """Each case of the design's table of metrics.csv is read as it says."""
    assert points(csv_run(tmp_path / "a", text), "a") == expected


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        pytest.param([1, 1, 2, 1], 3, id="the last unbroken run counts"),
        pytest.param([1, 1, 1], 0, id="equal ones: the first's time"),
        pytest.param([2, 1, 1], 1, id="the first of the last run"),
        pytest.param(["nan", "nan"], 0, id="NaN equals NaN"),
        pytest.param([1, "nan", "nan"], 1, id="NaN after a number"),
        pytest.param([1, 2], 1, id="the last value"),
    ],
)
def test_overlap(tmp_path: Path, values: list[object], kept: int) -> None:
    """Of the values at one step the last unbroken run of equal ones counts, with the time of its first."""
    run = make_run(tmp_path / "a", [{"step": 7, "a": value} for value in values])
    series = truth.read(run).series["a"]
    assert series.row.tolist() == [kept]
    assert series.time.tolist() == [CREATED_S + kept]


def test_overlap_over_a_requeue(tmp_path: Path) -> None:
    """After a requeue the new session's values count, also at steps that the first never saw."""
    steps = [(0, 1), (2, 2), (4, 3), (1, 4), (2, 2), (4, 5)]
    run = make_run(tmp_path / "a", [{"step": step, "a": value} for step, value in steps])
    series = truth.read(run).series["a"]
    assert series.step.tolist() == [0, 1, 2, 4]
    assert series.value.tolist() == [1, 4, 2, 5]
    assert series.row.tolist() == [0, 3, 1, 5]


def test_rows_limit(tmp_path: Path) -> None:
    """Only the rows that a cursor covers are taken, bad ones counted and headers not; all rows are counted."""
    run = csv_run(tmp_path / "a", "a,step\n1,0\nbad\na,step\n2,1\n3,2\n")
    assert points(run, "a", rows=3) == [(0, 1.0), (1, 2.0)]
    read = truth.read(run, rows=2)
    assert (read.rows, read.bad_rows) == (4, (3,))
    assert read.series["a"].value.tolist() == [1.0]


def test_chunks_are_invisible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a chunk of rows ends makes no difference."""
    text = "a,b,step\n1,,0\n2,x,1\nbad\n,5,2\na,step\n4,3\n5,4\n6,\n7,5\n"
    run = csv_run(tmp_path / "a", text)
    whole = truth.read(run)
    monkeypatch.setattr(truth, "CHUNK", 2)
    pieces = truth.read(run)
    assert pieces.bad_rows == whole.bad_rows == (4,)
    assert pieces.without_step == whole.without_step == 1
    assert {name: series.row.tolist() for name, series in pieces.series.items()} == {"a": [0, 1, 4, 5, 7], "b": [3]}
    assert pieces.series["a"].value.tolist() == whole.series["a"].value.tolist()


@pytest.mark.parametrize(
    ("header", "time", "metrics"),
    [
        ("a,step,wall_time", 5.5, ["a"]),
        ("a,step,wall_time_2", 5.5, ["a"]),
        ("wall_time,step,wall_time_2", 5.5, ["wall_time"]),
    ],
)
def test_a_time_column_that_is_being_renamed(tmp_path: Path, header: str, time: float, metrics: list[str]) -> None:
    """Until the file has the new name, which the sidecar has first, times stand under the old one; then that is a metric."""
    names = {"time_column": "wall_time_2", "time_column_before": "wall_time"}
    path = csv_run(tmp_path, f"{header}\n1,0,5.5\n", **names)
    read, run = truth.read(path), read_run(path)
    assert {name: series.time.tolist() for name, series in read.series.items()} == {name: [time] for name in metrics}
    series = {name: read_series(run, name).time.tolist() for name in read_summary(run)}
    assert series == {name: [time] for name in metrics}


def test_time_column(tmp_path: Path) -> None:
    """`wall_time` holds times only where the sidecar says so, and is a metric otherwise; a row without one has that before."""
    text = "a,step,wall_time\n1,0,5.5\n2,1,\n"
    named = truth.read(csv_run(tmp_path / "named", text))
    assert sorted(named.series) == ["a"]
    assert named.series["a"].time.tolist() == [5.5, 5.5]
    plain = truth.read(csv_run(tmp_path / "plain", text, time_column=None))
    assert sorted(plain.series) == ["a", "wall_time"]
    assert all(math.isnan(time) for time in plain.series["a"].time)


def test_only(tmp_path: Path) -> None:
    """Metrics that are not asked for are not kept."""
    run = make_run(tmp_path / "a", [{"step": 0, "a": 1, "b": 2}])
    assert sorted(truth.read(run, only=["b"]).series) == ["b"]


def test_a_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line beyond all measure is an error that names file and line, not a full memory."""
    run = csv_run(tmp_path / "a", "a,step\n" + "1" * 200 + ",0\n")
    monkeypatch.setattr(truth_records, "LONGEST_RECORD", 100)
    with pytest.raises(RunDirectoryError, match=r"metrics\.csv:2 cannot be read"):
        truth.read(run)


def test_no_metrics_at_all(tmp_path: Path) -> None:
    """A run that has logged nothing yet has no rows."""
    read = truth.read(write_sidecar(tmp_path / "a"))
    assert (read.rows, read.series, read.media_lines) == (0, {}, 0)


def test_facts(tmp_path: Path) -> None:
    """The run's own facts are what its sidecar says."""
    run = make_run(
        tmp_path / "a",
        run_id="x/y",
        hparams={"lr": 0.1, "layers": [1, 2]},
        tags=["t", "k:v"],
        notes="n",
        status="failed",
    )
    facts = truth.read(run).facts
    assert (facts.run_id, facts.name, facts.status_word) == ("x/y", "y", "failed")
    assert facts.params == {"lr": 0.1, "layers": "[1, 2]"}
    assert (facts.tags, facts.notes) == (("t", "k:v"), "n")
    assert (facts.start, facts.end("failed"), facts.end("running")) == (CREATED_S, CREATED_S + 3600, None)


def test_params_of_hparams_yaml(tmp_path: Path) -> None:
    """Without hparams in the sidecar those of hparams.yaml count, flat."""
    run = make_run(tmp_path / "a")
    (run / "hparams.yaml").write_text("model:\n  lr: 0.5\n  name: big\nseed: 1\n")
    assert truth.read(run).facts.params == {"model.lr": 0.5, "model.name": "big", "seed": 1}


def test_media_with_digest(tmp_path: Path) -> None:
    """A media event that counts has the digest of its file; a torn line and a bad one are none."""
    run = media_run(tmp_path / "a", [image(0, "a.png", caption="c")], {"media/a.png": PNG})
    with (run / "media.jsonl").open("a") as file:
        file.write('{"nonsense": 1}\n{"step": 1, "tag"')
    read = truth.read(run)
    (item,) = read.media
    assert (item.tag, item.step, item.format, item.caption) == ("s", 0, "png", "c")
    assert item.digest == hashlib.sha256(PNG).hexdigest()
    assert read.media_lines == 2
    assert truth.read(run, media_lines=0).media == ()


@pytest.mark.parametrize(
    ("lines", "counting"),
    [
        pytest.param([image(0, "a.png"), image(0, "b.png")], ["media/a.png", "media/b.png"], id="two at a step"),
        pytest.param(
            [image(0, "a.png", session=1), image(0, "b.png", session=2)], ["media/b.png"], id="a session later"
        ),
        pytest.param([image(0, "a.png"), image(0, "a.png")], ["media/a.png"], id="one path twice"),
        pytest.param([image(0, "gone.png"), image(0, "b.png")], ["media/b.png"], id="a missing file"),
        pytest.param([image(0, "../out.png"), image(0, "b.png")], ["media/b.png"], id="a path that leaves"),
        pytest.param([image(0, "link.png"), image(0, "b.png")], ["media/b.png"], id="a link that leaves"),
        pytest.param([image(0, "no.png"), image(0, "b.png")], ["media/b.png"], id="no picture"),
    ],
)
def test_media_that_count(tmp_path: Path, lines: list[dict[str, object]], counting: list[str]) -> None:
    """Per tag and step the last session's media count, as far as their files are safe and what they should be."""
    (tmp_path / "out.png").write_bytes(PNG)
    files = {"media/a.png": PNG + b"a", "media/b.png": PNG + b"b", "media/no.png": b"text"}
    run = media_run(tmp_path / "a", lines, files)
    (run / "media" / "link.png").symlink_to(tmp_path / "out.png")
    assert [item.path for item in truth.read(run).media] == counting

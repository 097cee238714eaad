"""Event files are read as TensorBoard's own messages say, and a folder of them is a run."""

from __future__ import annotations

import io
import json
import math
import os
import random
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.types_pb2 import DT_DOUBLE, DT_FLOAT

from bridge.errors import RunDirectoryError
from bridge.files import open_file
from bridge.model import DeltaKind, NoticeKind, Status
from bridge.options import ContentOptions
from bridge.rundir import ReadOptions, discover, read_run, read_whole
from bridge.rundir.event_file import read_events
from tests.pictures import png
from tests.run_dirs import write_sidecar
from tests.rundir.event_writing import START, age, append, picture, record, scalar, write_events
from tests.rundir.targets import Points, Row, Target, look, rising, series_of
from tests.rundir.targets import expected as expected_points

PICTURE = b"a picture" * 20
TAGS = ("loss", "val/acc", "损失", "a" * 126, "b" * 300, "x")
numbers = st.floats(width=32, allow_nan=True)
steps = st.one_of(st.integers(0, 300), st.integers(-(2**63), 2**63 - 1))


@st.composite
def any_event(draw: st.DrawFn) -> Event:
    """Draw an event: mostly one scalar, else several, a tensor, an image or a text."""
    event = Event(wall_time=draw(st.floats(0, 2e9)), step=draw(steps))
    kind = draw(st.sampled_from(["scalar"] * 6 + ["several", "tensor", "double", "vector", "image", "text", "nothing"]))
    for _ in range({"several": 3, "nothing": 0}.get(kind, 1)):
        value = event.summary.value.add(tag=draw(st.sampled_from(TAGS)))
        if kind in ("scalar", "several"):
            value.simple_value = draw(numbers)
        elif kind == "image":
            value.image.encoded_image_string = PICTURE
        elif kind == "text":
            value.metadata.plugin_data.plugin_name = "text"
            value.tensor.string_val.append(b"hello")
        else:
            value.metadata.plugin_data.plugin_name = "scalars"
            value.tensor.dtype = DT_DOUBLE if kind == "double" else DT_FLOAT
            if kind == "vector":
                value.tensor.tensor_shape.dim.add(size=2)
                value.tensor.float_val.extend([1.0, 2.0])
            elif kind == "double":
                value.tensor.double_val.append(draw(st.floats()))
            else:
                value.tensor.tensor_content = struct.pack("<f", draw(numbers))
    return event


def expected(found: list[Event]) -> list[tuple[str, int, float, str]]:
    """Return the scalars in events, as TensorBoard's messages have them."""
    points = []
    for event in found:
        for value in event.summary.value:
            number: Any = None
            if value.HasField("simple_value"):
                number = value.simple_value
            elif value.metadata.plugin_data.plugin_name == "scalars" and not value.tensor.tensor_shape.dim:
                if value.tensor.dtype == DT_DOUBLE:
                    number = value.tensor.double_val[0]
                else:
                    (number,) = struct.unpack("<f", value.tensor.tensor_content)
            if number is not None:
                points.append((value.tag, event.step, event.wall_time, shown(number)))
    return points


def shown(value: float) -> str:
    """Return a value in a comparable form, NaN included."""
    return "nan" if math.isnan(value) else float(value).hex()


def read(path: Path, begin: int = 0, end: int | None = None) -> tuple[list[tuple[str, int, float, str]], int, str]:
    """Return the points of an event file, the end of its complete records, and its notices."""
    points: list[tuple[str, int, float, str]] = []
    place, problem = begin, ""
    with path.open("rb", buffering=0) as file:
        for batch in read_events(file, begin, path.stat().st_size if end is None else end):
            points += [
                (batch.tags[tag], step, then, shown(value)) for tag, step, then, value, _ in batch.points.tolist()
            ]
            place, problem = batch.end, batch.problem
    return points, place, problem


@given(st.lists(any_event(), max_size=12))
@settings(max_examples=150, deadline=None)
def test_any_events_are_read_as_tensorboard_reads_them(found: list[Event]) -> None:
    """Tags, steps, times and values equal TensorBoard's bit for bit, whatever else the file holds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events"
        path.write_bytes(b"".join(map(record, found)))
        assert read(path) == (expected(found), path.stat().st_size if found else 0, "")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(struct.pack("<Q", 1 << 40) + bytes(100), id="a length that lies"),
        pytest.param(record(b"\x2a\xff\xff\xff\xff\x0f"), id="a field longer than its message"),
        pytest.param(record(b"\xff" * 30), id="an integer without end"),
        pytest.param(record(b"\x0f" * 30), id="a field of no type"),
        pytest.param(record(b"\x2a\x7e" + b"\x0a\x7c" * 60), id="messages in messages"),
    ],
)
def test_a_damaged_record_ends_the_file_and_is_named(tmp_path: Path, damage: bytes) -> None:
    """A damaged record ends its file with a notice of file and byte; earlier points and other files count."""
    write_events(tmp_path / "run", 1, [("loss", 9, 9.0, START + 9)])
    path = write_events(tmp_path / "run", 0, [("loss", 1, 1.0, START)])
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + damage + record(scalar("loss", 2, 2.0, START + 2)))
    age(tmp_path)
    whole = list(read_whole(read_run(tmp_path / "run"), ContentOptions(), ReadOptions()))
    assert sum(delta.points for delta in whole) == 2
    (notice,) = whole[-1].notices
    assert notice.kind is NoticeKind.BAD_LINE
    assert notice.what.startswith(f"{path.name}: byte {size}: a record ")


def test_several_values_in_one_event_stay_together(tmp_path: Path) -> None:
    """An event with several values is one row, so no delta ends between its values."""
    event = Event(wall_time=START, step=1)
    for name in ("a", "b", "c"):
        event.summary.value.add(tag=name, simple_value=1.0)
    append(write_events(tmp_path, 0, []), event, event)
    age(tmp_path)
    cursor, seen = None, []
    while (delta := look(tmp_path, cursor, limit=1)).kind is not DeltaKind.SAME:
        seen += [name for block in delta.blocks for name in block.names]
        cursor = delta.after
    assert (sorted(seen), cursor.rows) == (["a", "b", "c"], 2)


def test_many_tags_make_no_large_table() -> None:
    """If each record has its own tag, fewer records are decoded at once, and no point is lost."""
    data = b"".join(record(scalar(f"{number:x}", number, number, START)) for number in range(6000))
    batches = list(read_events(io.BytesIO(data), 0, len(data)))
    assert max(len(batch.points) * len(batch.tags) for batch in batches) < 5_000_000
    assert [batch.tags[point["tag"]] for batch in batches for point in batch.points] == [f"{n:x}" for n in range(6000)]


def test_a_large_picture_is_passed_over(tmp_path: Path) -> None:
    """A record of many megabytes is skipped, and the points around it are read."""
    event = picture("image", 1, START, bytes(33 << 20))
    path = tmp_path / "events"
    path.write_bytes(b"".join(map(record, [scalar("a", 0, 1.0, START), event, scalar("a", 2, 3.0, START)])))
    points, end, _ = read(path)
    assert ([point[1] for point in points], end) == ([0, 2], path.stat().st_size)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Write a run of two sessions: a requeued job that went back from step 9 to step 5."""
    folder = tmp_path / "logs" / "version_0"
    write_events(folder, 0, [("loss", step, step / 8, START + step) for step in range(10)])
    write_events(folder, 1, [("loss", step, step / 4, START + 100 + step) for step in range(5, 12)])
    return folder


def test_a_folder_of_event_files_is_a_run(run_dir: Path) -> None:
    """Its kind, name, times and status come from the files; steps logged again have their new values and times."""
    age(run_dir)
    run = read_run(run_dir)
    assert (run.kind, run.run_id, run.status, run.time_column, run.start, run.end, run.identity) == (
        "TensorBoardLogger",
        "version_0",
        Status.UNKNOWN,
        "wall_time",
        START,
        START + 111,
        str(run_dir.resolve()),
    )
    series = series_of(run, "loss")
    assert list(zip(series.step.tolist(), series.value.tolist(), series.time.tolist(), strict=True)) == [
        *((step, step / 8, START + step) for step in range(5)),
        *((step, step / 4, START + 100 + step) for step in range(5, 12)),
    ]
    age(run_dir, 250.0)
    assert read_run(run_dir).status is Status.RUNNING


def test_what_is_a_run(tmp_path: Path) -> None:
    """Folders with a point and fresh ones are runs, others are named; a metrics.csv or a sidecar wins."""
    placeholder = ("hp_metric", 0, -1.0, START)
    for name in ("points", "ours", "both", "sidecar"):
        write_events(tmp_path / name, 0, [placeholder, ("loss", 0, 1.0, START)])
    write_events(tmp_path / "placeholder", 0, [placeholder])
    write_events(tmp_path / "metric", 0, [("hp_metric", 0, 0.5, START)])
    (tmp_path / "ours" / ".bridge-target").touch()
    (tmp_path / "both" / "metrics.csv").write_text("loss,step\n2.0,0\n")
    write_sidecar(tmp_path / "sidecar")
    age(tmp_path)
    write_events(tmp_path / "fresh", 0, [])
    found = discover([tmp_path])
    assert {path.name: read_run(path).kind for path in found} == {
        "both": "CSVLogger",
        "fresh": "TensorBoardLogger",
        "metric": "TensorBoardLogger",
        "points": "TensorBoardLogger",
        "sidecar": "RegistryLogger",
    }
    assert [(skipped.path, skipped.reason) for skipped in found.skipped] == [
        (str(tmp_path / "placeholder"), "its event files hold no metric")
    ]
    with pytest.raises(RunDirectoryError, match="its event files hold no metric"):
        read_run(tmp_path / "placeholder")


@pytest.mark.parametrize(
    ("values", "is_other"),
    [([3.0, 2.0, 0.1], False), ([3.0, 2.0], False), ([3.0, 2.0, 0.1, 0.05], False), ([3.0, 2.0, 0.2], True)],
    ids=["the same", "fewer", "more", "others"],
)
def test_event_files_of_another_run_beside_a_metrics_csv(tmp_path: Path, values: list[float], is_other: bool) -> None:
    """A metrics.csv wins. A notice tells if the event files differ from its last points, as float32."""
    write_events(tmp_path, 0, [("loss", step, value, START + step) for step, value in enumerate(values)])
    (tmp_path / "metrics.csv").write_text("loss,step\n3.0,0\n2.0,1\n0.1,2\n")
    age(tmp_path)
    delta = look(tmp_path)
    assert (delta.run.kind, delta.points) == ("CSVLogger", 3)
    notices = [(notice.what, notice.detail) for notice in delta.notices]
    detail = "hold another run than metrics.csv (loss), and are not read"
    assert notices == ([("event files", detail)] if is_other else [])
    (whole,) = read_whole(read_run(tmp_path), ContentOptions(), ReadOptions())
    assert whole.notices == delta.notices


def test_folders_of_add_scalars_belong_to_the_run_above(tmp_path: Path) -> None:
    """Folders of `add_scalars` are metrics of the run above, and no runs."""
    run_dir = tmp_path / "logs" / "version_0"
    write_events(run_dir, 0, [("acc", 0, 0.5, START)])
    write_events(run_dir / "val_loss_train", 0, [("val/loss", step, 1.0, START + step) for step in range(3)])
    write_events(run_dir / "val_loss_test", 0, [("val/loss", step, 2.0, START + step) for step in range(3)])
    write_events(run_dir / "other", 0, [("a", 0, 1.0, START), ("b", 0, 1.0, START)])
    age(tmp_path)
    assert [path.name for path in discover([tmp_path])] == ["version_0", "other"]
    run = read_run(run_dir)
    (delta,) = read_whole(run, ContentOptions(), ReadOptions())
    assert (sorted(delta.metrics), delta.points) == (["acc", "val/loss/test", "val/loss/train"], 7)
    write_events(run_dir / "val_loss_test", 1, [("val/loss", 3, 2.5, START + 9)])
    age(tmp_path)
    assert look(run_dir, delta.after).points == 1


def test_the_placeholder_is_no_point(tmp_path: Path) -> None:
    """Lightning's `hp_metric` of -1 at step 0 is left out; any other value of that name is a metric."""
    folder = tmp_path / "run"
    write_events(folder, 0, [("hp_metric", 0, -1.0, START), ("loss", 0, 1.0, START), ("hp_metric", 3, 0.5, START + 1)])
    age(folder)
    (delta,) = read_whole(read_run(folder), ContentOptions(), ReadOptions())
    assert delta.points == 2
    assert series_of(read_run(folder), "hp_metric").step.tolist() == [3]


def test_hyperparameters_of_the_plugin(tmp_path: Path) -> None:
    """Without hparams.yaml the typed parameters come from the HPARAMS plugin, whole numbers as ints."""
    from tensorboard.plugins.hparams import plugin_data_pb2

    data = plugin_data_pb2.HParamsPluginData()
    data.session_start_info.hparams["lr"].number_value = 0.1
    data.session_start_info.hparams["layers"].number_value = 3
    data.session_start_info.hparams["opt"].string_value = "adam"
    data.session_start_info.hparams["bias"].bool_value = True
    event = Event(wall_time=START)
    value = event.summary.value.add(tag="_hparams_/session_start_info")
    value.metadata.plugin_data.plugin_name = "hparams"
    value.metadata.plugin_data.content = data.SerializeToString()
    path = write_events(tmp_path / "run", 0, [("loss", 0, 1.0, START)])
    path.write_bytes(path.read_bytes() + record(event))
    assert read_run(tmp_path / "run").params == {"lr": 0.1, "layers": 3, "opt": "adam", "bias": True}
    (tmp_path / "run" / "hparams.yaml").write_text("lr: 0.5\n")
    assert read_run(tmp_path / "run").params == {"lr": 0.5}


def test_growth_reads_on(run_dir: Path) -> None:
    """The next delta holds only the new records of all files and new files, and is SAME without any."""
    age(run_dir)
    first = look(run_dir, replaces=True)
    assert look(run_dir, first.after, replaces=True).kind is DeltaKind.SAME
    oldest, newest = sorted(run_dir.iterdir())
    append(oldest, scalar("acc", 20, 0.5, START + 112))
    append(newest, scalar("loss", 12, 3.0, START + 112))
    write_events(run_dir, 2, [("loss", 13, 4.0, START + 200)])
    age(run_dir)
    second = look(run_dir, first.after, replaces=True)
    assert (second.kind, second.points, second.after.rows) == (DeltaKind.APPEND, 3, 20)
    assert look(run_dir, second.after, replaces=True).kind is DeltaKind.SAME


def test_deleted_files_cost_the_target_nothing(run_dir: Path) -> None:
    """After old event files are deleted the target keeps its points, and new ones follow."""
    age(run_dir)
    first = look(run_dir, replaces=True)
    oldest, newest = sorted(run_dir.iterdir())
    oldest.unlink()
    assert look(run_dir, first.after, replaces=True).kind is DeltaKind.SAME
    write_events(run_dir, 2, [("loss", 11, 4.0, START + 200)])
    age(run_dir)
    second = look(run_dir, first.after, replaces=True)
    assert (second.kind, second.replace_from, second.points) == (DeltaKind.REWIND, 11, 1)
    newest.unlink()
    (run_dir / "events.out.tfevents.1775822400.host.1.2").unlink()
    write_events(run_dir, 3, [("loss", 12, 4.0, START + 300)])
    age(run_dir)
    third = look(run_dir, second.after, replaces=True)
    assert (third.kind, third.after) == (DeltaKind.SAME, second.after)
    assert third.reason == "the event files that the target was made of are gone; the target keeps its points"


@pytest.mark.parametrize(
    ("left", "starts_again", "reason"),
    [
        pytest.param(None, False, "found 10 rows in the event files, the target was made of 17", id="deleted"),
        pytest.param(None, True, "found 11 rows in the event files, the target was made of 17", id="and started again"),
        pytest.param(-150, False, "found 16 rows in the event files, the target was made of 17", id="shorter"),
        pytest.param(
            -60, False, "the event files are no longer those that the target was made of", id="a picture less"
        ),
    ],
)
def test_the_newest_file_that_is_gone_or_shorter_is_a_rebuild(
    run_dir: Path, left: int | None, starts_again: bool, reason: str
) -> None:
    """If somebody takes back the last start, its points and pictures count no longer, and those it replaced do."""
    newest = max(run_dir.iterdir())
    append(newest, picture("samples", 11, START + 111, png(1)))
    age(run_dir)
    first = look(run_dir, replaces=True)
    if left is None:
        newest.unlink()
    else:
        os.truncate(newest, newest.stat().st_size + left)
    if starts_again:
        write_events(run_dir, 2, [("loss", 11, 4.0, START + 200)])
    age(run_dir, 3000)
    changed = look(run_dir, first.after, replaces=True)
    assert (changed.kind, changed.points, changed.reason) == (DeltaKind.CHANGED, 0, reason)


def test_event_files_in_place_of_a_metrics_csv_are_a_rebuild(run_dir: Path) -> None:
    """A target that was made of a metrics.csv is rebuilt from the event files if that is deleted."""
    metrics = run_dir / "metrics.csv"
    metrics.write_text("step,loss\n0,1\n")
    age(run_dir)
    first = look(run_dir, replaces=True)
    metrics.unlink()
    after = look(run_dir, first.after, replaces=True)
    assert (after.kind, after.reason) == (
        DeltaKind.CHANGED,
        "the event files: the content of the first 1 row has changed",
    )


def test_any_name_can_be_ordered(tmp_path: Path) -> None:
    """A digit that is no number, such as a raised two, does not stop the reading of a folder."""
    folder = tmp_path / "1\u00b22"
    write_events(folder, 0, [("loss", 0, 1.0, START)])
    age(folder)
    assert series_of(read_run(folder), "loss").value.tolist() == [1.0]


def test_a_file_that_must_not_be_read_is_named(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A link that leads out is no part of the run, and no reason to say nothing."""
    oldest, newest = sorted(run_dir.iterdir())
    newest.symlink_to(newest.rename(tmp_path_factory.mktemp("elsewhere") / newest.name))
    run = read_run(run_dir)
    assert [file.path.name for file in run.event_files] == [oldest.name]
    refused = [(one.what, one.detail) for one in run.notices if one.kind is NoticeKind.REFUSED_PATH]
    assert refused == [(newest.name, "is a link that leads out of the run directory")]


@pytest.mark.timeout(20)
def test_pipes_and_links_make_no_run(tmp_path: Path) -> None:
    """A pipe named like an event file is never opened, and a link that leads out is not followed."""
    outside = write_events(tmp_path / "runs" / "run", 0, [("loss", 0, 1.0, START)])
    for name in ("pipe", "link", "run/loss_a"):
        (tmp_path / "runs" / name).mkdir()
    os.mkfifo(tmp_path / "runs" / "pipe" / outside.name)
    os.mkfifo(tmp_path / "runs" / "run" / "loss_a" / outside.name)
    (tmp_path / "runs" / "link" / outside.name).symlink_to(outside)
    age(tmp_path)
    found = discover([tmp_path / "runs"])
    assert [path.name for path in found.runs] == ["run"]


def test_a_cursor_before_several_files_is_found_again(tmp_path: Path) -> None:
    """Files of which nothing was read yet are known files, so nothing is read twice."""
    for number in range(3):
        write_events(tmp_path, number, [("loss", 9 * number + step, 1.0, START + number) for step in range(9)])
    age(tmp_path)
    first = look(tmp_path, limit=1)
    rest = look(tmp_path, first.after)
    assert (first.more, rest.kind, first.points + rest.points) == (True, DeltaKind.APPEND, 27)


def media_of(folder: Path, cursor: Any = None) -> list[tuple[str, int, int, bytes]]:
    """Return tag, step, index and bytes of each picture that is new since `cursor`."""
    found = []
    for event in look(folder, cursor, replaces=True).media:
        with open_file(event.file) as file:
            found.append((event.tag, event.step, event.index, file.read()))
    return found


@pytest.mark.parametrize("is_tensor", [False, True])
def test_pictures_have_the_bytes_of_the_event_file(tmp_path: Path, is_tensor: bool) -> None:
    """Each is a part of its event file, with its own time, whichever way it was written; nothing is copied."""
    path = write_events(tmp_path / "run", 0, [("loss", 0, 1.0, START)])
    append(path, picture("samples", 3, START + 3, png(1), png(2), is_tensor=is_tensor))
    append(path, picture("large", 4, START + 4, png(3) + bytes(9 << 20), is_tensor=is_tensor))
    age(tmp_path)
    assert media_of(tmp_path / "run") == [
        ("samples", 3, 0, png(1)),
        ("samples", 3, 1, png(2)),
        ("large", 4, 0, png(3) + bytes(9 << 20)),
    ]
    (event, *_) = look(tmp_path / "run").media
    assert (event.format, event.time, event.is_time_known, event.file.path) == ("png", START + 3, True, path)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "run", path]


def test_only_new_pictures_come_again(run_dir: Path) -> None:
    """A picture comes once; of a step that a later start logged again the later pictures count, by a rebuild."""
    first, second = sorted(run_dir.iterdir())
    append(first, picture("samples", 4, START + 4, png(1)), picture("samples", 9, START + 9, png(2)))
    age(run_dir)
    before = look(run_dir, replaces=True)
    assert [event.step for event in before.media] == [4, 9]
    append(second, picture("samples", 12, START + 112, png(3)))
    age(run_dir)
    after = look(run_dir, before.after, replaces=True)
    assert (after.kind, [event.step for event in after.media], after.after.media_lines) == (DeltaKind.APPEND, [12], 3)
    append(second, picture("samples", 9, START + 113, png(4)))
    age(run_dir)
    changed = look(run_dir, after.after, replaces=True)
    assert changed.kind is DeltaKind.CHANGED
    place = first.read_bytes().index(png(2))
    assert changed.reason == (
        f"{first.name}:{place}: samples at step 9 is superseded by a later line (1 media no longer count)"
    )
    assert media_of(run_dir) == [("samples", 4, 0, png(1)), ("samples", 12, 0, png(3)), ("samples", 9, 0, png(4))]


def test_a_file_before_a_picture_is_a_rebuild(tmp_path: Path) -> None:
    """If a new file comes before one with a picture, the target is rebuilt, so that it has the picture once."""
    write_events(tmp_path, 0, [("loss", 0, 1.0, START)])
    append(write_events(tmp_path, 2, []), picture("samples", 0, START, png(1)))
    age(tmp_path)
    first = look(tmp_path, replaces=True)
    assert len(first.media) == 1
    write_events(tmp_path, 1, [("acc", 0, 1.0, START)])
    age(tmp_path)
    assert look(tmp_path, first.after, replaces=True).kind is DeltaKind.CHANGED


def test_pictures_that_could_not_be_stored_come_again(run_dir: Path) -> None:
    """A cursor whose media are behind its rows gets all pictures."""
    append(min(run_dir.iterdir()), picture("samples", 4, START + 4, png(1)))
    age(run_dir)
    after = look(run_dir, replaces=True).after
    pending = after.with_(media_lines=0, media_offset=0, stat=None)
    assert media_of(run_dir, pending) == [("samples", 4, 0, png(1))]
    assert media_of(run_dir, after.with_(stat=None)) == []


def test_what_is_no_picture_is_a_notice(tmp_path: Path) -> None:
    """The notice names the event file and the byte at which the picture would begin."""
    path = write_events(tmp_path / "run", 0, [("loss", 0, 1.0, START)])
    append(path, picture("samples", 3, START + 3, b"no picture"))
    age(tmp_path)
    delta = look(tmp_path / "run")
    place = path.read_bytes().index(b"no picture")
    assert delta.media == ()
    assert [(one.kind, one.what) for one in delta.notices] == [(NoticeKind.UNREADABLE_MEDIA, f"{path.name}:{place}")]


sessions = st.lists(
    st.lists(
        st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 6), st.sampled_from([0.0, 1.0, 2.5, math.nan])),
        min_size=1,
        max_size=6,
    ),
    min_size=1,
    max_size=4,
)


@given(sessions, st.sampled_from([1, 3, 1000]), st.booleans(), st.sampled_from([1, 1 << 20]), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_any_history_ends_as_one_clean_read(
    history: list[list[tuple[str, int, float]]], limit: int, replaces: bool, budget: int, seed: int
) -> None:
    """However files grow between exports, the target ends with the points of the plain rule."""
    chance = random.Random(seed)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        options = ReadOptions(ordered=not replaces, replaces=replaces, limit=limit)
        target = Target(options, budget=budget)
        for number, points in enumerate(history):
            timed = [
                (tag, step, value, START + 100 * number + place) for place, (tag, step, value) in enumerate(points)
            ]
            path = write_events(folder, number, timed)
            rows += [Row(step, then, {tag: float(np.float32(value))}) for tag, step, value, then in timed]
            data = path.read_bytes()
            if chance.random() < 0.5:
                path.write_bytes(data[: chance.randrange(len(data) // 2, len(data))])
                age(folder, 250 - number)
                target.export(folder)
                path.write_bytes(data)
            age(folder, 200 - number)
            if chance.random() < 0.7:
                target.export(folder)
        age(folder, 100)
        target.export(folder)
    assert target.points == expected_points(rows)
    assert replaces or rising(target.events)
    assert json.loads(target.text or "")["rows"] == len(rows)


def values_of(points: Points) -> dict[tuple[str, int], list[str]]:
    """Return points without their times."""
    return {place: [value for _, value in found] for place, found in points.items()}


records_or_exports = st.lists(
    st.one_of(
        st.none(),
        st.tuples(st.integers(0, 2), st.sampled_from("ab"), st.integers(0, 4), st.sampled_from([0.0, 1.0, math.nan])),
    ),
    max_size=10,
)


@pytest.mark.parametrize("replaces", [False, True])
@given(history=records_or_exports, limit=st.sampled_from([1, 3, 1000]), is_unique=st.booleans())
@example(history=[(1, "b", 1, 0.0), None, (0, "b", 1, 1.0)], limit=1000, is_unique=False)
@example(history=[(1, "b", 1, 0.0), None, (0, "b", 1, 1.0), None, (1, "b", 1, 1.0)], limit=1, is_unique=False)
@settings(max_examples=40, deadline=None)
def test_files_that_grow_side_by_side_end_as_one_clean_read(
    replaces: bool, history: list[tuple[int, str, int, float] | None], limit: int, is_unique: bool
) -> None:
    """In whatever order files grow and are exported, their order decides which values count.

    Of equal values in two files the target has the time of either. None in the history is an export.
    """
    logged: list[list[Row]] = [[], [], []]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        target = Target(ReadOptions(ordered=not replaces, replaces=replaces, limit=limit))
        paths = [write_events(folder, number, [("first", 0, 1.0, START + number)]) for number in range(3)]
        for place, line in enumerate([*history, None]):
            if line is None:
                age(folder, 4000.0 - place)
                target.export(folder)
                continue
            number, tag, step, value = line
            row = Row(step, START + 9 + place, {tag: place + 0.5 if is_unique else value})
            append(paths[number], scalar(tag, step, float(row.cells[tag]), row.time))
            logged[number].append(row)
    first = [Row(0, START, {"first": 1.0})]
    points = expected_points([*first, *logged[0], *logged[1], *logged[2]])
    assert target.points == points if is_unique else values_of(target.points) == values_of(points)
    assert replaces or rising(target.events)

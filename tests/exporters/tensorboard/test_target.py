"""An export leaves a run's folder that the next export understands."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from bridge.errors import NewerFormatError, TargetUnavailableError
from bridge.exporters.tensorboard import TensorBoardExporter
from bridge.exporters.tensorboard.events import encode_block
from bridge.model import NoticeKind, Status
from bridge.options import ContentOptions
from tests.contract.bench import BrokenBlocks
from tests.deltas import make_block, make_delta, make_model_run
from tests.exporters.tensorboard.event_files import SCALARS, events, file_of, first_of, rows, second_of
from tests.pictures import draw, media_event
from tests.run_dirs import CREATED_S

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.model import Cursor, Run

SHAPE = ContentOptions()
FACTS = "events.out.tfevents.0000000001.bridge.facts.g000"
ALWAYS = [".bridge-target", "bridge-state.json"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def cursor_of(exporter: TensorBoardExporter, run: Run) -> Cursor:
    cursor = exporter.cursors([run])["uid-abc"].cursor
    assert cursor is not None
    return cursor


def steps_of(folder: Path) -> list[int]:
    return [step for step, _, _ in rows(file_of(folder, "scalars"))]


def test_what_is_in_a_folder(exporter: TensorBoardExporter, run: Run, folder: Path) -> None:
    """A folder holds event files named for their kind, the state and the marker."""
    exporter.open(run, SHAPE).apply(first_of(run))
    assert names(folder) == [*ALWAYS, FACTS, SCALARS]
    state = json.loads((folder / "bridge-state.json").read_text())
    assert (state["format"], state["identity"], state["cursor"]["rows"]) == (3, "uid-abc", 2)
    assert json.loads((folder / ".bridge-target").read_text())["identity"] == "uid-abc"


def test_every_event_file_begins_at_the_start_of_the_run(
    exporter: TensorBoardExporter, run: Run, folder: Path, tmp_path: Path
) -> None:
    """The file_version record carries created_at, which TensorBoard takes for the run's start."""
    delta = make_delta(run, first_of(run).blocks, media=[media_event(draw(tmp_path / "a.png"))])
    exporter.open(run, SHAPE).apply(delta)
    firsts = [events(file_of(folder, kind))[0] for kind in ("facts", "media", "scalars")]
    assert [(event.wall_time, event.file_version) for event in firsts] == [(CREATED_S - 10, "brain.Event:2")] * 3


def test_portions_that_do_not_say_what_they_follow(exporter: TensorBoardExporter, run: Run, folder: Path) -> None:
    """The portions of a whole run follow each other even if only the last can be continued."""
    first = first_of(run)
    second = second_of(run, first)
    third = make_delta(run, [make_block([4], {"loss": [0.5]}, first_row=4)], before=second.after)
    unfinished = first.after.with_(rows=0, digest="", complete=False)
    portions = [first.with_(after=unfinished), second.with_(after=unfinished, before=None), third.with_(before=None)]
    for _ in range(2):
        target = exporter.open(run, SHAPE)
        for delta in portions:
            target.apply(delta)
        assert steps_of(folder) == [0, 1, 2, 3, 4]
    exporter.open(run, SHAPE).apply(portions[0])
    assert not cursor_of(exporter, run).complete
    with pytest.raises(TargetUnavailableError, match="changed by someone else"):
        exporter.open(run, SHAPE).apply(portions[1])


def test_portions_of_two_exports_at_once(exporter: TensorBoardExporter, run: Run, folder: Path) -> None:
    """An export that finds its first portion written by another one goes on where that one stopped."""
    first = first_of(run)
    second = second_of(run, first).with_(before=None)
    one, other = (exporter.open(run, SHAPE) for _ in range(2))
    assert [target.apply(first).points for target in (one, other)] == [2, 0]
    assert [target.apply(second).points for target in (other, one)] == [2, 0]
    assert steps_of(folder) == [0, 1, 2, 3]


def test_only_new_facts(exporter: TensorBoardExporter, run: Run, folder: Path, tmp_path: Path) -> None:
    """A changed status rewrites only the facts' file, under a new name."""
    running = make_model_run(tmp_path / "runs" / "abc", status=Status.RUNNING)
    first = first_of(running)
    exporter.open(running, SHAPE).apply(first)
    scalars = (folder / SCALARS).stat()
    assert set(exporter.stale(run, cursor_of(exporter, run), SHAPE)) == {"status", "start", "end", "hparams"}
    exporter.open(run, SHAPE).apply(make_delta(run, before=first.after, metrics=("loss",)))
    assert names(folder) == [*ALWAYS, FACTS.replace("g000", "g001"), SCALARS]
    assert (folder / SCALARS).stat().st_mtime_ns == scalars.st_mtime_ns
    assert not exporter.stale(run, cursor_of(exporter, run), SHAPE)


def test_a_rebuild_has_new_names(exporter: TensorBoardExporter, run: Run, folder: Path) -> None:
    """A rebuild uses new file names, because a watching TensorBoard would not notice a change, and deletes the old."""
    target = exporter.open(run, SHAPE)
    target.apply(first_of(run))
    target.rebuild([make_delta(run, [make_block([0, 5], {"loss": [4.0, 9.0]})])])
    assert names(folder) == [*ALWAYS, FACTS.replace("g000", "g001"), SCALARS.replace("g000", "g001")]
    assert steps_of(folder) == [0, 5]


@pytest.mark.parametrize("same", [True, False])
def test_what_was_never_acknowledged_is_left_behind(
    exporter: TensorBoardExporter, run: Run, folder: Path, same: bool
) -> None:
    """Bytes beyond the length in the state come from a killed export, so the next one starts a new file."""
    first = first_of(run)
    target = exporter.open(run, SHAPE)
    target.apply(first)
    second = second_of(run, first)
    with (folder / SCALARS).open("ab") as file:
        (records,) = encode_block(second.blocks[0], [b"loss"])
        file.write(records.tobytes() + b"half a record" if same else bytes(100))
    target.apply(second)
    assert names(folder) == [*ALWAYS, FACTS, SCALARS.replace("g000", "g001")]
    assert steps_of(folder) == [0, 1, 2, 3]


def test_what_a_killed_export_left_makes_the_run_stale(exporter: TensorBoardExporter, run: Run, folder: Path) -> None:
    """The next export removes an old file that a killed one left, even without new rows."""
    first = first_of(run)
    target = exporter.open(run, SHAPE)
    target.apply(first)
    (folder / SCALARS.replace("g000", "g007")).write_bytes(b"old")
    (folder / ".bridge-media-3.new").write_bytes(b"half")
    (folder / ".bridge-state.json.0123abcd.tmp").write_bytes(b"half")
    assert list(exporter.stale(run, cursor_of(exporter, run), SHAPE)) == ["left-over files"]
    target.apply(make_delta(run, before=first.after, metrics=("loss",)))
    assert names(folder) == [*ALWAYS, FACTS, SCALARS]
    assert not exporter.stale(run, cursor_of(exporter, run), SHAPE)


def test_a_state_of_a_newer_bridge_stops_its_run(exporter: TensorBoardExporter, run: Run, folder: Path) -> None:
    """A state with an unknown format number is refused and left unchanged."""
    target = exporter.open(run, SHAPE)
    first = first_of(run)
    target.apply(first)
    path = folder / "bridge-state.json"
    text = path.read_text().replace('"format": 3, "gen', '"format": 4, "gen')
    path.write_text(text)
    known = exporter.cursors([run])["uid-abc"]
    assert isinstance(known.error, NewerFormatError)
    with pytest.raises(NewerFormatError, match="newer bridge"):
        target.apply(second_of(run, first))
    assert path.read_text() == text


def test_renames_and_clipped_values_are_losses(run: Run, tmp_path: Path) -> None:
    """Of two metrics with one tag the first keeps it; a value beyond float32 is counted."""
    content = ContentOptions(rename=(("a", "b"),))
    exporter = TensorBoardExporter(tmp_path / "logs")
    target = exporter.open(run, content)
    delta = make_delta(run, [make_block([0, 1], {"a": [1.0, 1e39], "b": [2.0, -1e39]})])
    done = target.apply(delta)
    assert [(notice.kind, notice.what, notice.detail, notice.count) for notice in done.notices] == [
        (NoticeKind.RENAMED, "b", "stored as 'b (2)'", 1),
        (NoticeKind.CLIPPED, "a", "beyond 32 bits, stored as infinite", 1),
        (NoticeKind.CLIPPED, "b", "beyond 32 bits, stored as infinite", 1),
    ]
    assert {name: series.value.tolist() for name, series in target.read().series.items()} == {
        "a": [1.0, float("inf")],
        "b": [2.0, float("-inf")],
    }


def test_what_must_be_remembered_first_is(exporter: TensorBoardExporter, run: Run) -> None:
    """Anchors of estimated times are in the state before the first point that uses them."""
    first = first_of(run)
    target = exporter.open(run, SHAPE)
    target.apply(first)
    remember = first.after.with_(anchors=((0, 1.0), (2, 5.0)))
    second = second_of(run, first)
    with pytest.raises(TargetUnavailableError, match="broke"):
        target.apply(second.with_(remember=remember, blocks=BrokenBlocks(second.blocks)))
    known = cursor_of(exporter, run)
    assert (known.rows, known.anchors) == (2, ((0, 1.0), (2, 5.0)))

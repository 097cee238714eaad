"""Edits far from a file's end and edited states are detected; copies are no edits."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from bridge.exporters.tensorboard import TensorBoardExporter
from bridge.exporters.tensorboard.events import FOOTER, HEADER, frame
from bridge.options import ContentOptions
from bridge.sync.export import export_runs
from bridge.sync.report import Action
from tests.deltas import make_block, make_delta, make_model_run
from tests.exporters.tensorboard.event_files import SCALARS, file_of, rows
from tests.run_dirs import CREATED_S, make_run, write_metrics

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bridge.sync.report import RunReport

SHAPE = ContentOptions()
ROWS = 3_000
UNTRUSTED = "what the target remembers of this run cannot be trusted"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a run directory that makes an event file of more than 100 kB."""
    return make_run(tmp_path / "runs" / "abc", [{"step": step, "loss": 1.0 / (step + 1)} for step in range(ROWS)])


@pytest.fixture
def folder(tmp_path: Path, source: Path) -> Path:
    """Export the run and return its folder in the log directory."""
    assert export(source, tmp_path / "logs").points == ROWS
    return tmp_path / "logs" / "abc"


def export(source: Path, logdir: Path) -> RunReport:
    (line,) = export_runs([source], TensorBoardExporter(logdir)).runs
    assert not line.failed, line.reason
    return line


def state_of(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "bridge-state.json").read_bytes())
    return data


def flip(path: Path, place: int) -> None:
    """Change one bit in place, as a failing disk does."""
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 4]))


def change_first_value(path: Path) -> None:
    """Change the value of the first point and correct its record's checksum."""
    data = path.read_bytes()
    begin = HEADER + struct.unpack_from("<Q", data)[0] + FOOTER
    end = begin + HEADER + struct.unpack_from("<Q", data, begin)[0] + FOOTER
    event = data[begin + HEADER : end - FOOTER - 4] + struct.pack("<f", 77.0)
    path.write_bytes(data[:begin] + frame(event) + data[end:])


@pytest.mark.parametrize("place", [0, 200, 30_000, 100_000])
def test_a_bit_that_flipped_far_from_the_end_is_noticed(tmp_path: Path, source: Path, folder: Path, place: int) -> None:
    """A flipped bit anywhere in a long file leads to a rebuild with its reason."""
    whole = (folder / SCALARS).read_bytes()
    flip(folder / SCALARS, place)
    line = export(source, tmp_path / "logs")
    assert (line.action, line.reason, line.points) == (Action.REBUILD, UNTRUSTED, ROWS)
    assert line.notes == (f"{folder}: rebuilt, because {SCALARS} was edited",)
    assert file_of(folder, "scalars").read_bytes() == whole
    assert export(source, tmp_path / "logs").action is Action.UNCHANGED


def test_an_edit_that_keeps_the_checksums_right_is_noticed(tmp_path: Path, source: Path, folder: Path) -> None:
    """An edit with valid checksums, which TensorBoard would show, is detected."""
    whole = (folder / SCALARS).read_bytes()
    change_first_value(folder / SCALARS)
    assert rows(folder / SCALARS)[0][2] == {"loss": struct.pack("<f", 77.0).hex()}
    line = export(source, tmp_path / "logs")
    assert line.notes == (f"{folder}: rebuilt, because {SCALARS} was edited",)
    assert file_of(folder, "scalars").read_bytes() == whole


def test_an_edit_is_noticed_where_there_are_new_rows(tmp_path: Path, source: Path, folder: Path) -> None:
    """New rows are not appended to an edited file."""
    flip(folder / SCALARS, 200)
    write_metrics(source, ["loss", "step", "wall_time"], [(0.5, ROWS, CREATED_S + ROWS)], append=True)
    line = export(source, tmp_path / "logs")
    assert (line.action, line.points) == (Action.REBUILD, ROWS + 1)
    assert [row[0] for row in rows(file_of(folder, "scalars"))] == list(range(ROWS + 1))


def without_scalars(state: dict[str, Any]) -> None:
    del state["files"]["scalars"]


def other_name(state: dict[str, Any]) -> None:
    state["names"] = {"loss": "not the loss"}


def other_facts(state: dict[str, Any]) -> None:
    state["cursor"]["sent"]["notes"] = "0" * 16


def other_rows(state: dict[str, Any]) -> None:
    state["cursor"]["rows"] = 1


def without_digest(state: dict[str, Any]) -> None:
    del state["digest"]


@pytest.mark.parametrize("edit", [without_scalars, other_name, other_facts, other_rows, without_digest])
def test_a_state_that_was_edited_is_noticed(
    tmp_path: Path, source: Path, folder: Path, edit: Callable[[dict[str, Any]], None]
) -> None:
    """An edited state that is still JSON is not believed, and no curve is lost."""
    whole = (folder / SCALARS).read_bytes()
    state = state_of(folder)
    edit(state)
    (folder / "bridge-state.json").write_text(json.dumps(state))
    line = export(source, tmp_path / "logs")
    assert (line.action, line.reason, line.points) == (Action.REBUILD, UNTRUSTED, ROWS)
    assert line.notes == (f"{folder}: rebuilt, because its state file is missing or damaged",)
    assert file_of(folder, "scalars").read_bytes() == whole


def save_edited(folder: Path, state: dict[str, Any]) -> None:
    """Write a state with the digest of its content, as the bridge does."""
    del state["digest"]
    state["digest"] = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:32]
    (folder / "bridge-state.json").write_text(json.dumps(state))


def test_a_state_of_an_older_format_is_not_believed(tmp_path: Path, source: Path, folder: Path) -> None:
    """A state of an older format leads to a new export of the run."""
    state = state_of(folder)
    state["format"] -= 1
    save_edited(folder, state)
    line = export(source, tmp_path / "logs")
    assert (line.action, line.points) == (Action.REBUILD, ROWS)


def test_an_event_file_that_no_state_names_is_not_left_over(tmp_path: Path, source: Path, folder: Path) -> None:
    """An unknown event file of ours is removed once a complete new one exists."""
    state = state_of(folder)
    del state["files"]["scalars"]
    save_edited(folder, state)
    line = export(source, tmp_path / "logs")
    assert (line.action, line.points) == (Action.REBUILD, ROWS)
    assert line.notes == (f"{folder}: rebuilt, because its state file does not name {SCALARS}",)
    assert [row[0] for row in rows(file_of(folder, "scalars"))] == list(range(ROWS))


def test_a_copied_log_directory_is_no_edit(tmp_path: Path, source: Path, folder: Path) -> None:
    """Files with the same bytes and other mtimes are as they were written."""
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "logs", copy, copy_function=shutil.copyfile)
    assert (copy / "abc" / SCALARS).stat().st_mtime_ns != state_of(folder)["files"]["scalars"]["mtime"]
    line = export(source, copy)
    assert (line.action, line.notes) == (Action.UNCHANGED, ())


def test_what_was_written_is_not_read_again(tmp_path: Path) -> None:
    """A file with the recorded length and mtime is not read, not even for an append.

    An edit that restores the mtime is found by verify only, until the mtime changes.
    """
    run = make_model_run(tmp_path / "abc")
    exporter = TensorBoardExporter(tmp_path / "logs")
    target = exporter.open(run, SHAPE)
    first = make_delta(run, [make_block(range(ROWS), {"loss": [1.0] * ROWS})])
    target.apply(first)
    path = tmp_path / "logs" / "abc" / SCALARS
    before = path.stat()
    flip(path, 200)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert exporter.cursors([run])["uid-abc"].cursor is not None
    target.apply(make_delta(run, [make_block([ROWS], {"loss": [1.0]}, first_row=ROWS)], before=first.after))
    flip(path, 200)
    assert state_of(path.parent)["files"]["scalars"]["checksum"] == zlib.crc32(path.read_bytes())
    assert exporter.cursors([run])["uid-abc"].cursor is not None
    flip(path, 200)
    assert exporter.cursors([run])["uid-abc"].cursor is None

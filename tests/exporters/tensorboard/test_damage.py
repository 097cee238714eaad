"""Event files and states that were cut, edited or deleted are detected and repaired with a reason; copies are no edits.

The table uses whole exports of a run whose event file has more than 100 kB.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from typing import TYPE_CHECKING, Any

import pytest

from bridge.errors import RebuildNeededError, TargetError, TargetRefusedError
from bridge.exporters.tensorboard import TensorBoardExporter
from bridge.exporters.tensorboard.events import FOOTER, HEADER, frame
from bridge.options import ContentOptions
from bridge.sync.export import export_runs
from bridge.sync.report import Action
from tests.exporters.tensorboard.event_files import SCALARS, file_of, first_of, rows, second_of
from tests.run_dirs import CREATED_S, make_run, write_metrics

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bridge.model import Run
    from bridge.sync.report import RunReport

SHAPE = ContentOptions()
ROWS = 3_000


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs" / "abc", [{"step": step, "loss": 1.0 / (step + 1)} for step in range(ROWS)])


@pytest.fixture
def exported(tmp_path: Path, source: Path) -> Path:
    """Export the run and return its folder in the log directory."""
    assert export(source, tmp_path / "logs").points == ROWS
    return tmp_path / "logs" / "abc"


def export(source: Path, logdir: Path) -> RunReport:
    (line,) = export_runs([source], TensorBoardExporter(logdir)).runs
    assert not line.failed, line.reason
    return line


def flip(path: Path, place: int) -> None:
    """Change one bit in place, as a failing disk does."""
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 4]))


def flipped(place: int) -> Callable[[Path], None]:
    return lambda folder: flip(folder / SCALARS, place)


def change_first_value(folder: Path) -> None:
    """Change the value of the first point and correct its record's checksum, so that TensorBoard would show it."""
    path = folder / SCALARS
    data = path.read_bytes()
    begin = HEADER + struct.unpack_from("<Q", data)[0] + FOOTER
    end = begin + HEADER + struct.unpack_from("<Q", data, begin)[0] + FOOTER
    event = data[begin + HEADER : end - FOOTER - 4] + struct.pack("<f", 77.0)
    path.write_bytes(data[:begin] + frame(event) + data[end:])
    assert rows(path)[0][2] == {"loss": struct.pack("<f", 77.0).hex()}


def state(*place: str, value: object = None, digest: bool = False) -> Callable[[Path], None]:
    """Return an edit of the state file that sets or removes the item at `place`; with `digest` it looks like ours."""

    def edit(folder: Path) -> None:
        data: Any = json.loads((folder / "bridge-state.json").read_bytes())
        item = data
        for key in place[:-1]:
            item = item[key]
        item[place[-1]] = value
        if value is None:
            del item[place[-1]]
        if digest:
            del data["digest"]
            data["digest"] = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:32]
        (folder / "bridge-state.json").write_text(json.dumps(data))

    return edit


EDITED = f"{SCALARS} was edited"
UNTRUSTED_STATE = "its state file is missing or damaged"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda folder: os.truncate(folder / SCALARS, 60), f"{SCALARS} was cut short"),
    "emptied": (lambda folder: os.truncate(folder / SCALARS, 0), f"{SCALARS} was cut short"),
    "removed": (lambda folder: (folder / SCALARS).unlink(), f"{SCALARS} is missing or cannot be read"),
    "a bit at the beginning": (flipped(0), EDITED),
    "a bit in the first record": (flipped(200), EDITED),
    "a bit in the middle": (flipped(30_000), EDITED),
    "a bit at the end": (flipped(100_000), EDITED),
    "a value with the right checksum": (change_first_value, EDITED),
    "state torn": (lambda folder: (folder / "bridge-state.json").write_text('{"format": 1, "ident'), UNTRUSTED_STATE),
    "state emptied": (lambda folder: os.truncate(folder / "bridge-state.json", 0), UNTRUSTED_STATE),
    "state removed": (lambda folder: (folder / "bridge-state.json").unlink(), UNTRUSTED_STATE),
    "state without a file": (state("files", "scalars"), UNTRUSTED_STATE),
    "state with another name": (state("names", value={"loss": "not the loss"}), UNTRUSTED_STATE),
    "state with other facts": (state("cursor", "sent", "notes", value="0" * 16), UNTRUSTED_STATE),
    "state with other rows": (state("cursor", "rows", value=1), UNTRUSTED_STATE),
    "state without a digest": (state("digest"), UNTRUSTED_STATE),
    "state of an older format": (state("format", value=2, digest=True), UNTRUSTED_STATE),
    "a file that no state names": (state("files", "scalars", digest=True), f"its state file does not name {SCALARS}"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_noticed_and_mended(tmp_path: Path, source: Path, exported: Path, kind: str) -> None:
    """A cut, edited or deleted file leads to a rebuild with its reason, and no curve is lost."""
    damage, said = DAMAGES[kind]
    whole = (exported / SCALARS).read_bytes()
    damage(exported)
    line = export(source, tmp_path / "logs")
    untrusted = "what the target remembers of this run cannot be trusted"
    assert (line.action, line.reason, line.points) == (Action.REBUILD, untrusted, ROWS)
    assert line.notes == (f"{exported}: rebuilt, because {said}",)
    assert file_of(exported, "scalars").read_bytes() == whole
    assert export(source, tmp_path / "logs").action is Action.UNCHANGED


def test_a_power_cut_that_empties_every_file(tmp_path: Path, source: Path, exported: Path) -> None:
    """A folder whose files all lost their bytes, the marker too, is filled again."""
    whole = (exported / SCALARS).read_bytes()
    for path in exported.iterdir():
        os.truncate(path, 0)
    line = export(source, tmp_path / "logs")
    assert (line.action, line.notes) == (Action.REBUILD, (f"{exported}: rebuilt, because {UNTRUSTED_STATE}",))
    assert file_of(exported, "scalars").read_bytes() == whole
    assert export(source, tmp_path / "logs").action is Action.UNCHANGED


def test_an_edit_is_noticed_where_there_are_new_rows(tmp_path: Path, source: Path, exported: Path) -> None:
    """New rows are not appended to an edited file."""
    flip(exported / SCALARS, 200)
    write_metrics(source, ["loss", "step", "wall_time"], [(0.5, ROWS, CREATED_S + ROWS)], append=True)
    line = export(source, tmp_path / "logs")
    assert (line.action, line.points) == (Action.REBUILD, ROWS + 1)
    assert [row[0] for row in rows(file_of(exported, "scalars"))] == list(range(ROWS + 1))


def test_a_copied_log_directory_is_no_edit(tmp_path: Path, source: Path, exported: Path) -> None:
    """Files with the same bytes and other mtimes are as they were written."""
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "logs", copy, copy_function=shutil.copyfile)
    assert (copy / "abc" / SCALARS).stat().st_mtime_ns != (exported / SCALARS).stat().st_mtime_ns
    line = export(source, copy)
    assert (line.action, line.notes) == (Action.UNCHANGED, ())


def test_what_was_written_is_not_read_again(tmp_path: Path, source: Path, exported: Path) -> None:
    """A file with the recorded length and mtime is not read, not even for an append.

    An edit that restores the mtime is found by verify only, until the mtime changes.
    """
    path = exported / SCALARS
    before = path.stat()
    flip(path, 200)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert export(source, tmp_path / "logs").action is Action.UNCHANGED
    write_metrics(source, ["loss", "step", "wall_time"], [(0.5, ROWS, CREATED_S + ROWS)], append=True)
    assert export(source, tmp_path / "logs").points == 1
    flip(path, 200)  # as it was written
    assert export(source, tmp_path / "logs").action is Action.UNCHANGED
    flip(path, 200)
    assert export(source, tmp_path / "logs").action is Action.REBUILD


def test_a_target_does_not_continue_what_is_damaged(exporter: TensorBoardExporter, run: Run, folder: Path) -> None:
    """Damage that comes between two deltas of one export is noticed too, and that there is no folder any more."""
    target = exporter.open(run, SHAPE)
    first = first_of(run)
    target.apply(first)
    flip(folder / SCALARS, 60)
    with pytest.raises(RebuildNeededError, match=EDITED):
        target.apply(second_of(run, first))
    shutil.rmtree(folder)
    with pytest.raises(RebuildNeededError, match="it is empty"):
        target.apply(second_of(run, first))


def test_a_flipped_bit_is_an_error_that_names_the_file(exporter: TensorBoardExporter, run: Run, folder: Path) -> None:
    """Reading back checks every checksum, where TensorBoard's reader would stop silently."""
    target = exporter.open(run, SHAPE)
    target.apply(first_of(run))
    flip(folder / SCALARS, 60)
    with pytest.raises(TargetRefusedError, match=f"{SCALARS} is damaged at byte 40"):
        target.read()


def test_what_is_acknowledged_stays_though_cleaning_up_fails(
    exporter: TensorBoardExporter, run: Run, folder: Path
) -> None:
    """After an error in the clean-up the next export repeats nothing."""
    target = exporter.open(run, SHAPE)
    first = first_of(run)
    target.apply(first)
    (folder / SCALARS.replace("g000", "g009")).mkdir()
    with pytest.raises(TargetError, match="g009"):
        target.apply(second_of(run, first))
    known = exporter.cursors([run])["uid-abc"].cursor
    assert known is not None
    assert known.rows == 4
    assert [row[0] for row in rows(folder / SCALARS)] == [0, 1, 2, 3]

"""Event files and states that were cut, edited or deleted are detected and repaired with a reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bridge.errors import RebuildNeededError, TargetError, TargetRefusedError
from bridge.options import ContentOptions
from tests.exporters.tensorboard.event_files import SCALARS, file_of, first_of, hex32, rows, second_of
from tests.run_dirs import CREATED_S

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bridge.exporters.tensorboard import TensorBoardExporter
    from bridge.model import Run

SHAPE = ContentOptions()


def damage_cut(folder: Path) -> None:
    with (folder / SCALARS).open("r+b") as file:
        file.truncate(60)


def damage_edit(folder: Path) -> None:
    data = bytearray((folder / SCALARS).read_bytes())
    data[-7] ^= 1
    (folder / SCALARS).write_bytes(data)


def damage_remove(folder: Path) -> None:
    (folder / SCALARS).unlink()


def damage_state(folder: Path) -> None:
    (folder / "bridge-state.json").write_text('{"format": 1, "ident')


def remove_state(folder: Path) -> None:
    (folder / "bridge-state.json").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_cut, f"{SCALARS} was cut short"),
        (damage_edit, f"{SCALARS} was edited"),
        (damage_remove, f"{SCALARS} is missing or cannot be read"),
        (damage_state, "its state file is missing or damaged"),
        (remove_state, "its state file is missing or damaged"),
    ],
)
def test_damage_is_noticed_and_mended(
    exporter: TensorBoardExporter, run: Run, folder: Path, damage: Callable[[Path], None], said: str
) -> None:
    """A cut, edited or deleted file leads to a rebuild with its reason."""
    target = exporter.open(run, SHAPE)
    first = first_of(run)
    target.apply(first)
    damage(folder)
    known = exporter.cursors([run])["uid-abc"]
    assert (known.exists, known.cursor, known.error) == (True, None, None)
    with pytest.raises(RebuildNeededError, match=said):
        target.apply(second_of(run, first))
    done = target.rebuild([first])
    assert done.notes == (f"{folder}: rebuilt, because {said}",)
    assert rows(file_of(folder, "scalars")) == [
        (0, CREATED_S, {"loss": hex32(4.0)}),
        (1, CREATED_S + 1, {"loss": hex32(3.0)}),
    ]


def test_a_flipped_bit_is_an_error_that_names_the_file(exporter: TensorBoardExporter, run: Run, folder: Path) -> None:
    """Reading back checks every checksum, where TensorBoard's reader would stop silently."""
    target = exporter.open(run, SHAPE)
    target.apply(first_of(run))
    data = bytearray((folder / SCALARS).read_bytes())
    data[60] ^= 4
    (folder / SCALARS).write_bytes(data)
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

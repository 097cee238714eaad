"""Columns become event records from which TensorBoard's loader reads the same columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from bridge.exporters.tensorboard.events import encode_block, step_widths, varint, version_record
from bridge.model import Block
from tests.deltas import make_block
from tests.exporters.tensorboard.event_files import hex32, rows
from tests.run_dirs import CREATED_S

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def encoded(path: Path, *blocks: Block) -> list[tuple[int, float, dict[str, str]]]:
    """Return the blocks as one event file, read back."""
    with path.open("wb") as file:
        file.write(version_record(CREATED_S))
        for block in blocks:
            for records in encode_block(block, [name.encode() for name in block.names]):
                file.write(records.data)
    return rows(path)


def expected(*blocks: Block) -> list[tuple[int, float, dict[str, str]]]:
    found = []
    for block in blocks:
        for place in range(len(block.step)):
            values = {
                name: hex32(float(block.values[index, place]))
                for index, name in enumerate(block.names)
                if block.present[index, place]
            }
            if values:
                found.append((int(block.step[place]), float(block.time[place]), values))
    return found


def random_block(rng: np.random.Generator, count: int, names: int, density: float, steps: tuple[int, int]) -> Block:
    return Block(
        names=tuple(f"m{index}" * (1 + index % 9) for index in range(names)),
        row=np.arange(count),
        step=rng.integers(*steps, count),
        time=CREATED_S + rng.random(count),
        values=rng.standard_normal((names, count)),
        present=rng.random((names, count)) < density,
    )


def test_one_row_is_one_event(tmp_path: Path) -> None:
    """One event holds the values of a row in the order of the columns, without empty cells."""
    block = make_block([7, 8], {"b": [1.0, 2.0], "a": [None, -0.5]})
    assert encoded(tmp_path / "tfevents", block) == [
        (7, CREATED_S, {"b": hex32(1.0)}),
        (8, CREATED_S + 1, {"b": hex32(2.0), "a": hex32(-0.5)}),
    ]


def test_the_bytes_of_a_record(tmp_path: Path) -> None:
    """A record equals what protocol buffers make of the same event."""
    from tensorboard.compat.proto import event_pb2, summary_pb2

    from bridge.exporters.tensorboard.events import frame

    (records,) = encode_block(make_block([300], {"train/loss": [0.25], "x": [1.5]}), [b"train/loss", b"x"])
    values = [
        summary_pb2.Summary.Value(tag="train/loss", simple_value=0.25),
        summary_pb2.Summary.Value(tag="x", simple_value=1.5),
    ]
    event = event_pb2.Event(wall_time=CREATED_S, step=300, summary=summary_pb2.Summary(value=values))
    assert records.tobytes() == frame(event.SerializeToString(deterministic=True))


@pytest.mark.parametrize(
    ("count", "names", "density", "steps"),
    [
        (1, 1, 1.0, (0, 1)),
        (2000, 4, 1.0, (0, 100)),
        (2000, 4, 1.0, (-(2**63), 2**63 - 1)),
        (2000, 3, 0.5, (-5, 20_000)),
        (300, 70, 1.0, (0, 5)),
        (400, 70, 0.3, (0, 2**40)),
        (200, 200, 0.02, (-3, 300)),
        (17_000, 2, 0.9, (0, 2**31)),
        (100, 300, 1.0, (0, 5)),
        (70, 40, 0.5, (0, 300)),
    ],
)
def test_blocks_of_any_shape_come_back(
    tmp_path: Path, count: int, names: int, density: float, steps: tuple[int, int]
) -> None:
    """Dense and sparse blocks, any number of columns and steps of any length are read back."""
    rng = np.random.default_rng(count + names)
    block = random_block(rng, count, names, density, steps)
    assert encoded(tmp_path / "tfevents", block) == expected(block)


def test_the_bytes_do_not_depend_on_the_blocks(tmp_path: Path) -> None:
    """The file does not depend on how rows are cut into blocks, so a grown file equals a clean one."""
    rng = np.random.default_rng(3)
    whole = random_block(rng, 300, 5, 0.6, (0, 300))
    tags = [name.encode() for name in whole.names]
    bytes_of_whole = b"".join(part.tobytes() for part in encode_block(whole, tags))
    for size in (1, 7, 100):
        parts = []
        for start in range(0, 300, size):
            part = slice(start, start + size)
            block = Block(
                whole.names,
                whole.row[part],
                whole.step[part],
                whole.time[part],
                whole.values[:, part],
                whole.present[:, part],
            )
            parts += [records.tobytes() for records in encode_block(block, tags)]
        assert b"".join(parts) == bytes_of_whole


numbers = st.floats(width=64) | st.sampled_from([0.0, -0.0, 1e300, 5e-324, 1e-45, float("nan"), float("inf"), -1e39])


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    names = draw(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=6, unique=True))
    count = draw(st.integers(0, 40))
    steps: NDArray[np.int64] = draw(npst.arrays(np.int64, count))
    return Block(
        names=tuple(names),
        row=np.arange(count),
        step=steps,
        time=draw(npst.arrays(np.float64, count, elements=st.floats(0, 4e9))),
        values=draw(npst.arrays(np.float64, (len(names), count), elements=numbers)),
        present=draw(npst.arrays(np.bool_, (len(names), count))),
    )


@given(st.lists(blocks(), max_size=3))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_series_comes_back(tmp_path: Path, some: list[Block]) -> None:
    """Any names, steps, times and values are read back, values as float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        assert encoded(tmp_path / "tfevents", *some) == expected(*some)


@pytest.mark.parametrize(
    ("step", "width"),
    [(0, 1), (127, 1), (128, 2), (2**14 - 1, 2), (2**14, 3), (2**63 - 1, 9), (-1, 10), (-(2**63), 10)],
)
def test_how_long_a_step_is(step: int, width: int) -> None:
    """A step takes the bytes of its varint, and a negative one takes ten."""
    assert step_widths(np.array([step], dtype=np.int64).view(np.uint64)).tolist() == [width]
    assert len(varint(step % 2**64)) == width

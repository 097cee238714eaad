"""Columns become event records from which TensorBoard's loader reads the same columns."""

from __future__ import annotations

import random
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from bridge.errors import MissingExtraError
from bridge.exporters.tensorboard import events
from bridge.exporters.tensorboard.events import (
    encode_block,
    encode_rows,
    frame,
    masked_crc32c,
    require_tensorboard,
    version_record,
)
from bridge.model import Block
from tests.deltas import make_block
from tests.exporters.tensorboard.event_files import hex32, rows
from tests.run_dirs import CREATED_S

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def encoded(block: Block) -> bytes:
    return b"".join(part.tobytes() for part in encode_block(block, [name.encode() for name in block.names]))


def read_back(path: Path, *blocks: Block) -> list[tuple[int, float, dict[str, str]]]:
    """Return the blocks as TensorBoard reads them from one event file."""
    path.write_bytes(version_record(CREATED_S) + b"".join(map(encoded, blocks)))
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


@pytest.mark.parametrize("length", [0, 1, 7, 63, 64, 2047, 2048, 2049, 100_003])
def test_checksums_are_tensorboards(length: int) -> None:
    """A masked checksum is the one that TensorBoard's reader expects, of short and of long data."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c as theirs

    data = random.Random(length).randbytes(length)
    assert masked_crc32c(data) == theirs(data)


def test_checksums_are_computed_by_compiled_code() -> None:
    """The library for checksums is installed with its C extension. Without it, an export is slow, with a warning."""
    import google_crc32c

    assert google_crc32c.implementation == "c"


def test_tensorboard_without_the_rest_of_its_extra_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """If tensorboard came with another package, the missing part of the extra is named by its pip line."""
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    with pytest.raises(MissingExtraError) as caught:
        require_tensorboard()
    assert caught.value.hint == 'pip install "registry-bridge[tensorboard]"'


def test_metrics_without_a_value_take_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of thousands of metrics only those that some of the rows hold are laid out: each costs calls of numpy."""
    rng = np.random.default_rng(0)
    block = random_block(rng, 40, 20_000, 1e-4, (0, 1000))
    laid_out = []

    def watched(tags: list[bytes], *columns: Any) -> NDArray[np.uint8]:
        laid_out.append(len(tags))
        return encode_rows(tags, *columns)

    monkeypatch.setattr(events, "encode_rows", watched)
    assert encoded(block)
    assert sum(laid_out) <= block.points


@pytest.mark.parametrize("copies", [1, 100])
@pytest.mark.parametrize("step", [0, 127, 128, 2**14 - 1, 2**14, 2**63 - 1, -1, -(2**63)])
def test_the_bytes_of_a_record(step: int, copies: int) -> None:
    """A record equals what protocol buffers make of the same event: the values of a row, without its empty cells."""
    from tensorboard.compat.proto import event_pb2, summary_pb2

    columns = {"train/loss": [0.25, 2.0], "x": [1.5, None]}
    block = make_block([step, step] * copies, {name: values * copies for name, values in columns.items()})
    records = b""
    for row, time in enumerate(block.time.tolist()):
        values = {"train/loss": 0.25, "x": 1.5} if row % 2 == 0 else {"train/loss": 2.0}
        items = [summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        event = event_pb2.Event(wall_time=time, step=step, summary=summary_pb2.Summary(value=items))
        # Step 0 is the default, which protocol buffers leave out.
        data = event.SerializeToString(deterministic=True)
        records += frame(data if step else data[:9] + b"\x10\x00" + data[9:])
    assert encoded(block) == records


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
    block = random_block(np.random.default_rng(count + names), count, names, density, steps)
    assert read_back(tmp_path / "tfevents", block) == expected(block)


@pytest.mark.parametrize("size", [1, 7, 100])
def test_the_bytes_do_not_depend_on_the_blocks(size: int) -> None:
    """The file does not depend on how rows are cut into blocks, so a grown file equals a clean one."""
    whole = random_block(np.random.default_rng(3), 300, 5, 0.6, (0, 300))
    assert b"".join(encoded(whole.rows(slice(start, start + size))) for start in range(0, 300, size)) == encoded(whole)


def test_a_metric_without_values_may_have_a_long_name() -> None:
    """A metric that no row of a block holds leaves no byte, however long its name."""
    long = make_block([1], {"x" * 1000: [None], "y": [1.0]})
    assert encoded(long) == encoded(make_block([1], {"y": [1.0]}))


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
        assert read_back(tmp_path / "tfevents", *some) == expected(*some)

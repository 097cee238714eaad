"""Columns to event records, without a Python object for a point.

One row of metrics.csv becomes one `Event` record that holds a value for each metric present (field numbers of
event.proto and summary.proto in brackets):

    length, its checksum | wall_time [1] double | step [2] varint | summary [5] length | values | checksum
    each value [1]: length | tag [1] length, bytes | simple_value [2] float

`simple_value` is what SummaryWriter writes too; both of TensorBoard's loaders take it for a scalar, and it is a third
of the size of a tensor with metadata.

Two roads lead there. Rows that hold the same metrics, with steps of equal varint length, give records that are equal
byte for byte but for the time, the step, the values and the checksum at fixed places: `Layout` copies one record for
all of them and fills in columns. Rows whose presence patterns are rare go value by value (`ragged`), still as columns.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from bridge.exporters.tensorboard.layout import Layout
from bridge.exporters.tensorboard.ragged import Prefixes, encode_ragged

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from bridge.model import Block

__all__ = ["ScalarEncoder", "step_widths"]

_ROWS = 16_384
"""Rows at once: their records stay in the processor's cache."""

_CELLS = 262_144
"""Cells at once, where there are many columns."""

_WORTH_A_LAYOUT = 64
"""A layout costs about as much as it saves over this many rows."""

_LAYOUT_BYTES = 64 * 2**20
"""How much the remembered layouts may hold together."""

_WIDTH_LIMITS = np.array([1 << (7 * digits) for digits in range(1, 10)], dtype=np.uint64)


class _Layouts:
    """The layouts of this process, the most recently used ones: the runs of a sweep share them."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[tuple[bytes, ...], int], Layout] = OrderedDict()
        self._size = 0
        self._lock = Lock()

    def of(self, tags: tuple[bytes, ...], width: int) -> Layout:
        key = (tags, width)
        with self._lock:
            layout = self._known.get(key)
            if layout is not None:
                self._known.move_to_end(key)
                return layout
        layout = Layout(tags, width)
        with self._lock:
            if key not in self._known:
                self._known[key] = layout
                self._size += layout.size
            while self._size > _LAYOUT_BYTES and len(self._known) > 1:
                self._size -= self._known.popitem(last=False)[1].size
        return layout


_LAYOUTS = _Layouts()


class ScalarEncoder:
    """Turns blocks into records. What it finds out about tags is remembered, so keep one encoder for a file."""

    def __init__(self) -> None:
        self._prefixes = Prefixes()

    def encode(self, block: Block, tags: Sequence[bytes]) -> Iterator[NDArray[np.uint8]]:
        """The records of `block`, one for each row that holds a point, in the order of its rows.

        `tags` are the tags of the block's metrics as UTF-8, in its order. What a float32 cannot hold becomes infinite.
        """
        rows = max(64, min(_ROWS, _CELLS // max(len(tags), 1)))
        for start in range(0, len(block.step), rows):
            part = slice(start, start + rows)
            present = block.present[:, part]
            with np.errstate(over="ignore", invalid="ignore"):
                values = block.values[:, part].astype("<f4")
            steps = block.step[part].astype(np.int64).view(np.uint64)
            filled = present.any(axis=0)
            if filled.all():
                yield self._encode(tags, steps, block.time[part], values, present)
            elif filled.any():
                yield self._encode(tags, steps[filled], block.time[part][filled], values[:, filled], present[:, filled])

    def _encode(
        self,
        tags: Sequence[bytes],
        steps: NDArray[np.uint64],
        times: NDArray[np.float64],
        values: NDArray[np.float32],
        present: NDArray[np.bool_],
    ) -> NDArray[np.uint8]:
        widths = step_widths(steps)
        if present.all() and widths.min() == widths.max():
            return _LAYOUTS.of(tuple(tags), int(widths[0])).fill(steps, times, values).reshape(-1)
        groups, rare = self._group(tags, present, widths)
        pieces: list[tuple[NDArray[np.intp], NDArray[np.uint8]]] = []
        for rows, metrics in groups:
            layout = _LAYOUTS.of(tuple(tags[index] for index in metrics), int(widths[rows[0]]))
            pieces.append((rows, layout.fill(steps[rows], times[rows], values[np.ix_(metrics, rows)])))
        lengths = np.zeros(len(steps), dtype=np.int64)
        for rows, records in pieces:
            lengths[rows] = records.shape[1]
        loose = np.zeros(0, dtype=np.uint8)
        if len(rare):
            loose, lengths[rare] = encode_ragged(
                tags, steps[rare], times[rare], values[:, rare], present[:, rare], self._prefixes
            )
        return _in_order(lengths, pieces, rare, loose)

    def _group(
        self, tags: Sequence[bytes], present: NDArray[np.bool_], widths: NDArray[np.int64]
    ) -> tuple[list[tuple[NDArray[np.intp], NDArray[np.intp]]], NDArray[np.intp]]:
        """Rows that can share a layout, each group with its metrics; and the rows that are left over."""
        group_of, firsts = _patterns(present, widths)
        sizes = np.bincount(group_of, minlength=len(firsts))
        groups = []
        common = np.zeros(len(firsts), dtype=bool)
        for group in np.flatnonzero(sizes >= _WORTH_A_LAYOUT):
            common[group] = True
            groups.append((np.flatnonzero(group_of == group), np.flatnonzero(present[:, firsts[group]])))
        return groups, np.flatnonzero(~common[group_of])


def step_widths(steps: NDArray[np.uint64]) -> NDArray[np.int64]:
    """How many bytes each step takes as a varint; a negative int64 is a large uint64 and takes 10."""
    return np.searchsorted(_WIDTH_LIMITS, steps, side="right") + 1


def _patterns(present: NDArray[np.bool_], widths: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The rows' groups of equal presence pattern and step width: the group of each row, the first row of each."""
    packed = np.packbits(present, axis=0).T
    # The width takes a byte of its own; then the bytes are filled up to whole 64-bit words.
    words = np.zeros((len(widths), -(-(packed.shape[1] + 1) // 8) * 8), dtype=np.uint8)
    words[:, 0] = widths
    words[:, 1 : packed.shape[1] + 1] = packed
    keys = words.view(np.uint64)
    if keys.shape[1] == 1:
        _, firsts, group_of = np.unique(keys[:, 0], return_index=True, return_inverse=True)
    else:
        _, firsts, group_of = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    return group_of.reshape(-1), firsts


def _in_order(
    lengths: NDArray[np.int64],
    pieces: list[tuple[NDArray[np.intp], NDArray[np.uint8]]],
    rare: NDArray[np.intp],
    loose: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    """One buffer with all records in row order.

    Records of one length are moved as single items of that many bytes, to places that need not be aligned: the
    buffer is looked at as items which begin at every byte.
    """
    ends = np.cumsum(lengths)
    starts = ends - lengths
    total = int(ends[-1])
    buffer = np.empty(total, dtype=np.uint8)
    for rows, records in pieces:
        length = records.shape[1]
        items = np.ndarray((total - length + 1,), dtype=f"V{length}", buffer=buffer.data, strides=(1,))
        items[starts[rows]] = records.view(f"V{length}").reshape(-1)
    if len(rare):
        source = np.cumsum(lengths[rare]) - lengths[rare]
        for length in np.unique(lengths[rare]):
            chosen = np.flatnonzero(lengths[rare] == length)
            items = np.ndarray((total - length + 1,), dtype=f"V{length}", buffer=buffer.data, strides=(1,))
            from_ = np.ndarray((len(loose) - length + 1,), dtype=f"V{length}", buffer=loose.data, strides=(1,))
            items[starts[rare[chosen]]] = from_[source[chosen]]
    return buffer

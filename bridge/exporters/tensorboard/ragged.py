"""Records of rows that hold ever other metrics: put together value by value, as columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bridge.exporters.tensorboard.crc32c import Words, crc32c, mask, register, shift, shift_each, table_at
from bridge.exporters.tensorboard.layout import value_prefix
from bridge.exporters.tensorboard.records import FOOTER, HEADER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Prefixes", "encode_ragged"]


class Prefixes:
    """What stands before each tag's values, and the CRC register of that with a value of zero; found once a tag."""

    def __init__(self) -> None:
        self._of: dict[bytes, tuple[bytes, int]] = {}

    def of(self, tags: Sequence[bytes]) -> tuple[list[bytes], Words]:
        """The prefixes of `tags`, and their registers, begun from zero."""
        for tag in tags:
            if tag not in self._of:
                prefix = value_prefix(tag)
                self._of[tag] = (prefix, register(prefix + bytes(4)))
        found = [self._of[tag] for tag in tags]
        return [prefix for prefix, _ in found], np.array([number for _, number in found], dtype=np.uint32)


def encode_ragged(
    tags: Sequence[bytes],
    steps: NDArray[np.uint64],
    times: NDArray[np.float64],
    values: NDArray[np.float32],
    present: NDArray[np.bool_],
    known: Prefixes,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The records of n rows one after another, and the length of each; every row holds at least one value."""
    used = np.flatnonzero(present.any(axis=1)).tolist()
    prefixes, constants = known.of([tags[index] for index in used])
    rows, metrics = np.nonzero(present[used].T)
    sizes = np.array([len(prefix) + 4 for prefix in prefixes], dtype=np.int64)
    value_sizes = sizes[metrics]
    summaries = np.bincount(rows, weights=value_sizes, minlength=len(steps)).astype(np.int64)
    heads, head_sizes = _heads(steps, times, summaries)
    lengths = HEADER + head_sizes + summaries + FOOTER
    starts = np.cumsum(lengths) - lengths
    buffer = np.zeros(int(lengths.sum()), dtype=np.uint8)

    data_sizes = head_sizes + summaries
    _put_headers(buffer, starts, data_sizes)
    for place in range(heads.shape[1]):
        chosen = place < head_sizes
        buffer[starts[chosen] + HEADER + place] = heads[chosen, place]
    first_of_row = np.searchsorted(rows, np.arange(len(steps)))
    before = np.cumsum(value_sizes) - value_sizes
    within = before - before[first_of_row][rows]
    places = (starts + HEADER + head_sizes)[rows] + within
    numbers = values[used][metrics, rows].astype("<f4").view(np.uint8).reshape(-1, 4)
    _put_values(buffer, prefixes, metrics, places, sizes, numbers)

    registers = shift_each(_value_registers(constants[metrics], numbers), summaries[rows] - within - value_sizes)
    sums = np.bitwise_xor.reduceat(registers, first_of_row)
    sums ^= shift_each(_head_registers(heads, head_sizes), summaries)
    masked = mask(sums ^ np.uint32(0xFFFFFFFF)).astype("<u4").view(np.uint8).reshape(-1, 4)
    buffer[(starts + lengths - FOOTER)[:, None] + np.arange(FOOTER)] = masked
    return buffer, lengths


def _heads(
    steps: NDArray[np.uint64], times: NDArray[np.float64], summaries: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(n, m): what stands before the values, filled up behind with zeros, and how long each is."""
    digits, step_sizes = _varints(steps)
    counts, count_sizes = _varints(summaries.astype(np.uint64))
    heads = np.zeros((len(steps), 10 + 10 + 1 + 10), dtype=np.uint8)
    heads[:, 0] = 0x09
    heads[:, 1:9] = times.astype("<f8").view(np.uint8).reshape(-1, 8)
    heads[:, 9] = 0x10
    heads[:, 10:20] = digits
    row = np.arange(len(steps))
    heads[row, 10 + step_sizes] = 0x2A
    for place in range(10):
        chosen = place < count_sizes
        heads[row[chosen], 11 + step_sizes[chosen] + place] = counts[chosen, place]
    sizes = 11 + step_sizes + count_sizes
    return heads[:, : int(sizes.max())], sizes


def _varints(numbers: NDArray[np.uint64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(n, 10): `numbers` as varints, filled up behind with zeros, and how many bytes each takes."""
    digits = np.zeros((len(numbers), 10), dtype=np.uint8)
    sizes = np.ones(len(numbers), dtype=np.int64)
    for place in range(10):
        rest = numbers >> np.uint64(7 * place)
        digits[:, place] = rest & np.uint64(0x7F)
        more = rest > np.uint64(0x7F)
        digits[more, place] |= 0x80
        sizes += more
    return digits, sizes


def _put_headers(buffer: NDArray[np.uint8], starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
    packed = sizes.astype("<u8").view(np.uint8).reshape(-1, 8)
    sums = np.full(len(sizes), crc32c(bytes(8)), dtype=np.uint32)
    for place in range(8):
        sums ^= table_at(7 - place)[packed[:, place]]
    buffer[starts[:, None] + np.arange(8)] = packed
    buffer[starts[:, None] + np.arange(8, HEADER)] = mask(sums).astype("<u4").view(np.uint8).reshape(-1, 4)


def _put_values(
    buffer: NDArray[np.uint8],
    prefixes: Sequence[bytes],
    metrics: NDArray[np.intp],
    places: NDArray[np.int64],
    sizes: NDArray[np.int64],
    numbers: NDArray[np.uint8],
) -> None:
    """Write every value at its place: one step for each length of prefix that there is."""
    for size in np.unique(sizes):
        members = np.flatnonzero(sizes == size)
        table = np.frombuffer(b"".join(prefixes[index] for index in members.tolist()), dtype=np.uint8).reshape(
            -1, size - 4
        )
        line = np.zeros(len(prefixes), dtype=np.intp)
        line[members] = np.arange(len(members))
        chosen = np.flatnonzero(sizes[metrics] == size)
        items = np.concatenate([table[line[metrics[chosen]]], numbers[chosen]], axis=1)
        # The buffer looked at as items that begin at every byte: each value moves as one item of `size` bytes.
        view = np.ndarray((len(buffer) - size + 1,), dtype=f"V{size}", buffer=buffer.data, strides=(1,))
        view[places[chosen]] = np.ascontiguousarray(items).view(f"V{size}").reshape(-1)


def _value_registers(registers: Words, numbers: NDArray[np.uint8]) -> Words:
    """The CRC register of each value's bytes, begun from zero; `registers` are those for values of zero."""
    for place in range(4):
        registers ^= table_at(3 - place)[numbers[:, place]]
    return registers


def _head_registers(heads: NDArray[np.uint8], sizes: NDArray[np.int64]) -> Words:
    """The CRC register after each head, begun from all ones as the whole record's is."""
    registers = np.zeros(len(heads), dtype=np.uint32)
    for size in np.unique(sizes):
        chosen = np.flatnonzero(sizes == size)
        part = np.full(len(chosen), 0xFFFFFFFF, dtype=np.uint32)
        part = shift(part, int(size))
        for place in range(int(size)):
            part ^= table_at(int(size) - 1 - place)[heads[chosen, place]]
        registers[chosen] = part
    return registers

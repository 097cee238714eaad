"""Records that are equal but for a few places: one template, filled in by columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bridge.exporters.tensorboard.crc32c import BYTE_TABLE, Words, crc32c, mask, shift
from bridge.exporters.tensorboard.records import FOOTER, HEADER, header, varint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Layout", "value_prefix"]

_BY_COLUMN = 64
"""With up to this many values a loop over their bytes is faster than one look-up for all at once."""

_CELLS = 65_536
"""Bytes whose table entries are looked up at once otherwise."""


def value_prefix(tag: bytes) -> bytes:
    """What stands before the four bytes of a Summary.Value's simple_value: [1] length, tag [1], the key of [2]."""
    inner = b"\x0a" + varint(len(tag)) + tag + b"\x15"
    return b"\x0a" + varint(len(inner) + 4) + inner


class Layout:
    """The records of rows that hold values for exactly `tags`, with steps of `width` bytes.

    The variable places are, in order: 8 bytes of time, `width` of the step, 4 for each value. `size` is about the
    memory that a layout holds, in bytes.
    """

    def __init__(self, tags: Sequence[bytes], width: int) -> None:
        prefixes = [value_prefix(tag) for tag in tags]
        summary = sum(len(prefix) + 4 for prefix in prefixes)
        head = b"\x09" + bytes(8) + b"\x10" + bytes(width) + b"\x2a" + varint(summary)
        data = head + b"".join(prefix + bytes(4) for prefix in prefixes)
        self.length = HEADER + len(data) + FOOTER
        self._width = width
        self._base = np.frombuffer(header(len(data)) + data + bytes(FOOTER), dtype=np.uint8)
        ends = np.cumsum([len(prefix) + 4 for prefix in prefixes])
        self._places = [HEADER + len(head) + int(end) - 4 for end in ends]
        self._checksum = np.uint32(crc32c(data))
        self._values = _value_tables([len(prefix) for prefix in prefixes])
        after_step = shift(BYTE_TABLE, summary + len(head) - 10 - width)
        self._step = _run_of_tables(after_step, width)
        self._time = _run_of_tables(shift(self._step[0], 2), 8)
        self.size = self._values.nbytes + self._step.nbytes + self._time.nbytes + 2 * self.length

    def fill(
        self, steps: NDArray[np.uint64], times: NDArray[np.float64], values: NDArray[np.float32]
    ) -> NDArray[np.uint8]:
        """(n, length): the records of n rows; `values` is (k, n), one line for each tag."""
        count = len(steps)
        records = np.empty((count, self.length), dtype=np.uint8)
        records[:] = self._base
        seconds = np.ascontiguousarray(times, dtype="<f8")
        self._column(records, HEADER + 1, "<f8")[:] = seconds
        digits = _digits(steps, self._width)
        records[:, HEADER + 10 : HEADER + 10 + self._width] = digits.T
        values = np.ascontiguousarray(values, dtype="<f4")
        for place, column in zip(self._places, values, strict=True):
            self._column(records, place, "<f4")[:] = column
        sums = np.full(count, self._checksum, dtype=np.uint32)
        _add(sums, self._time, seconds.view(np.uint8).reshape(count, 8).T)
        _add(sums, self._step, digits)
        if len(values) <= _BY_COLUMN:
            for tables, column in zip(self._values, values, strict=True):
                _add(sums, tables, column.view(np.uint8).reshape(count, 4).T)
        else:
            _add_wide(sums, self._values.reshape(-1), values)
        self._column(records, self.length - FOOTER, "<u4")[:] = mask(sums)
        return records

    def _column(self, records: NDArray[np.uint8], place: int, kind: str) -> NDArray[np.generic]:
        """The items of type `kind` at byte `place` of every record, which need not be aligned."""
        return np.ndarray((len(records),), dtype=kind, buffer=records.data, offset=place, strides=(self.length,))


def _value_tables(prefixes: Sequence[int]) -> Words:
    """(k, 4, 256): the tables of the values' bytes, found from the last value back to the first."""
    tables = np.empty((len(prefixes), 4, 256), dtype=np.uint32)
    current = _run_of_tables(BYTE_TABLE, 4)
    for index in range(len(prefixes) - 1, -1, -1):
        tables[index] = current
        current = shift(current, prefixes[index] + 4)
    return tables


def _run_of_tables(last: Words, count: int) -> Words:
    """(count, 256): the tables of `count` bytes in a row, of which the last has the table `last`."""
    return np.stack([shift(last, count - 1 - place) for place in range(count)])


def _digits(steps: NDArray[np.uint64], width: int) -> NDArray[np.uint8]:
    """(width, n): the bytes of the steps as varints of `width` bytes."""
    digits = np.empty((width, len(steps)), dtype=np.uint8)
    for place in range(width):
        digits[place] = (steps >> np.uint64(7 * place)) & np.uint64(0x7F)
        if place < width - 1:
            digits[place] |= 0x80
    return digits


def _add(sums: Words, tables: Words, columns: NDArray[np.uint8]) -> None:
    """Add to the checksums what each column of bytes contributes by its table."""
    entries = np.empty(len(sums), dtype=np.uint32)
    for table, column in zip(tables, columns, strict=True):
        # A byte is always within its table; `clip` only spares numpy its own check and a second buffer.
        table.take(column, out=entries, mode="clip")
        sums ^= entries


def _add_wide(sums: Words, tables: Words, values: NDArray[np.float32]) -> None:
    """As `_add` for many values: all their bytes at once, a few rows at a time."""
    lines = 4 * len(values)
    base = np.arange(lines, dtype=np.intp) * 256
    rows = max(1, _CELLS // lines)
    for start in range(0, len(sums), rows):
        part = np.ascontiguousarray(values[:, start : start + rows].T).view(np.uint8)
        sums[start : start + rows] ^= np.bitwise_xor.reduce(tables.take(part + base, mode="clip"), axis=1)

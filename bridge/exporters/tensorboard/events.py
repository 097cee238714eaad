"""Encode event records: scalars straight from columns, everything else with TensorBoard's own messages.

An event file is a sequence of TFRecords (tensorflow/core/lib/io/record_writer.h), with little-endian numbers:

    uint64 length of the data | uint32 masked CRC-32C of those 8 bytes | data | uint32 masked CRC-32C of the data

The data are one `Event` message. Each row of metrics.csv becomes one `Event` with one value per metric present
(field numbers of event.proto and summary.proto in brackets):

    wall_time [1] double | step [2] varint | summary [5] length | values
    each value [1] length | tag [1] length, bytes | simple_value [2] float

SummaryWriter writes `simple_value` too. Both of TensorBoard's loaders read it as a scalar, and it takes a third of the
size of a tensor with metadata.

Records of rows with the same metrics and steps of equal length differ only in time, step, values and checksum, which
sit at fixed offsets. `RecordTemplate` repeats one record as a 2-D byte array (one row per record) and fills in those
columns with numpy. Rare combinations of metrics are encoded one record at a time.
"""

from __future__ import annotations

import struct
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import msgspec
import numpy as np

from bridge.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from bridge.model import Block

    Words: TypeAlias = NDArray[np.uint32]

HEADER = 12
"""Bytes before the data of a record: its length and the checksum of the length."""

FOOTER = 4
"""Bytes after the data: their checksum."""

_MASK_DELTA = 0xA282EAD8
_TINY = 64
"""Below this many bytes, a checksum in plain Python takes less time than numpy's calls."""

_SHORT = 2048
"""Up to this many bytes, each byte of a message is looked up in its own table: two megabytes in all."""

_GROUP = 8
"""Bytes of one long message that are looked up together."""

_MAX_ROWS = 16_384
"""Rows encoded at once: their records fit into the processor's cache."""

_MAX_CELLS = 262_144
"""Cells encoded at once, which limits the rows of a table with many columns."""

_MIN_TEMPLATE_ROWS = 64
"""Making a template costs about as much as it saves over this many rows."""

_FEW_ALIKE = 8
"""Records in a row that must be equally long, so that a template is tried for reading them."""

_CHECKED_ROWS = 1024
"""Records whose checksums are found at once: their variable bytes and table entries fit into the processor's cache."""

_FEW_TAGS, _MANY_TAGS = 256, 4096
"""A template takes about 4 KiB per tag. Those of up to so many tags are cached: many small ones, few large ones."""

_VARINT_LIMITS = np.array([1 << (7 * digits) for digits in range(1, 10)], dtype=np.uint64)


def need_tensorboard(purpose: str = "--to tensorboard") -> None:
    """Raise MissingExtraError if tensorboard is not installed."""
    if find_spec("tensorboard") is None:
        raise MissingExtraError.of("tensorboard", purpose=purpose)


# CRC-32C
#
# A CRC register is linear over GF(2): what one byte adds to the register of a message depends on the byte's value and
# on the number of bytes behind it, and on nothing else. So the register of a message is the XOR of one table entry per
# byte, and the register of many messages of one shape can be computed column by column.


def _make_byte_table() -> Words:
    table: Words = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        # 0x82F63B78 is the Castagnoli polynomial, bits reversed (RFC 3720, appendix B.4).
        table = (table >> np.uint32(1)) ^ (np.uint32(0x82F63B78) * (table & np.uint32(1)))
    return table


BYTE_TABLE = _make_byte_table()
"""uint32 (256,): what a byte adds to the register if no byte follows."""

_PLAIN_TABLE: list[int] = BYTE_TABLE.tolist()


@cache
def _zero_tables(count: int) -> Words:
    """Return (4, 256): what each of a register's four bytes becomes when `count` >= 1 zero bytes follow."""
    if count == 1:
        values = np.arange(256, dtype=np.uint32)
        registers = np.stack([values << np.uint32(8 * place) for place in range(4)])
        return np.asarray(BYTE_TABLE[registers & 0xFF] ^ (registers >> 8))
    half = _zero_tables(count // 2)
    tables = _look_up(half, half)
    return _look_up(_zero_tables(1), tables) if count % 2 else tables


def _look_up(tables: Words, registers: Words) -> Words:
    return np.asarray(
        tables[0][registers & 0xFF]
        ^ tables[1][(registers >> 8) & 0xFF]
        ^ tables[2][(registers >> 16) & 0xFF]
        ^ tables[3][registers >> 24]
    )


def append_zeros(registers: Words, count: int) -> Words:
    """Return what `registers` (any shape) become when `count` zero bytes follow."""
    return registers if count == 0 else _look_up(_zero_tables(count), registers)


@cache
def _place_tables() -> Words:
    """Return (_SHORT, 256): what a byte adds to the register if 0, 1, 2 ... bytes follow."""
    tables = BYTE_TABLE[None]
    while len(tables) < _SHORT:
        tables = np.concatenate([tables, append_zeros(tables, len(tables))])
    return tables


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of `data`."""
    length = len(data)
    if length < _TINY:
        register = 0xFFFFFFFF
        for byte in data:
            register = _PLAIN_TABLE[(register ^ byte) & 0xFF] ^ (register >> 8)
        return register ^ 0xFFFFFFFF
    # The checksum starts from a register of all ones, which is the same as to invert the first four bytes.
    message = np.frombuffer(data, dtype=np.uint8).copy()
    message[:4] ^= 0xFF
    if length <= _SHORT:
        return int(np.bitwise_xor.reduce(_place_tables()[np.arange(length - 1, -1, -1), message])) ^ 0xFFFFFFFF
    # (n, 8): the message in groups of eight bytes, filled up with zeros in front, which leave a register of zero as it
    # is. `registers` first holds one register per group. Each round joins neighbours: the left one moves over the
    # `span` bytes of the right one.
    groups = np.concatenate([np.zeros(-length % _GROUP, dtype=np.uint8), message]).reshape(-1, _GROUP)
    registers = np.zeros(len(groups), dtype=np.uint32)
    for place in range(_GROUP):
        registers ^= append_zeros(BYTE_TABLE, _GROUP - 1 - place)[groups[:, place]]
    span = _GROUP
    while len(registers) > 1:
        if len(registers) % 2:
            registers = np.concatenate([np.zeros(1, dtype=np.uint32), registers])
        registers = append_zeros(registers[0::2], span) ^ registers[1::2]
        span *= 2
    return int(registers[0]) ^ 0xFFFFFFFF


def mask(checksums: Words) -> Words:
    """Return `checksums` with TensorFlow's mask (tensorflow/core/lib/hash/crc32c.h)."""
    return ((checksums >> np.uint32(15)) | (checksums << np.uint32(17))) + np.uint32(_MASK_DELTA)


def masked_crc32c(data: bytes) -> int:
    """Return the masked CRC-32C of `data`, as a record holds it."""
    checksum = crc32c(data)
    return ((checksum >> 15 | checksum << 17) + _MASK_DELTA) & 0xFFFFFFFF


# Records


@lru_cache(maxsize=4096)
def header(length: int) -> bytes:
    """Return the bytes in front of `length` bytes of data."""
    packed = struct.pack("<Q", length)
    return packed + struct.pack("<I", masked_crc32c(packed))


def frame(data: bytes) -> bytes:
    """Return `data` as one record."""
    return b"".join((header(len(data)), data, struct.pack("<I", masked_crc32c(data))))


@lru_cache(maxsize=4096)
def varint(number: int) -> bytes:
    """Return `number` (0 to 2**64 - 1) in base 128, lowest digit first, with the high bit on all but the last."""
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


@lru_cache(maxsize=4)
def version_record(time: float) -> bytes:
    """Return the record that begins every event file."""
    from tensorboard.compat.proto import event_pb2

    return frame(event_pb2.Event(wall_time=time, file_version="brain.Event:2").SerializeToString())


def read_record(file: BinaryIO, offset: int, end: int) -> bytes:
    """Return the data of the record at a byte of `file`. Raise ValueError, with `offset`, if it is damaged or cut."""
    file.seek(offset)
    head = file.read(HEADER)
    length = int.from_bytes(head[:8], "little")
    if head != header(length) or offset + HEADER + length + FOOTER > end:
        raise ValueError(offset)
    data = file.read(length)
    if file.read(FOOTER) != struct.pack("<I", masked_crc32c(data)):
        raise ValueError(offset)
    return data


def read_records(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield offset and data of each record between two offsets of `file`. Raise what `read_record` raises."""
    while begin < end:
        data = read_record(file, begin, end)
        yield begin, data
        begin += HEADER + len(data) + FOOTER


# Scalars


def encode_block(block: Block, tags: Sequence[bytes]) -> Iterator[NDArray[np.uint8]]:
    """Yield the records of `block`, one per row that holds a point, in the order of its rows.

    `tags` are the UTF-8 tags of the block's metrics, in its order. Values beyond float32 become infinite.
    """
    rows = max(_MIN_TEMPLATE_ROWS, min(_MAX_ROWS, _MAX_CELLS // max(len(tags), 1)))
    for start in range(0, len(block.step), rows):
        part = slice(start, start + rows)
        present = block.present[:, part]
        with np.errstate(over="ignore", invalid="ignore"):
            values = block.values[:, part].astype("<f4")
        # A negative step is written as the large unsigned number with the same 64 bits.
        steps = block.step[part].astype(np.int64).view(np.uint64)
        filled = present.any(axis=0)
        if filled.all():
            yield _encode_rows(tags, steps, block.time[part], values, present)
        elif filled.any():
            yield _encode_rows(tags, steps[filled], block.time[part][filled], values[:, filled], present[:, filled])


def _encode_rows(
    tags: Sequence[bytes],
    steps: NDArray[np.uint64],
    times: NDArray[np.float64],
    values: NDArray[np.float32],
    present: NDArray[np.bool_],
) -> NDArray[np.uint8]:
    """Return the records of n rows with at least one value each; `values` and `present` are (k, n)."""
    widths = step_widths(steps)
    if present.all() and widths.min() == widths.max():
        return _template(tuple(tags), int(widths[0])).fill(steps, times, values).reshape(-1)
    group_of, group_sizes = _group_rows(present, widths)
    pieces: list[tuple[NDArray[np.intp], NDArray[np.uint8]]] = []
    lengths = np.zeros(len(steps), dtype=np.int64)
    for group in np.flatnonzero(group_sizes >= _MIN_TEMPLATE_ROWS):
        rows = np.flatnonzero(group_of == group)
        metrics = np.flatnonzero(present[:, rows[0]])
        template = _template(tuple(tags[index] for index in metrics.tolist()), int(widths[rows[0]]))
        pieces.append((rows, template.fill(steps[rows], times[rows], values[np.ix_(metrics, rows)])))
        lengths[rows] = template.length
    rare = np.flatnonzero(group_sizes[group_of] < _MIN_TEMPLATE_ROWS)
    singles = _encode_singly(tags, steps[rare], times[rare], values[:, rare], present[:, rare])
    lengths[rare] = [len(record) for record in singles]
    starts = np.cumsum(lengths) - lengths
    buffer = np.empty(int(lengths.sum()), dtype=np.uint8)
    for rows, records in pieces:
        # Look at the buffer as items of one record's length that begin at every byte. Then each record of this
        # length moves to its place as one item.
        length = records.shape[1]
        items = np.ndarray((len(buffer) - length + 1,), dtype=f"V{length}", buffer=buffer.data, strides=(1,))
        items[starts[rows]] = records.view(f"V{length}").reshape(-1)
    for start, record in zip(starts[rare].tolist(), singles, strict=True):
        buffer.data[start : start + len(record)] = record
    return buffer


def step_widths(steps: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return how many bytes each step takes as a varint."""
    return np.searchsorted(_VARINT_LIMITS, steps, side="right") + 1


def _group_rows(present: NDArray[np.bool_], widths: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Group rows with the same metrics and step width. Return each row's group and each group's size."""
    # One key per row: a byte for the step's width, then the presence bits, filled up to whole 64-bit words, which
    # numpy compares faster than bytes.
    packed = np.packbits(present, axis=0).T
    keys = np.zeros((len(widths), -(-(packed.shape[1] + 1) // 8) * 8), dtype=np.uint8)
    keys[:, 0] = widths
    keys[:, 1 : packed.shape[1] + 1] = packed
    words = keys.view(np.uint64)
    _, group_of, sizes = np.unique(
        words[:, 0] if words.shape[1] == 1 else words,
        axis=None if words.shape[1] == 1 else 0,
        return_inverse=True,
        return_counts=True,
    )
    return group_of.reshape(-1), sizes


def _encode_singly(
    tags: Sequence[bytes],
    steps: NDArray[np.uint64],
    times: NDArray[np.float64],
    values: NDArray[np.float32],
    present: NDArray[np.bool_],
) -> list[bytes]:
    """Return one record per row; `values` and `present` are (k, n)."""
    records = []
    for row, (step, time) in enumerate(zip(steps.tolist(), times.tolist(), strict=True)):
        summary = b"".join(
            _value_prefix(tags[metric]) + values[metric, row].tobytes()
            for metric in np.flatnonzero(present[:, row]).tolist()
        )
        head = b"\x09" + struct.pack("<d", time) + b"\x10" + varint(step) + b"\x2a" + varint(len(summary))
        records.append(frame(head + summary))
    return records


@lru_cache(maxsize=4096)
def _value_prefix(tag: bytes) -> bytes:
    """Return the bytes in front of a value's four: value [1] length, tag [1] length and bytes, the key of [2]."""
    inner = b"\x0a" + varint(len(tag)) + tag + b"\x15"
    return b"\x0a" + varint(len(inner) + 4) + inner


class ScalarRows(msgspec.Struct, frozen=True, eq=False):
    """Rows of scalars as columns: n steps (int64) and times, and `values`, float32 (k, n), of k tags."""

    tags: tuple[str, ...]
    steps: NDArray[np.int64]
    times: NDArray[np.float64]
    values: NDArray[np.float32]


class RecordTemplate:
    """The records of rows that hold values for exactly `tags`, with steps of `width` bytes.

    `length` is that of a record in bytes. A record's variable bytes are, in order: 8 of the time, `width` of the
    step, 4 of each value, 4 of the checksum.
    """

    def __init__(self, tags: Sequence[bytes], width: int) -> None:
        self._tags = tuple(tag.decode() for tag in tags)
        prefixes = [_value_prefix(tag) for tag in tags]
        summary = sum(len(prefix) + 4 for prefix in prefixes)
        head = b"\x09" + bytes(8) + b"\x10" + bytes(width) + b"\x2a" + varint(summary)
        data = head + b"".join(prefix + bytes(4) for prefix in prefixes)
        self.length = HEADER + len(data) + FOOTER
        self._width = width
        self._base = np.frombuffer(header(len(data)) + data + bytes(FOOTER), dtype=np.uint8)
        ends = HEADER + len(head) + np.cumsum([len(prefix) + 4 for prefix in prefixes])
        self._offsets: list[int] = (ends - 4).tolist()
        # (m,): the places of the m variable bytes before the checksum.
        fields = [(HEADER + 1, 8), (HEADER + 10, width), *((offset, 4) for offset in self._offsets)]
        self._places = np.concatenate([np.arange(start, start + size) for start, size in fields])
        # The checksum of a record is that of the template XOR one table entry per variable byte. Each variable byte
        # has its own table of 256 entries, which depends on the number of bytes behind it. They are found from the
        # end of the record to its beginning, and stand one after the other in one array of m * 256 entries.
        self._checksum = np.uint32(crc32c(data))
        tables = np.empty((len(self._places), 256), dtype=np.uint32)
        table, behind = BYTE_TABLE, HEADER + len(data) - 1
        for index, place in reversed(list(enumerate(self._places.tolist()))):
            table, behind = append_zeros(table, behind - place), place
            tables[index] = table
        self._tables = tables.reshape(-1)
        self._starts = np.arange(len(self._places))[:, None] * 256

    def fill(
        self, steps: NDArray[np.uint64], times: NDArray[np.float64], values: NDArray[np.float32]
    ) -> NDArray[np.uint8]:
        """Return uint8 (n, length), the records of n rows; `values` is (k, n) for k tags."""
        count = len(steps)
        records = np.empty((count, self.length), dtype=np.uint8)
        records[:] = self._base
        self._column(records, HEADER + 1, "<f8")[:] = times
        for place in range(self._width):  # seven bits of the step each, lowest first
            digit = (steps >> np.uint64(7 * place)).astype(np.uint8)
            records[:, HEADER + 10 + place] = digit | 0x80 if place < self._width - 1 else digit & 0x7F
        for offset, column in zip(self._offsets, values, strict=True):
            self._column(records, offset, "<f4")[:] = column
        sums = np.empty(count, dtype=np.uint32)
        for start in range(0, count, _CHECKED_ROWS):
            part = slice(start, start + _CHECKED_ROWS)
            # (m, rows): the variable bytes, then the places of their table entries.
            entries = records[part].T[self._places].astype(np.intp)
            entries += self._starts
            np.bitwise_xor.reduce(self._tables.take(entries), axis=0, out=sums[part])
        self._column(records, self.length - FOOTER, "<u4")[:] = mask(sums ^ self._checksum)
        return records

    def read(self, records: NDArray[np.uint8]) -> ScalarRows:
        """Return the rows of the first of `records` (n, length) that are of this template, down to the checksum."""
        steps = np.zeros(len(records), dtype=np.uint64)
        for place in range(self._width):
            steps |= (records[:, HEADER + 10 + place] & np.uint64(0x7F)) << np.uint64(7 * place)
        times = self._column(records, HEADER + 1, "<f8").astype(np.float64)
        values = np.array([self._column(records, offset, "<f4") for offset in self._offsets], dtype=np.float32)
        # What was read is written again. Only a record of this template gives the same bytes.
        same = (self.fill(steps, times, values) == records).all(axis=1)
        count = len(same) if same.all() else int(same.argmin())
        return ScalarRows(self._tags, steps[:count].view(np.int64), times[:count], values[:, :count])

    def _column(self, records: NDArray[np.uint8], offset: int, kind: str) -> NDArray[Any]:
        """Return a view of the item of type `kind` at byte `offset` of every record, aligned or not."""
        return np.ndarray((len(records),), dtype=kind, buffer=records.data, offset=offset, strides=(self.length,))


_small_template = lru_cache(maxsize=64)(RecordTemplate)
_large_template = lru_cache(maxsize=4)(RecordTemplate)


def _template(tags: tuple[bytes, ...], width: int) -> RecordTemplate:
    """Return a template, from a cache if possible: the runs of a sweep share theirs."""
    if len(tags) <= _FEW_TAGS:
        return _small_template(tags, width)
    return _large_template(tags, width) if len(tags) <= _MANY_TAGS else RecordTemplate(tags, width)


def read_scalars(file: BinaryIO, end: int) -> Iterator[ScalarRows]:
    """Yield the rows of an event file of `end` bytes that holds scalars. Raise what `read_record` raises.

    TensorBoard's message reads the first of many records alike; the others are compared with it byte by byte.
    """
    offset, most = 0, _MIN_TEMPLATE_ROWS
    while offset < end:
        data = read_record(file, offset, end)
        event = parse_event(data, offset)
        length = HEADER + len(data) + FOOTER
        tags = tuple(value.tag for value in event.summary.value)
        if tags:
            file.seek(offset)
            found = file.read(most * length)
            count = len(found) // length
            if count >= _FEW_ALIKE and found.startswith(found[:HEADER], (_FEW_ALIKE - 1) * length):
                template = _template(tuple(tag.encode() for tag in tags), len(varint(event.step % 2**64)))
                records = np.frombuffer(found, np.uint8, count * length).reshape(count, length)
                rows = template.read(records) if template.length == length else None
                if rows is not None and len(rows.steps):
                    yield rows
                    offset += len(rows.steps) * length
                    most = min(_MAX_ROWS, 4 * most) if len(rows.steps) == count else max(_FEW_ALIKE, len(rows.steps))
                    continue
            values = np.array([[value.simple_value] for value in event.summary.value], dtype=np.float32)
            yield ScalarRows(tags, np.array([event.step]), np.array([event.wall_time]), values)
        offset += length


# Texts, images and hyperparameters
#
# They are few, so they are TensorBoard's own messages. A value is the keywords of a `Summary.Value`.

Value: TypeAlias = "dict[str, Any]"


def record_of(values: Sequence[Value], *, time: float, step: int = 0) -> bytes:
    """Return the record of an Event that holds these values."""
    from tensorboard.compat.proto import event_pb2

    event = event_pb2.Event(wall_time=time, step=step, summary={"value": values})
    return frame(event.SerializeToString(deterministic=True))


def text_value(tag: str, text: str) -> Value:
    """Return a value for the TEXT page, which shows Markdown."""
    tensor = {"dtype": "DT_STRING", "tensor_shape": {}, "string_val": [text.encode("utf-8", "replace")]}
    return _value(tag, tensor, {"plugin_name": "text"})


def image_value(tag: str, image: bytes, *, size: tuple[int, int], description: str) -> Value:
    """Return a value for the IMAGES page that holds the encoded `image` as it is.

    `size` is width and height in pixels. TensorBoard shows the description of a tag's first value.
    """
    strings = [str(size[0]).encode(), str(size[1]).encode(), image]
    tensor = {"dtype": "DT_STRING", "tensor_shape": {"dim": [{"size": 3}]}, "string_val": strings}
    return _value(tag, tensor, {"plugin_name": "images"}, description)


def session_value(tag: str, content: bytes) -> Value:
    """Return a value for the HPARAMS page, which reads only the `content`, but needs a tensor: an empty one."""
    tensor = {"dtype": "DT_FLOAT", "tensor_shape": {"dim": [{"size": 0}]}}
    return _value(tag, tensor, {"plugin_name": "hparams", "content": content})


def session_start(values: Mapping[str, bool | float | str], *, group: str, time: float) -> bytes:
    """Return the content of a session's start; `group` is the trial's name in HPARAMS."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = HParamsPluginData(session_start_info={"group_name": group, "start_time_secs": time})
    for name, value in values.items():
        kind = "bool" if isinstance(value, bool) else "string" if isinstance(value, str) else "number"
        setattr(content.session_start_info.hparams[name], f"{kind}_value", value)
    return bytes(content.SerializeToString(deterministic=True))


def session_end(status: str, *, end: float) -> bytes:
    """Return the content of a session's end; `status` is SUCCESS, FAILURE or RUNNING."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = HParamsPluginData(session_end_info={"status": f"STATUS_{status}", "end_time_secs": end})
    return bytes(content.SerializeToString())


def _value(tag: str, tensor: Mapping[str, Any], plugin: Mapping[str, Any], description: str = "") -> Value:
    return {"tag": tag, "tensor": tensor, "metadata": {"plugin_data": plugin, "summary_description": description}}


def parse_event(data: bytes, offset: int) -> Any:
    """Return the Event in the data of the record at byte `offset`. Raise ValueError, with `offset`, if it is none."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # published without types
    from tensorboard.compat.proto import event_pb2

    try:
        return event_pb2.Event.FromString(data)
    except DecodeError as error:
        raise ValueError(offset) from error

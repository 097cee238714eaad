"""Encode event records: scalars straight from columns, everything else with TensorBoard's protocol buffers.

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

import json
import struct
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

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
_SHORT = 1500
"""Up to this many bytes, a checksum in plain Python takes less time than numpy's calls."""

_GROUP = 8
"""Bytes of one long message that are looked up together."""

_MAX_ROWS = 16_384
"""Rows encoded at once: their records fit into the processor's cache."""

_MAX_CELLS = 262_144
"""Cells encoded at once, which limits the rows of a table with many columns."""

_MIN_TEMPLATE_ROWS = 64
"""Making a template costs about as much as it saves over this many rows."""

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


def crc32c(data: bytes | memoryview | NDArray[np.uint8]) -> int:
    """Return the CRC-32C of `data`."""
    message = data if isinstance(data, np.ndarray) else np.frombuffer(data, dtype=np.uint8)
    length = len(message)
    if length < _SHORT:
        register = 0xFFFFFFFF
        for byte in message.tobytes():
            register = _PLAIN_TABLE[(register ^ byte) & 0xFF] ^ (register >> 8)
        return register ^ 0xFFFFFFFF
    # (n, 8): the message in groups of eight bytes, filled up with zeros in front, which leave a register of zero as it
    # is. `registers` first holds one register per group. Each round joins neighbours: the left one moves over the
    # `span` bytes of the right one.
    padded = np.zeros(-(-length // _GROUP) * _GROUP, dtype=np.uint8)
    padded[len(padded) - length :] = message
    groups = padded.reshape(-1, _GROUP)
    registers = np.zeros(len(groups), dtype=np.uint32)
    for place in range(_GROUP):
        registers ^= append_zeros(BYTE_TABLE, _GROUP - 1 - place)[groups[:, place]]
    span = _GROUP
    while len(registers) > 1:
        if len(registers) % 2:
            registers = np.concatenate([np.zeros(1, dtype=np.uint32), registers])
        registers = append_zeros(registers[0::2], span) ^ registers[1::2]
        span *= 2
    # The checksum starts from all ones, which move over the whole message.
    start = int(append_zeros(np.array([0xFFFFFFFF], dtype=np.uint32), length)[0])
    return int(registers[0]) ^ start ^ 0xFFFFFFFF


def crc32c_each(messages: Sequence[bytes]) -> Words:
    """Return the CRC-32C of each of `messages`, which are at least four bytes long."""
    longest = max(map(len, messages))
    if longest >= _SHORT:
        return np.array([crc32c(message) for message in messages], dtype=np.uint32)
    # (n, longest): one message per row, filled up with zeros in front, which leave a register of zero as it is.
    # Inverting the first four bytes of a message has the same effect as starting from all ones.
    rows = np.frombuffer(bytearray().join(message.rjust(longest, b"\0") for message in messages), dtype=np.uint8)
    rows = rows.reshape(-1, longest)
    first = longest - np.array([len(message) for message in messages])
    rows[np.arange(len(rows))[:, None], first[:, None] + np.arange(4)] ^= 0xFF
    registers = np.zeros(len(rows), dtype=np.uint32)
    for column in np.ascontiguousarray(rows.T):
        registers = BYTE_TABLE[(registers ^ column) & 0xFF] ^ (registers >> 8)
    return registers ^ np.uint32(0xFFFFFFFF)


def mask(checksums: Words) -> Words:
    """Return `checksums` with TensorFlow's mask (tensorflow/core/lib/hash/crc32c.h)."""
    return ((checksums >> np.uint32(15)) | (checksums << np.uint32(17))) + np.uint32(_MASK_DELTA)


def masked_crc32c(data: bytes | memoryview | NDArray[np.uint8]) -> int:
    """Return the masked CRC-32C of `data`, as a record holds it."""
    return int(mask(np.array([crc32c(data)], dtype=np.uint32))[0])


# Records


@lru_cache(maxsize=4096)
def header(length: int) -> bytes:
    """Return the bytes in front of `length` bytes of data."""
    packed = struct.pack("<Q", length)
    return packed + struct.pack("<I", masked_crc32c(packed))


def frame(data: bytes) -> bytes:
    """Return `data` as one record."""
    return b"".join((header(len(data)), data, struct.pack("<I", masked_crc32c(data))))


def varint(number: int) -> bytes:
    """Return `number` (0 to 2**64 - 1) in base 128, lowest digit first, with the high bit on all but the last."""
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def version_record(time: float) -> bytes:
    """Return the record that begins every event file: Event.wall_time [1] and Event.file_version [3]."""
    version = b"brain.Event:2"
    return frame(b"\x09" + struct.pack("<d", time) + b"\x1a" + varint(len(version)) + version)


def read_records(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield offset and data of each record between two offsets of `file`, without checking the checksums.

    Raise ValueError if a record goes beyond `end`.
    """
    offset = begin
    while offset < end:
        file.seek(offset)
        (length,) = struct.unpack("<Q", file.read(8))
        if offset + HEADER + length + FOOTER > end:
            raise ValueError(f"a record at byte {offset} goes beyond the end")
        file.seek(offset + HEADER)
        yield offset, file.read(length)
        offset += HEADER + length + FOOTER


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
    messages = []
    for row, (step, time) in enumerate(zip(steps.tolist(), times.tolist(), strict=True)):
        summary = b"".join(
            _value_prefix(tags[metric]) + values[metric, row].tobytes()
            for metric in np.flatnonzero(present[:, row]).tolist()
        )
        messages.append(
            b"".join((b"\x09", struct.pack("<d", time), b"\x10", varint(step), b"\x2a", varint(len(summary)), summary))
        )
    if not messages:
        return []
    checksums = mask(crc32c_each(messages)).astype("<u4")
    return [
        b"".join((header(len(message)), message, checksum.tobytes()))
        for message, checksum in zip(messages, checksums, strict=True)
    ]


@lru_cache(maxsize=4096)
def _value_prefix(tag: bytes) -> bytes:
    """Return the bytes in front of a value's four: value [1] length, tag [1] length and bytes, the key of [2]."""
    inner = b"\x0a" + varint(len(tag)) + tag + b"\x15"
    return b"\x0a" + varint(len(inner) + 4) + inner


def _template(tags: tuple[bytes, ...], width: int) -> RecordTemplate:
    """Return a template, from a cache if possible: the runs of a sweep share theirs."""
    if len(tags) <= _FEW_TAGS:
        return _small_template(tags, width)
    return _large_template(tags, width) if len(tags) <= _MANY_TAGS else RecordTemplate(tags, width)


@lru_cache(maxsize=64)
def _small_template(tags: tuple[bytes, ...], width: int) -> RecordTemplate:
    return RecordTemplate(tags, width)


@lru_cache(maxsize=4)
def _large_template(tags: tuple[bytes, ...], width: int) -> RecordTemplate:
    return RecordTemplate(tags, width)


class RecordTemplate:
    """The records of rows that hold values for exactly `tags`, with steps of `width` bytes.

    `length` is that of a record in bytes. A record's variable bytes are, in order: 8 of the time, `width` of the
    step, 4 of each value, 4 of the checksum.
    """

    def __init__(self, tags: Sequence[bytes], width: int) -> None:
        prefixes = [_value_prefix(tag) for tag in tags]
        summary = sum(len(prefix) + 4 for prefix in prefixes)
        head = b"\x09" + bytes(8) + b"\x10" + bytes(width) + b"\x2a" + varint(summary)
        data = head + b"".join(prefix + bytes(4) for prefix in prefixes)
        self.length = HEADER + len(data) + FOOTER
        self._width = width
        self._base = np.frombuffer(header(len(data)) + data + bytes(FOOTER), dtype=np.uint8)
        ends = np.cumsum([len(prefix) + 4 for prefix in prefixes])
        self._offsets = [HEADER + len(head) + int(end) - 4 for end in ends]
        # The checksum of a record is that of the template XOR one table entry per variable byte. Each variable byte
        # has its own table of 256 entries, which depends on the number of bytes behind it. They are found from the
        # end of the record to its beginning.
        self._checksum = np.uint32(crc32c(data))
        self._value_tables = np.empty((len(prefixes), 4, 256), dtype=np.uint32)
        tables = _tables_of_run(BYTE_TABLE, 4)
        for index in range(len(prefixes) - 1, -1, -1):
            self._value_tables[index] = tables
            tables = append_zeros(tables, len(prefixes[index]) + 4)
        behind_step = summary + len(head) - 10 - width
        self._step_tables = _tables_of_run(append_zeros(BYTE_TABLE, behind_step), width)
        self._time_tables = _tables_of_run(append_zeros(self._step_tables[0], 2), 8)

    def fill(
        self, steps: NDArray[np.uint64], times: NDArray[np.float64], values: NDArray[np.float32]
    ) -> NDArray[np.uint8]:
        """Return uint8 (n, length), the records of n rows; `values` is (k, n) for k tags."""
        count = len(steps)
        records = np.empty((count, self.length), dtype=np.uint8)
        records[:] = self._base
        seconds = np.ascontiguousarray(times, dtype="<f8")
        self._column(records, HEADER + 1, "<f8")[:] = seconds
        digits = _varint_digits(steps, self._width)
        records[:, HEADER + 10 : HEADER + 10 + self._width] = digits.T
        values = np.ascontiguousarray(values, dtype="<f4")
        for offset, column in zip(self._offsets, values, strict=True):
            self._column(records, offset, "<f4")[:] = column
        sums = np.full(count, self._checksum, dtype=np.uint32)
        _add_bytes(sums, self._time_tables, seconds.view(np.uint8).reshape(count, 8).T)
        _add_bytes(sums, self._step_tables, digits)
        for tables, column in zip(self._value_tables, values, strict=True):
            _add_bytes(sums, tables, column.view(np.uint8).reshape(count, 4).T)
        self._column(records, self.length - FOOTER, "<u4")[:] = mask(sums)
        return records

    def _column(self, records: NDArray[np.uint8], offset: int, kind: str) -> NDArray[np.generic]:
        """Return a view of the item of type `kind` at byte `offset` of every record, aligned or not."""
        return np.ndarray((len(records),), dtype=kind, buffer=records.data, offset=offset, strides=(self.length,))


def _tables_of_run(last: Words, count: int) -> Words:
    """Return (count, 256), the tables of `count` bytes in a row, the last of which has the table `last`."""
    return np.stack([append_zeros(last, count - 1 - place) for place in range(count)])


def _varint_digits(steps: NDArray[np.uint64], width: int) -> NDArray[np.uint8]:
    """Return (width, n), the bytes of n steps as varints of `width` bytes: seven bits each, lowest first."""
    digits = np.empty((width, len(steps)), dtype=np.uint8)
    for place in range(width):
        digits[place] = (steps >> np.uint64(7 * place)) & np.uint64(0x7F)
        if place < width - 1:
            digits[place] |= 0x80
    return digits


def _add_bytes(sums: Words, tables: Words, columns: NDArray[np.uint8]) -> None:
    """Add to n checksums the table entries of m columns of bytes; `tables` is (m, 256), `columns` (m, n)."""
    entries = np.empty(len(sums), dtype=np.uint32)
    for table, column in zip(tables, columns, strict=True):
        # A byte never exceeds its table. `clip` only spares numpy its own check and a second buffer.
        table.take(column, out=entries, mode="clip")
        sums ^= entries


# Texts, images and hyperparameters, with TensorBoard's own protocol buffers


def text_record(tag: str, text: str, *, step: int, time: float) -> bytes:
    """Return a record for the TEXT page, which shows Markdown."""
    from tensorboard.plugins.text import plugin_data_pb2

    content = plugin_data_pb2.TextPluginData(version=0).SerializeToString()
    return _tensor_record(tag, _strings([text.encode("utf-8", "replace")], shape=()), ("text", content), step, time)


def image_record(tag: str, image: bytes, *, size: tuple[int, int], description: str, step: int, time: float) -> bytes:
    """Return a record for the IMAGES page that holds the encoded `image` as it is.

    `size` is width and height in pixels. TensorBoard shows the description of a tag's first record.
    """
    from tensorboard.plugins.image import plugin_data_pb2

    content = plugin_data_pb2.ImagePluginData(version=0).SerializeToString()
    strings = [str(size[0]).encode(), str(size[1]).encode(), image]
    return _tensor_record(
        tag, _strings(strings, shape=(len(strings),)), ("images", content), step, time, description=description
    )


def session_start_record(values: Mapping[str, bool | float | str], *, group: str, time: float) -> bytes:
    """Return the start of a session for the HPARAMS page; `group` is the trial's name there."""
    return _hparams_record("_hparams_/session_start_info", session_start(values, group=group, time=time), time)


def session_start(values: Mapping[str, bool | float | str], *, group: str, time: float) -> Any:
    """Return the plugin data of `session_start_record`, an HParamsPluginData message."""
    from tensorboard.plugins.hparams import plugin_data_pb2

    info = plugin_data_pb2.SessionStartInfo(group_name=group, start_time_secs=time)
    for name, value in values.items():
        if isinstance(value, bool):
            info.hparams[name].bool_value = value
        elif isinstance(value, str):
            info.hparams[name].string_value = value
        else:
            info.hparams[name].number_value = value
    return plugin_data_pb2.HParamsPluginData(version=0, session_start_info=info)


def session_end_record(status: str, *, end: float, time: float) -> bytes:
    """Return the end of a session for the HPARAMS page; `status` is SUCCESS or FAILURE, `time` that of the record."""
    return _hparams_record("_hparams_/session_end_info", session_end(status, end=end), time)


def session_end(status: str, *, end: float) -> Any:
    """Return the plugin data of `session_end_record`, an HParamsPluginData message."""
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

    info = plugin_data_pb2.SessionEndInfo(status=api_pb2.Status.Value(f"STATUS_{status}"), end_time_secs=end)
    return plugin_data_pb2.HParamsPluginData(version=0, session_end_info=info)


def hparams_columns(params: Mapping[str, Sequence[bool | float | str]], metrics: Sequence[str]) -> Any:
    """Return the plugin data that names the columns of the HPARAMS page, an HParamsPluginData message.

    `params` are all values of each hyperparameter, `metrics` the tags of metrics in the order of their columns.
    Each column gets the type that TensorBoard would find by itself: text if the values are of several types.
    """
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

    columns = []
    for name, values in params.items():
        kinds = {
            "bool" if isinstance(value, bool) else "text" if isinstance(value, str) else "number" for value in values
        }
        info = api_pb2.HParamInfo(name=name, differs=len(set(values)) > 1)
        if kinds == {"number"}:
            info.type = api_pb2.DATA_TYPE_FLOAT64
            info.domain_interval.min_value, info.domain_interval.max_value = min(values), max(values)
        elif kinds == {"bool"}:
            info.type = api_pb2.DATA_TYPE_BOOL
            info.domain_discrete.extend(sorted(set(values)))
        else:
            info.type = api_pb2.DATA_TYPE_STRING
            info.domain_discrete.extend(sorted({_json_text(value) for value in values}))
        columns.append(info)
    experiment = api_pb2.Experiment(
        hparam_infos=columns,
        metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in metrics],
    )
    return plugin_data_pb2.HParamsPluginData(version=0, experiment=experiment)


def _json_text(value: bool | float | str) -> str:
    return value if isinstance(value, str) else json.dumps(value if isinstance(value, bool) else float(value))


def parse_event(data: bytes) -> Any:
    """Return the Event in the data of a record. Raise ValueError for anything else."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # published without types
    from tensorboard.compat.proto import event_pb2

    try:
        return event_pb2.Event.FromString(data)
    except DecodeError as error:
        raise ValueError(str(error)) from error


def _hparams_record(tag: str, data: Any, time: float) -> bytes:
    from tensorboard.compat.proto import tensor_pb2, tensor_shape_pb2, types_pb2

    # The page reads only the metadata. A tensor must be there, so it is an empty one.
    shape = tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=0)])
    nothing = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, tensor_shape=shape)
    return _tensor_record(tag, nothing, ("hparams", data.SerializeToString(deterministic=True)), 0, time)


def _strings(values: list[bytes], *, shape: tuple[int, ...]) -> Any:
    from tensorboard.compat.proto import tensor_pb2, tensor_shape_pb2, types_pb2

    dims = [tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in shape]
    return tensor_pb2.TensorProto(
        dtype=types_pb2.DT_STRING, string_val=values, tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=dims)
    )


def _tensor_record(
    tag: str, tensor: Any, plugin: tuple[str, bytes], step: int, time: float, *, description: str = ""
) -> bytes:
    from tensorboard.compat.proto import event_pb2, summary_pb2

    metadata = summary_pb2.SummaryMetadata(
        plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name=plugin[0], content=plugin[1]),
        summary_description=description,
    )
    value = summary_pb2.Summary.Value(tag=tag, tensor=tensor, metadata=metadata)
    event = event_pb2.Event(wall_time=time, step=step, summary=summary_pb2.Summary(value=[value]))
    return frame(event.SerializeToString(deterministic=True))

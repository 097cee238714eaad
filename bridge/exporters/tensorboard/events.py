"""Encode event records: scalars straight from columns, everything else with TensorBoard's own messages.

An event file is a sequence of TFRecords (tensorflow/core/lib/io/record_writer.h), with little-endian numbers:

    uint64 length of the data | uint32 masked CRC-32C of those 8 bytes | data | uint32 masked CRC-32C of the data

The data are one `Event` message. Each row of metrics.csv becomes one `Event` with one value per metric present
(field numbers of event.proto and summary.proto in brackets):

    wall_time [1] double | step [2] varint | summary [5] length | values
    each value [1] length | tag [1] length, bytes | simple_value [2] float

SummaryWriter writes `simple_value` too. Both of TensorBoard's loaders read it as a scalar, and it takes a third of the
size of a tensor with metadata.

Lengths decide where each byte of these records goes. So `encode_rows` first computes all places, as arrays, and then
fills in one kind of bytes after the other with numpy.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import msgspec
import numpy as np

from bridge.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from bridge.model import Block

HEADER = 12
"""Bytes before the data of a record: its length and the checksum of the length."""

FOOTER = 4
"""Bytes after the data: their checksum."""

_MAX_ROWS = 4096
"""Rows encoded at once: their records fit into the processor's cache."""

_MAX_CELLS = 262_144
"""Cells encoded at once, which limits the rows of a table with many columns."""

_FEW_ALIKE = 8
"""Records in a row that must be equally long, so that they are read together."""

_VARINT_LIMITS = np.array([1 << (7 * digits) for digits in range(1, 10)], dtype=np.uint64)


def require_tensorboard(purpose: str = "--to tensorboard") -> None:
    """Raise MissingExtraError if a package of the extra `tensorboard` is not installed."""
    if find_spec("tensorboard") is None or find_spec("google_crc32c") is None:
        raise MissingExtraError.of("tensorboard", purpose=purpose)


# Records


def masked_crc32c(data: bytes) -> int:
    """Return the masked CRC-32C of `data`, as a record holds it."""
    import google_crc32c

    return int(_mask(google_crc32c.value(data)))


def _mask(checksum: Any) -> Any:
    """Return a checksum, or an int64 array of them, with TensorFlow's mask (tensorflow/core/lib/hash/crc32c.h)."""
    return ((checksum >> 15 | checksum << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF


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
    rows = max(1, min(_MAX_ROWS, _MAX_CELLS // max(len(tags), 1)))
    for start in range(0, len(block.step), rows):
        part = slice(start, start + rows)
        present = block.present[:, part]
        with np.errstate(over="ignore", invalid="ignore"):
            values = block.values[:, part].astype("<f4")
        # A negative step is written as the large unsigned number with the same 64 bits.
        steps = block.step[part].astype(np.int64).view(np.uint64)
        held = present.any(axis=1)
        filled = present.any(axis=0)
        if not (held.all() and filled.all()):  # most rows of a table with thousands of metrics hold a few of them
            places = np.ix_(held, filled)
            present, values, steps = present[places], values[places], steps[filled]
        if present.size:
            here = [tags[index] for index in np.flatnonzero(held).tolist()]
            yield encode_rows(here, steps, block.time[part][filled], values, present)


def encode_rows(
    tags: Sequence[bytes],
    steps: NDArray[np.uint64],
    times: NDArray[np.float64],
    values: NDArray[np.float32],
    present: NDArray[np.bool_],
) -> NDArray[np.uint8]:
    """Return the records of n rows of k metrics; `values` and `present` are (k, n). Each row and metric has a value."""
    import google_crc32c

    step_widths = _varint_widths(steps)
    # Records of the same layout differ in time, step, values and checksum only, and their places have equal distances,
    # which numpy fills faster.
    same_layout = bool(present.all() and (step_widths == step_widths[0]).all())
    prefixes = [_value_prefix(tag) for tag in tags]
    sizes = np.array([len(prefix) + 4 for prefix in prefixes])
    # (k, n), or (k, 1) if all have one layout: where each value ends, counted from the first value of its row.
    ends = np.cumsum(sizes[:, None] * (present[:, :1] if same_layout else present), axis=0)
    summaries = ends[-1].view(np.uint64)  # their lengths
    summary_widths = _varint_widths(summaries)
    # (n,): the places in the buffer at which each record begins, its first value begins, and the record ends.
    lengths = HEADER + 11 + step_widths + summary_widths + ends[-1] + FOOTER
    stops = np.cumsum(lengths)
    starts, firsts = stops - lengths, stops - FOOTER - ends[-1]
    if same_layout:
        head = b"\x09" + bytes(8) + b"\x10" + bytes(int(step_widths[0])) + b"\x2a" + varint(int(summaries[0]))
        data = head + b"".join(prefix + bytes(4) for prefix in prefixes)
        record = np.frombuffer(header(len(data)) + data + bytes(FOOTER), dtype=np.uint8)
        buffer = record.reshape(1, -1).repeat(len(steps), axis=0).reshape(-1)
    else:
        buffer = np.empty(int(stops[-1]), dtype=np.uint8)

    def put(kind: str, places: NDArray[np.int64], items: Any) -> None:
        """Write an item of type `kind`, or each of an array of them, at each of the places."""
        size = np.dtype(kind).itemsize
        # One item for each byte at which one can begin.
        view: NDArray[Any] = np.ndarray((len(buffer) - size + 1,), kind, buffer.data, strides=(1,))
        view[slice(places[0], places[-1] + 1, lengths[0]) if same_layout else places] = items

    def put_varints(places: NDArray[np.int64], numbers: NDArray[np.uint64], widths: NDArray[np.int64]) -> None:
        """Write seven bits of each number into each byte, lowest first, with the high bit on all but the last."""
        for digit in range(int(widths.max())):
            rows = slice(None) if same_layout else np.flatnonzero(widths > digit)
            bits = (numbers[rows] >> np.uint64(7 * digit)).astype(np.uint8)
            put("u1", places[rows] + digit, np.where(widths[rows] > digit + 1, bits | 0x80, bits & 0x7F))

    if not same_layout:
        headers = b"".join(map(header, (lengths - HEADER - FOOTER).tolist()))
        put(f"V{HEADER}", starts, np.frombuffer(headers, f"V{HEADER}"))
        put("u1", starts + HEADER, 0x09)
        put("u1", starts + HEADER + 9, 0x10)
        put("u1", firsts - summary_widths - 1, 0x2A)
        put_varints(firsts - summary_widths, summaries, summary_widths)
    put_varints(starts + HEADER + 10, steps, step_widths)
    put("<f8", starts + HEADER + 1, times)
    for prefix, size, held, end, column in zip(prefixes, sizes.tolist(), present, ends, values, strict=True):
        rows = slice(None) if same_layout else np.flatnonzero(held)
        places = (firsts + end)[rows]
        put("<f4", places - 4, column[rows])
        if not same_layout:
            put(f"V{len(prefix)}", places - size, np.void(prefix))
    data = buffer.tobytes()
    messages = map(data.__getitem__, map(slice, (starts + HEADER).tolist(), (stops - FOOTER).tolist()))
    checksums = np.fromiter(map(google_crc32c.value, messages), np.int64, len(stops))
    put("<u4", stops - FOOTER, _mask(checksums))
    return buffer


def _varint_widths(numbers: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return how many bytes each number takes as a varint."""
    return np.searchsorted(_VARINT_LIMITS, numbers, side="right") + 1


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


def read_scalars(file: BinaryIO, end: int) -> Iterator[ScalarRows]:
    """Yield the rows of an event file of `end` bytes that holds scalars. Raise what `read_record` raises.

    TensorBoard's message reads the first of many records of the same layout. The others are read like it, encoded
    again, and compared byte by byte.
    """
    offset, most = 0, 64
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
                records = np.frombuffer(found, np.uint8, count * length).reshape(count, length)
                rows = _read_alike(records, tags, len(varint(event.step % 2**64)))
                if len(rows.steps):
                    yield rows
                    offset += len(rows.steps) * length
                    most = min(_MAX_ROWS, 4 * most) if len(rows.steps) == count else max(_FEW_ALIKE, len(rows.steps))
                    continue
            values = np.array([[value.simple_value] for value in event.summary.value], dtype=np.float32)
            yield ScalarRows(tags, np.array([event.step]), np.array([event.wall_time]), values)
        offset += length


def _read_alike(records: NDArray[np.uint8], tags: tuple[str, ...], step_width: int) -> ScalarRows:
    """Return the rows of the first of `records` (n, length) that hold `tags` and steps of `step_width` bytes."""
    names = [tag.encode() for tag in tags]
    count, length = records.shape
    # (k,): where the values are in a record, found from its end.
    sizes = np.array([len(_value_prefix(name)) + 4 for name in names])
    places = length - FOOTER - 4 - (sizes.sum() - np.cumsum(sizes))
    if places[0] < HEADER + 10 + step_width:
        return ScalarRows(tags, np.empty(0, np.int64), np.empty(0), np.empty((len(tags), 0), np.float32))
    steps = np.zeros(count, dtype=np.uint64)
    for digit in range(step_width):
        steps |= (records[:, HEADER + 10 + digit] & np.uint64(0x7F)) << np.uint64(7 * digit)
    times = records[:, HEADER + 1 : HEADER + 9].copy().view("<f8")[:, 0]
    values = np.array([records[:, place : place + 4].copy().view("<f4")[:, 0] for place in places.tolist()])
    again = encode_rows(names, steps, times, values, np.ones(values.shape, dtype=np.bool_))
    size = min(len(again), records.size)
    differs = again[:size] != records.reshape(-1)[:size]
    same = int(differs.argmax()) // length if differs.any() else size // length
    return ScalarRows(tags, steps[:same].view(np.int64), times[:same], values[:, :same])


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

"""Read TensorBoard event files without TensorBoard and without protocol buffers.

An event file is a row of records: 8 bytes with the length of the data, 4 with a checksum of the length, the data, 4
with a checksum of the data. The data is one `Event` message: wall time, step, and a summary of tagged values. Nearly
all events of a training are one float32 scalar. `read_events` decodes those with numpy, all records of a portion at
once; any other event goes through `parse_event`, field by field. Checksums are not computed: TensorBoard's own reader
does not either, unless a record makes no sense. The module loads numpy only where it needs arrays.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

PORTION = 4 << 20
"""Bytes that are decoded at once."""

LARGEST_RECORD = 1 << 30
"""A length beyond this is not believed."""

_HEAD, _FOOT = 12, 4
_LARGE = 32 << 20
"""Records above this are passed over unread. A picture of a training is smaller."""

_LENGTH = struct.Struct("<Q").unpack_from
_DOUBLE = struct.Struct("<d").unpack_from
_FLOAT = struct.Struct("<f").unpack_from

SCALAR, PICTURE, VERSION = "scalar", "picture", "version"


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture in an event file: the `size` bytes from byte `offset` on. Its record ends at byte `end`."""

    tag: str
    step: int
    time: float
    offset: int
    size: int
    end: int


@dataclass(slots=True, eq=False)
class EventBatch:
    """Consecutive records: n scalars as columns, the pictures, and a count of everything else.

    `tag` int32 (n,) indexes `tags`; `step` int64, `time` float64 (seconds since the epoch) and `value` float64 are
    (n,). `ends` int64 (n,) is the byte of the file at which the record of each scalar ends, and `end` the byte at which
    the batch ends. `others` are kinds of values that are neither, with their number. `problem` says why the file is not
    read further, "" if it can be.
    """

    tags: list[str]
    tag: NDArray[np.int32]
    step: NDArray[np.int64]
    time: NDArray[np.float64]
    value: NDArray[np.float64]
    ends: NDArray[np.int64]
    end: int
    pictures: list[Picture] = field(default_factory=list)
    others: dict[str, int] = field(default_factory=dict)
    problem: str = ""

    def scalars(self, chosen: NDArray[Any]) -> EventBatch:
        """Return the batch with some of its scalars, which a mask or places choose."""
        return replace(
            self,
            tag=self.tag[chosen],
            step=self.step[chosen],
            time=self.time[chosen],
            value=self.value[chosen],
            ends=self.ends[chosen],
        )


def read_events(file: BinaryIO, begin: int, end: int) -> Iterator[EventBatch]:
    """Yield the complete records from byte `begin` up to byte `end`. A record that is cut off is not there yet."""
    offset, wanted = begin, PORTION
    while True:
        file.seek(offset)
        data = file.read(min(wanted, end - offset))
        if len(data) < _HEAD + _FOOT:
            return
        starts, used = _frames(data)
        if used:
            batch = _decode(data[:used], starts, offset)
            yield batch
            if batch.problem:
                return
            offset, wanted = batch.end, PORTION
            continue
        (size,) = _LENGTH(data, 0)
        if size > LARGEST_RECORD:
            yield _empty(offset, problem=f"byte {offset}: a record of {size:,} bytes is not believed")
            return
        if offset + _HEAD + size + _FOOT > end:
            return
        if size > _LARGE:
            offset += _HEAD + size + _FOOT
            yield _empty(offset, others={"large values": 1})
        else:
            wanted = size + _HEAD + _FOOT


def _empty(end: int, *, others: dict[str, int] | None = None, problem: str = "") -> EventBatch:
    import numpy as np

    none, empty = np.empty(0, dtype=np.int64), np.empty(0)
    return EventBatch([], none.astype(np.int32), none, empty, empty, none, end, [], others or {}, problem)


def _frames(data: bytes) -> tuple[list[int], int]:
    """Return where the complete records of `data` begin, up to a large one, and where the last of them ends."""
    starts: list[int] = []
    offset, last = 0, len(data) - _HEAD - _FOOT
    while offset <= last:
        (size,) = _LENGTH(data, offset)
        end = offset + _HEAD + size + _FOOT
        if end > len(data) or size > _LARGE:
            break
        starts.append(offset)
        offset = end
    return starts, offset


def _varints(words: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Decode varints of up to 8 bytes at the low end of little-endian words: values, lengths, and which ones ended.

    Each byte of a varint holds 7 bits, and the high bit says that another byte follows. `low` is the high bit of the
    first byte without that mark, so `keep` masks the bytes of the varint. Then the 7-bit groups are moved together:
    pairs of bytes, pairs of pairs, and the halves of the word.
    """
    import numpy as np

    stop = ~words & np.uint64(0x8080808080808080)
    low = stop & (~stop + np.uint64(1))
    keep = (low - np.uint64(1)) | low
    x = words & keep & np.uint64(0x7F7F7F7F7F7F7F7F)
    x = (x & np.uint64(0x007F007F007F007F)) | ((x & np.uint64(0x7F007F007F007F00)) >> np.uint64(1))
    x = (x & np.uint64(0x00003FFF00003FFF)) | ((x & np.uint64(0x3FFF00003FFF0000)) >> np.uint64(2))
    x = (x & np.uint64(0x000000000FFFFFFF)) | ((x & np.uint64(0x0FFFFFFF00000000)) >> np.uint64(4))
    used = sum((keep >> np.uint64(8 * byte) != 0).astype(np.int64) for byte in range(8))
    return x.astype(np.int64), np.asarray(used), stop != 0


def _decode(data: bytes, starts: list[int], offset: int) -> EventBatch:
    """Decode the records of `data`, which begin at `starts`; `data` is at byte `offset` of the file.

    An event with one scalar has these bytes: 0x09 wall_time (8 bytes); 0x10 step (varint), left out for step 0; 0x2A
    length of the summary; 0x0A length of the value; 0x0A length of the tag, tag; 0x15 float32. All records are matched
    against this at once: `q`, `r`, `s`, `v` are the places of the fields after the step, in each record.
    """
    import numpy as np
    import pyarrow as pa

    padded = data + bytes(16)  # so that a wide load at the end stays inside
    u1 = np.frombuffer(padded, np.uint8)
    # Arrays with a stride of one byte: u8[i] is the 8-byte word that begins at byte i, and so on.
    u8 = np.ndarray((len(padded) - 7,), "<u8", padded, 0, (1,))
    f8 = np.ndarray((len(padded) - 7,), "<f8", padded, 0, (1,))
    f4 = np.ndarray((len(padded) - 3,), "<f4", padded, 0, (1,))
    begin = np.array(starts, np.int64)
    size = np.diff(begin, append=len(data)) - _HEAD - _FOOT
    p = begin + _HEAD
    stop = p + size
    limit = len(data) - 1
    has_step = u1[p + 9] == 0x10
    step, used, ended = _varints(u8[np.minimum(p + 10, limit)])
    step = np.where(has_step, step, 0)
    q = np.minimum(p + 9 + np.where(has_step, 1 + used, 0), limit)
    r = np.minimum(q + 2 + (u1[q + 1] >> 7), limit)  # a length above 127 takes two bytes
    s = np.minimum(r + 2 + (u1[r + 1] >> 7), limit)
    width = u1[np.minimum(s + 1, limit)].astype(np.int64)
    v = np.minimum(s + 2 + width, limit)

    def length(at: NDArray[np.int64]) -> NDArray[np.int64]:
        first = u1[at].astype(np.int64)
        second = u1[np.minimum(at + 1, limit)].astype(np.int64)
        return np.where(first < 128, first, (first & 127) | (second << 7))

    marks = (u1[p] == 0x09) & (u1[q] == 0x2A) & (u1[r] == 0x0A) & (u1[s] == 0x0A) & (u1[v] == 0x15)
    fits = (size >= 18) & (ended | ~has_step) & (width < 128) & (v + 5 == stop)
    plain = marks & fits & (r + length(q + 1) == stop) & (s + length(r + 1) == stop)
    rows = np.flatnonzero(plain)
    at, width = s[rows] + 2, width[rows]
    # A hash of each tag, 8 bytes at a time; equal tags have equal hashes, and the names are read once for each hash.
    hashes = width.astype(np.uint64)
    for byte in range(0, int(width.max()) if len(rows) else 0, 8):
        left = np.clip(width - byte, 0, 8).astype(np.uint64)
        mask = np.where(
            left == 8, ~np.uint64(0), (np.uint64(1) << (left * np.uint64(8) & np.uint64(63))) - np.uint64(1)
        )
        hashes = (hashes ^ (u8[np.minimum(at + byte, len(padded) - 8)] & mask)) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    encoded = pa.array(hashes).dictionary_encode()
    tag = np.asarray(encoded.indices).astype(np.int32)
    first = np.zeros(len(encoded.dictionary), np.int64)
    first[tag[::-1]] = np.arange(len(tag))[::-1]
    tags = [data[int(at[row]) : int(at[row] + width[row])].decode("utf-8", "replace") for row in first]
    batch = EventBatch(
        tags=tags,
        tag=tag,
        step=step[rows],
        time=f8[p[rows] + 1],
        value=f4[v[rows] + 1].astype(np.float64),
        ends=offset + stop[rows] + _FOOT,
        end=offset + len(data),
    )
    odd = np.flatnonzero(~plain)
    return _with_odd(batch, data, offset, [(int(p[row]), int(stop[row])) for row in odd]) if len(odd) else batch


def _with_odd(batch: EventBatch, data: bytes, offset: int, places: list[tuple[int, int]]) -> EventBatch:
    """Return `batch` with what is in the records at `places`, which are parsed one by one."""
    import numpy as np

    found: list[tuple[int, int, float, float, int]] = []
    numbers = {name: number for number, name in enumerate(batch.tags)}
    for begin, stop in places:
        end = offset + stop + _FOOT
        try:
            then, at, values = parse_event(data[begin:stop])
        except ValueError as error:
            batch.end = offset + begin - _HEAD
            batch.problem = f"byte {batch.end}: a record makes no sense ({error})"
            break
        for name, kind, content in values:
            if kind == SCALAR:
                found.append((numbers.setdefault(name, len(numbers)), at, then, content, end))
            elif kind == PICTURE:
                place, size = content
                batch.pictures.append(Picture(name, at, then, offset + begin + place, size, end))
            elif kind not in (VERSION, "hparams"):
                batch.others[kind] = batch.others.get(kind, 0) + 1
    kept = batch.scalars(batch.ends <= batch.end)
    tag, step, time, value, ends = zip(*found, strict=True) if found else [()] * 5
    both = replace(
        kept,
        tags=list(numbers),
        tag=np.concatenate([kept.tag, np.array(tag, np.int32)]),
        step=np.concatenate([kept.step, np.array(step, np.int64)]),
        time=np.concatenate([kept.time, np.array(time, np.float64)]),
        value=np.concatenate([kept.value, np.array(value, np.float64)]),
        ends=np.concatenate([kept.ends, np.array(ends, np.int64)]),
    )
    # Stable, so that several scalars of one event keep their order.
    return both.scalars(np.argsort(both.ends, kind="stable"))


# Messages field by field --------------------------------------------------------------------------------------------


def fields(data: bytes, start: int = 0) -> Iterator[tuple[int, int | bytes, int]]:
    """Yield number, value and place of each field of a protobuf message: varints as int, everything else as bytes.

    The place is that of the value's first byte, where `data` begins at byte `start`. Raises ValueError for bytes that
    are no message.
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            number, end = _varint(data, at)
            yield key >> 3, number, start + at
            at = end
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of type {kind}")
        if size > len(data) - at:
            raise ValueError("a field longer than its message")
        yield key >> 3, data[at : at + size], start + at
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the integer at byte `at`, and where it ends."""
    number = 0
    for place, byte in enumerate(data[at : at + 10]):
        number |= (byte & 127) << (7 * place)
        if byte < 128:
            return number, at + place + 1
    raise ValueError("an integer without end")


def message(value: int | bytes | None) -> dict[int, int | bytes]:
    """Return the fields of a message by number, of each the last; none where `value` is no message."""
    return {number: found for number, found, _ in fields(value)} if isinstance(value, bytes) else {}


def text(value: int | bytes | None) -> str:
    """Return the text of a field; "" where it is missing."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


def parse_event(data: bytes) -> tuple[float, int, list[tuple[str, str, Any]]]:
    """Return the wall time, the step, and the values of an event as (tag, kind, value).

    The kind is SCALAR, PICTURE (the value is its place in `data` and its size), `hparams` (the value is the plugin's
    data), VERSION, or a word for what it is otherwise: `histograms`, `audio`, `texts`, `graphs`, ... Raises ValueError
    for bytes that are no event.
    """
    try:
        return _parse_event(data)
    except struct.error as error:
        raise ValueError(str(error)) from error


def _parse_event(data: bytes) -> tuple[float, int, list[tuple[str, str, Any]]]:
    time, step = 0.0, 0
    values: list[tuple[str, str, Any]] = []
    for number, value, place in fields(data):
        if number == 1 and isinstance(value, bytes):
            (time,) = _DOUBLE(value)
        elif number == 2 and isinstance(value, int):
            step = value - (1 << 64) if value >> 63 else value
        elif number == 5 and isinstance(value, bytes):
            for key, part, inner in fields(value, place):
                if key == 1 and isinstance(part, bytes):
                    values += _parse_value(part, inner)
        elif number == 3:
            values.append(("", VERSION, None))
        elif number in (4, 9):
            values.append(("", "graphs", None))
        elif number == 7 and message(value).get(1) == 1:
            values.append(("", "session starts", None))
        elif number in (6, 7, 8):
            values.append(("", "log messages", None))
    return time, step, values


_WORDS = {4: "images", 5: "histograms", 6: "audio"}
_PLUGINS = {"text": "texts", "pr_curves": "curves"}


def _parse_value(data: bytes, place: int) -> list[tuple[str, str, Any]]:
    """Return the `Summary.Value` at `place` as (tag, kind, value). There are several only for several pictures."""
    value = message(data)
    tag = text(value.get(1))
    plugin = message(message(value.get(9)).get(1))
    name = text(plugin.get(1))
    scalar = value.get(2)
    if isinstance(scalar, bytes):
        return [(tag, SCALAR, float(_FLOAT(scalar)[0]))]
    if name == "hparams":
        content = plugin.get(2, b"")
        return [(tag, "hparams", content if isinstance(content, bytes) else b"")]
    if 8 in value and name in ("", "scalars"):
        number = _tensor_scalar(message(value[8]))
        if number is not None:
            return [(tag, SCALAR, number)]
    pictures = [(tag, PICTURE, found) for found in _pictures(data, place, is_tensor=name == "images")]
    word = next((word for key, word in _WORDS.items() if key in value), None)
    return pictures or [(tag, word or _PLUGINS.get(name, name or "tensors"), None)]


def _pictures(data: bytes, place: int, *, is_tensor: bool) -> list[tuple[int, int]]:
    """Return place and size of the encoded pictures in the `Summary.Value` at `place`.

    They are field 4 of an `Image`, or the texts in a tensor of the plugin `images`: width, height, then the pictures.
    The image is field 4 of the value too, and both the tensor and its texts are field 8.
    """
    for number, value, inner in fields(data, place):
        if isinstance(value, bytes) and number == (8 if is_tensor else 4):
            strings = fields(value, inner)
            found = [(at, len(one)) for key, one, at in strings if key == number and isinstance(one, bytes)]
            return found[2:] if is_tensor else found[-1:]
    return []


_TENSOR_TYPES = {1: ("<f", 5), 2: ("<d", 6)}
"""The format of one number and the field that holds it beside `tensor_content`, for float and double."""


def _tensor_scalar(tensor: dict[int, int | bytes]) -> float | None:
    """Return the one float or double in a tensor without dimensions; None for any other tensor."""
    kind = tensor.get(1, 0)
    if kind not in _TENSOR_TYPES or 2 in message(tensor.get(2)):
        return None
    form, place = _TENSOR_TYPES[int(kind) if isinstance(kind, int) else 0]
    raw = tensor.get(4) or tensor.get(place)
    return float(struct.unpack_from(form, raw)[0]) if isinstance(raw, bytes) and raw else None

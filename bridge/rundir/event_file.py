"""Read TensorBoard event files without TensorBoard and without protocol buffers.

An event file is a row of records: 8 bytes with the length of the data, 4 with a checksum of the length, the data, 4
with a checksum of the data. The data is one `Event` message: wall time, step, and a summary of tagged values. Nearly
all events of a training are one float32 scalar. `read_events` decodes those with numpy, all records of a portion at
once; any other event goes through `parse_event`, field by field. Checksums are not computed: TensorBoard's own reader
does not either, unless a record makes no sense.
"""

from __future__ import annotations

import struct
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import pyarrow as pa

from bridge.files import clean

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from bridge.model import Scalar

PORTION = 1 << 18
"""Bytes that are decoded at once; fewer if the points have too many tags."""

_MOST_CELLS = 1 << 22
"""Points of a portion times its tags. The table of its rows has as many cells, of nine bytes each."""

LARGEST_RECORD = 32 << 20
"""Records above this are passed over unread. A picture of a training is smaller."""

_HEAD, _FOOT = 12, 4
_LENGTH = struct.Struct("<Q").unpack_from

POINT = [("tag", "i4"), ("step", "i8"), ("time", "f8"), ("value", "f8"), ("end", "i8")]
"""A scalar: its tag's place in `EventBatch.tags`, and the byte of the file at which its record ends."""

# What else is in events, by the number of its field or the name of its plugin.
_RARE_EVENTS = {4: "graphs", 6: "log messages", 7: "session logs", 8: "run metadata", 9: "graphs"}
_RARE_VALUES = {4: "images", 5: "histograms", 6: "audio"}
_PLUGINS = {"text": "texts", "pr_curves": "curves", "": "tensors"}


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture in an event file: the `size` bytes from byte `offset` on."""

    tag: str
    step: int
    time: float
    offset: int
    size: int


@dataclass(slots=True, eq=False)
class EventBatch:
    """Consecutive records up to byte `end` of the file: scalars, pictures, and a count of everything else by kind.

    `points` is an array of POINT in the order of the file, and `times` float64 are the wall times of all records.
    `params` are the hyperparameters of the HPARAMS page. `problem` says why the file is not read further, "" if it can
    be.
    """

    end: int
    times: NDArray[np.float64]
    tags: list[str]
    points: NDArray[np.void]
    params: dict[str, Scalar] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    problem: str = ""


def read_events(file: BinaryIO, begin: int, end: int) -> Iterator[EventBatch]:
    """Yield the complete records from byte `begin` up to byte `end`. A record that is cut off is not there yet."""
    offset, portion = begin, PORTION
    while offset + _HEAD + _FOOT <= end:
        file.seek(offset)
        data = file.read(min(portion, end - offset))
        if len(data) < _HEAD + _FOOT:
            return
        size = _LENGTH(data)[0] + _HEAD + _FOOT
        if size <= LARGEST_RECORD:
            data += file.read(max(0, min(size, end - offset) - len(data)))
            starts, used = _frames(data)
            if not used:
                return
            batch = _decode(data[:used], starts, offset)
            if len(batch.points) * len(batch.tags) > _MOST_CELLS and len(starts) > 1:
                portion //= 2
                continue
        elif size <= end - offset:
            batch = _decode(b"", [], offset + size)
            batch.others["large values"] = 1
        else:
            batch = _decode(b"", [], offset)
            batch.problem = f"byte {offset}: a record of {size:,} bytes is not believed"
        yield batch
        if batch.problem:
            return
        offset = batch.end


def _frames(data: bytes) -> tuple[list[int], int]:
    """Return where the complete records of `data` begin, and where the last of them ends."""
    starts: list[int] = []
    offset, last = 0, len(data) - _HEAD - _FOOT
    while offset <= last:
        (size,) = _LENGTH(data, offset)
        end = offset + _HEAD + size + _FOOT
        if end > len(data):
            break
        starts.append(offset)
        offset = end
    return starts, offset


def _decode(data: bytes, starts: Sequence[int], offset: int) -> EventBatch:
    """Decode the records of `data`, which begin at `starts`; `data` is at byte `offset` of the file.

    An event with one scalar has these bytes: 0x09 wall_time (8 bytes); 0x10 step, left out for step 0; 0x2A length of
    the summary; 0x0A length of the value; 0x0A length of the tag, tag; 0x15 float32. Step and lengths are varints. All
    records are matched against this at once: the arrays hold the place of a field in each record.
    """
    padded = data + bytes(64)  # so that the fields of a short record at the end stay inside
    u1 = np.frombuffer(padded, np.uint8)
    # Arrays with a stride of one byte: f8[i] is the float64 that begins at byte i.
    f8 = np.ndarray((len(padded) - 7,), "<f8", padded, 0, (1,))
    f4 = np.ndarray((len(padded) - 3,), "<f4", padded, 0, (1,))
    begin = np.array(starts, np.int64) + _HEAD
    stop = np.append(begin[1:] - _HEAD, len(data)) - _FOOT
    has_step = u1[begin + 9] == 0x10
    step, behind = _varints(u1, begin + 10)
    step, summary = np.where(has_step, step, 0), np.where(has_step, behind, begin + 9)
    summary_size, value = _varints(u1, summary + 1)
    value_size, key = _varints(u1, value + 1)
    width, tag = _varints(u1, key + 1)
    number = np.clip(tag + width, 0, len(data))
    marks = (u1[begin] == 0x09) & (u1[summary] == 0x2A) & (u1[value] == 0x0A) & (u1[key] == 0x0A) & (u1[number] == 0x15)
    ends = (value + summary_size == stop) & (key + value_size == stop) & (number + 5 == stop)
    plain = marks & ends & (width >= 0)
    rows = np.flatnonzero(plain)
    # The tags and the bytes between them are the values of one Arrow array of bytes, in turn: every other one is a tag.
    bounds = np.concatenate([[0], np.stack([tag[rows], number[rows]], axis=1).ravel()]).astype(np.int32)
    buffers = [None, pa.py_buffer(bounds), pa.py_buffer(data)]
    pieces = pa.Array.from_buffers(pa.binary(), len(bounds) - 1, buffers)
    tags = pieces.take(pa.array(np.arange(1, len(bounds), 2))).dictionary_encode()
    points = np.empty(len(rows), POINT)
    points["tag"], points["step"], points["time"] = tags.indices, step[rows], f8[begin[rows] + 1]
    points["value"], points["end"] = f4[number[rows] + 1], offset + stop[rows] + _FOOT
    names = [name.decode("utf-8", "replace") for name in tags.dictionary.to_pylist()]
    times = np.where(u1[begin] == 0x09, f8[begin + 1], np.nan)
    batch = EventBatch(offset + len(data), times, names, points)
    odd = np.flatnonzero(~plain)
    if len(odd):
        _add_odd(batch, data, offset, list(zip(begin[odd].tolist(), stop[odd].tolist(), strict=True)))
    return batch


def _varints(data: NDArray[np.uint8], at: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Decode the varint at each of the places `at`; return the numbers as int64, and the places behind them.

    Each byte of a varint holds 7 bits, the lowest ones first, and its high bit says that another byte follows.
    """
    number, more = np.zeros(len(at), np.int64), np.ones(len(at), dtype=bool)
    for shift in range(0, 70, 7):
        byte = data[at].astype(np.int64)
        number |= np.where(more, (byte & 127) << shift, 0)
        at = at + more
        more &= byte > 127
        if not more.any():
            break
    return number, at


def _add_odd(batch: EventBatch, data: bytes, offset: int, places: Sequence[tuple[int, int]]) -> None:
    """Add what is in the records between `places` of `data`, which are parsed one by one.

    A record that makes no sense ends the batch.
    """
    found: list[tuple[int, int, float, float, int]] = []
    numbers = {tag: number for number, tag in enumerate(batch.tags)}
    for begin, stop in places:
        try:
            scalars = _parse_event(batch, data[begin:stop], offset + begin)
        except ValueError as error:
            batch.end = offset + begin - _HEAD
            batch.problem = f"byte {batch.end}: a record makes no sense ({error})"
            break
        for tag, step, time, value, end in scalars:
            if tag not in numbers:
                numbers[tag] = len(batch.tags)
                batch.tags.append(tag)
            found.append((numbers[tag], step, time, value, end))
    points = np.concatenate([batch.points, np.array(found, POINT)])
    points = points[points["end"] <= batch.end]
    batch.points = points[np.argsort(points["end"], kind="stable")]
    batch.pictures = [picture for picture in batch.pictures if picture.offset < batch.end]


def _parse_event(batch: EventBatch, data: bytes, offset: int) -> list[tuple[str, int, float, float, int]]:
    """Return the scalars of the event `data`, which is at byte `offset`, and add anything else to `batch`.

    Raises ValueError for bytes that are no event.
    """
    time, step, end = 0.0, 0, offset + len(data) + _FOOT
    summary: list[tuple[bytes, int]] = []
    for number, value, place in _fields(data, offset):
        if number == 1 and isinstance(value, float):
            time = value
        elif number == 2 and isinstance(value, int):
            step = value - (1 << 64) if value >> 63 else value
        elif number == 5 and isinstance(value, bytes):
            summary += [(part, at) for _, part, at in _fields(value, place) if isinstance(part, bytes)]
        elif number in _RARE_EVENTS:
            batch.others[_RARE_EVENTS[number]] += 1
    scalars: list[tuple[str, int, float, float, int]] = []
    for part, place in summary:
        parts = _message(part)
        tag, plugin = _text(parts.get(1)), _message(_message(parts.get(9)).get(1))
        name = _text(plugin.get(1))
        scalar = parts.get(2)
        if scalar is None and name in ("", "scalars"):
            scalar = _tensor_scalar(_message(parts.get(8)))
        if isinstance(scalar, float):
            scalars.append((tag, step, time, scalar, end))
        elif name == "hparams":
            batch.params = _session_params(plugin.get(2)) or batch.params
        elif pictures := _pictures(part, place, is_tensor=name == "images"):
            batch.pictures += [Picture(tag, step, time, at, size) for at, size in pictures]
        else:
            word = next((word for key, word in _RARE_VALUES.items() if key in parts), None)
            batch.others[word or _PLUGINS.get(name, name)] += 1
    return scalars


# Messages field by field --------------------------------------------------------------------------------------------


def _fields(data: bytes, start: int = 0) -> Iterator[tuple[int, int | float | bytes, int]]:
    """Yield number, value and place of each field of a protobuf message.

    A varint is an int, a value of fixed size a float, and anything else bytes. The place is that of the value's first
    byte, where `data` begins at byte `start`. Raises ValueError for bytes that are no message.
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            number, end = _varint(data, at)
            yield key >> 3, number, start + at
        elif kind in (1, 2, 5):
            size, at = _varint(data, at) if kind == 2 else (8 if kind == 1 else 4, at)
            end = at + size
            if end > len(data):
                raise ValueError("a field longer than its message")
            value = data[at:end]
            yield key >> 3, value if kind == 2 else struct.unpack("<d" if kind == 1 else "<f", value)[0], start + at
        else:
            raise ValueError(f"a field of type {kind}")
        at = end


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the 64-bit integer at byte `at`, without a sign, and where it ends."""
    number = 0
    for place, byte in enumerate(data[at : at + 10]):
        number |= (byte & 127) << (7 * place)
        if byte < 128:
            return number % (1 << 64), at + place + 1
    raise ValueError("an integer without end")


def _message(value: object) -> dict[int, int | float | bytes]:
    """Return the fields of a message by number, of each the last; none where `value` is no message."""
    return {number: found for number, found, _ in _fields(value)} if isinstance(value, bytes) else {}


def _text(value: object) -> str:
    """Return the text of a field; "" where it is missing."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


def _pictures(data: bytes, place: int, *, is_tensor: bool) -> list[tuple[int, int]]:
    """Return place and size of the encoded pictures in the `Summary.Value` at `place`.

    They are field 4 of an `Image`, or the texts in a tensor of the plugin `images`: width, height, then the pictures.
    The image is field 4 of the value too, and both the tensor and its texts are field 8.
    """
    number = 8 if is_tensor else 4
    for key, outer, at in _fields(data, place):
        if key == number and isinstance(outer, bytes):
            parts = _fields(outer, at)
            found = [(begin, len(part)) for key, part, begin in parts if key == number and isinstance(part, bytes)]
            return found[2:] if is_tensor else found[-1:]
    return []


def _tensor_scalar(tensor: dict[int, int | float | bytes]) -> float | None:
    """Return the one float or double in a tensor without dimensions; None for any other tensor.

    It is in `tensor_content`, field 4, or in field 5 (float) or 6 (double).
    """
    kind = tensor.get(1)
    if kind not in (1, 2) or 2 in _message(tensor.get(2)):
        return None
    number = tensor.get(4) or tensor.get(5 if kind == 1 else 6)
    form = "<f" if kind == 1 else "<d"
    if isinstance(number, bytes):
        return float(struct.unpack(form, number)[0]) if len(number) == struct.calcsize(form) else None
    return number


def _session_params(data: object) -> dict[str, Scalar]:
    """Return the hyperparameters in data of the hparams plugin; none if these do not begin a session."""
    params: dict[str, Scalar] = {}
    with suppress(ValueError):
        begun = _message(data).get(3)
        for key, entry, _ in _fields(begun) if isinstance(begun, bytes) else ():
            if key == 1:
                pair = _message(entry)
                params[clean(_text(pair.get(1)))] = _param(_message(pair.get(2)))
    return params


def _param(value: dict[int, int | float | bytes]) -> Scalar:
    """Return a `google.protobuf.Value`: null, a number, a text or a bool. A number that is whole becomes an int."""
    number = value.get(2)
    if isinstance(number, float):
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    return clean(_text(value[3])) if 3 in value else bool(value[4]) if 4 in value else None

"""The framing of event files: what stands around each event, and the varints within it.

A TFRecord (tensorflow/core/lib/io/record_writer.h) is the length of the data as uint64, the masked CRC-32C of those
eight bytes, the data, and the masked CRC-32C of the data; all little-endian. The data are one `Event` message
(tensorboard/compat/proto/event.proto) in protocol buffers' wire format.
"""

from __future__ import annotations

import struct

from bridge.exporters.tensorboard.crc32c import masked_crc32c

__all__ = ["FOOTER", "HEADER", "frame", "header", "varint", "version_record"]

HEADER = 12
"""Bytes before the data of a record: its length and the checksum of that."""

FOOTER = 4
"""Bytes after the data: their checksum."""


def header(length: int) -> bytes:
    """What stands before `length` bytes of data."""
    packed = struct.pack("<Q", length)
    return packed + struct.pack("<I", masked_crc32c(packed))


def frame(data: bytes) -> bytes:
    """`data` as one record."""
    return b"".join((header(len(data)), data, struct.pack("<I", masked_crc32c(data))))


def varint(number: int) -> bytes:
    """`number` (0 to 2**64 - 1) in base 128, the lowest digit first, the high bit set on all but the last."""
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def version_record(time: float) -> bytes:
    """The record that every event file begins with: Event.wall_time (1) and Event.file_version (3)."""
    version = b"brain.Event:2"
    return frame(b"\x09" + struct.pack("<d", time) + b"\x1a" + varint(len(version)) + version)

"""Checksums: one long message, many at once, and what zero bytes do."""

from __future__ import annotations

import random

import numpy as np
import pytest

from bridge.exporters.tensorboard.crc32c import crc32c, masked_crc32c, register, shift, shift_each, table_at


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (b"", 0x00000000),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_published_checksums(data: bytes, checksum: int) -> None:
    """The checksums that RFC 3720 and the catalogue of CRCs publish."""
    assert crc32c(data) == checksum


@pytest.mark.parametrize("length", [1, 7, 1499, 1500, 1501, 4096, 100_003])
def test_long_messages_agree_with_the_plain_loop(length: int) -> None:
    """However many groups a message has, joining them gives what going byte by byte gives."""
    data = random.Random(length).randbytes(length)
    assert crc32c(data) == register(data, begin=0xFFFFFFFF) ^ 0xFFFFFFFF


def test_the_mask_is_tensorboards() -> None:
    """A masked checksum is the one that TensorBoard's reader expects."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c as theirs

    for data in (b"", b"a", bytes(100), random.Random(1).randbytes(3000)):
        assert masked_crc32c(data) == theirs(data)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 12, 1000, 123_457])
def test_zero_bytes_behind(count: int) -> None:
    """Shifting registers is what appending zero bytes does to them."""
    start = np.array([0, 1, 0xDEADBEEF, 0xFFFFFFFF], dtype=np.uint32)
    expected = [register(bytes(count), begin=int(number)) for number in start]
    assert shift(start, count).tolist() == expected
    assert shift_each(start, np.full(4, count)).tolist() == expected


def test_what_one_byte_adds() -> None:
    """A table's entry is the register of that byte with so many zeros behind it."""
    assert [int(table_at(5)[byte]) for byte in (0, 1, 255)] == [
        register(bytes([byte]) + bytes(5)) for byte in (0, 1, 255)
    ]

"""Checksums of messages, and of appended zeros."""

from __future__ import annotations

import random

import numpy as np
import pytest

from bridge.exporters.tensorboard.events import append_zeros, crc32c, masked_crc32c


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
    """Checksums equal those that RFC 3720 and the catalogue of CRCs publish."""
    assert crc32c(data) == checksum


def register(data: bytes, begin: int = 0) -> int:
    """Return the CRC register after `data`, bit by bit."""
    for byte in data:
        begin ^= byte
        for _ in range(8):
            begin = (begin >> 1) ^ (0x82F63B78 if begin & 1 else 0)
    return begin


@pytest.mark.parametrize("length", [1, 7, 1499, 1500, 1501, 4096, 100_003])
def test_long_messages_agree_with_the_definition(length: int) -> None:
    """Joining the groups of a message equals going bit by bit."""
    data = random.Random(length).randbytes(length)
    assert crc32c(data) == register(data, begin=0xFFFFFFFF) ^ 0xFFFFFFFF


def test_the_mask_is_tensorboards() -> None:
    """A masked checksum is the one that TensorBoard's reader expects."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c as theirs

    for data in (b"", b"a", bytes(100), random.Random(1).randbytes(3000)):
        assert masked_crc32c(data) == theirs(data)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 12, 1000])
def test_zero_bytes_behind(count: int) -> None:
    """Appending zeros to registers equals appending zero bytes to messages."""
    start = np.array([0, 1, 0xDEADBEEF, 0xFFFFFFFF], dtype=np.uint32)
    assert append_zeros(start, count).tolist() == [register(bytes(count), begin=int(number)) for number in start]

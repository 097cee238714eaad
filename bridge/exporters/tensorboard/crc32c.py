"""CRC-32C over numpy arrays: many equal-shaped messages at once, or one long one.

TensorBoard's files protect every record with CRC-32C (Castagnoli, RFC 3720 appendix B.4; the mask is that of
tensorflow/core/lib/hash/crc32c.h). The checksum is affine over GF(2): what one byte adds to the checksum of a
message depends on its value and on how many bytes follow it, and on nothing else. So the checksum of a message is
that of the same message with some bytes zeroed, XOR one table entry for each of those bytes.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BYTE_TABLE", "Words", "crc32c", "mask", "masked_crc32c", "register", "shift", "shift_each", "table_at"]

Words: TypeAlias = "NDArray[np.uint32]"

_POLYNOMIAL = 0x82F63B78
_MASK_DELTA = 0xA282EAD8
_SHORT = 1500
"""Up to this many bytes a plain loop is faster than numpy's calls."""

_GROUP = 8
"""Bytes whose checksum is taken by table look-up alone when one long message is done."""


def _byte_table() -> Words:
    table: Words = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ (np.uint32(_POLYNOMIAL) * (table & np.uint32(1)))
    return table


BYTE_TABLE = _byte_table()
"""(256,): what a byte adds to the register where no byte follows it."""

_PLAIN_TABLE: list[int] = BYTE_TABLE.tolist()


@cache
def _shift_tables(count: int) -> Words:
    """(4, 256): what each byte of a register becomes when `count` zero bytes follow, `count` >= 1."""
    if count == 1:
        values = np.arange(256, dtype=np.uint32)
        registers = np.stack([values << np.uint32(8 * place) for place in range(4)])
        return np.asarray(BYTE_TABLE[registers & 0xFF] ^ (registers >> 8))
    half = _shift_tables(count // 2)
    tables = _apply(half, half)
    return _apply(_shift_tables(1), tables) if count % 2 else tables


def _apply(tables: Words, registers: Words) -> Words:
    return np.asarray(
        tables[0][registers & 0xFF]
        ^ tables[1][(registers >> 8) & 0xFF]
        ^ tables[2][(registers >> 16) & 0xFF]
        ^ tables[3][registers >> 24]
    )


def shift(registers: Words, count: int) -> Words:
    """What `registers` (any shape) become when `count` zero bytes follow."""
    return registers if count == 0 else _apply(_shift_tables(count), registers)


def shift_each(registers: Words, counts: NDArray[np.int64]) -> Words:
    """As `shift`, with a count for each register: one step for each bit that any count has."""
    result = registers.copy()
    for bit in range(int(counts.max(initial=0)).bit_length()):
        chosen = (counts >> bit) & 1 == 1
        result[chosen] = _apply(_shift_tables(1 << bit), result[chosen])
    return result


@cache
def table_at(following: int) -> Words:
    """(256,): what a byte adds to the register where `following` bytes follow it."""
    return shift(BYTE_TABLE, following)


def crc32c(data: bytes | memoryview | NDArray[np.uint8]) -> int:
    """The CRC-32C of `data`, which may be long: groups of bytes by tables, then neighbours joined pair by pair."""
    message = data if isinstance(data, np.ndarray) else np.frombuffer(data, dtype=np.uint8)
    length = len(message)
    if length < _SHORT:
        return register(message.tobytes(), begin=0xFFFFFFFF) ^ 0xFFFFFFFF
    # Zero bytes in front of a zero register change nothing, so the message is filled up in front.
    padded = np.zeros(-(-max(length, 1) // _GROUP) * _GROUP, dtype=np.uint8)
    padded[len(padded) - length :] = message
    groups = padded.reshape(-1, _GROUP)
    registers = np.zeros(len(groups), dtype=np.uint32)
    for place in range(_GROUP):
        registers ^= table_at(_GROUP - 1 - place)[groups[:, place]]
    span = _GROUP
    while len(registers) > 1:
        if len(registers) % 2:
            registers = np.concatenate([np.zeros(1, dtype=np.uint32), registers])
        registers = shift(registers[0::2], span) ^ registers[1::2]
        span *= 2
    start = int(shift(np.array([0xFFFFFFFF], dtype=np.uint32), length)[0])
    return int(registers[0]) ^ start ^ 0xFFFFFFFF


def register(data: bytes, *, begin: int = 0) -> int:
    """The register after `data`, by a plain loop; the checksum begins with all ones and inverts the result."""
    result = begin
    for byte in data:
        result = _PLAIN_TABLE[(result ^ byte) & 0xFF] ^ (result >> 8)
    return result


def mask(checksums: Words) -> Words:
    """TensorFlow's mask, so that a checksum of data that hold checksums stays a good one."""
    return ((checksums >> np.uint32(15)) | (checksums << np.uint32(17))) + np.uint32(_MASK_DELTA)


def masked_crc32c(data: bytes | memoryview | NDArray[np.uint8]) -> int:
    """The masked CRC-32C of `data`, as it stands in a record."""
    return int(mask(np.array([crc32c(data)], dtype=np.uint32))[0])

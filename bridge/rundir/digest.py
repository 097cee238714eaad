"""A digest of rows that adds up: digest(0..m) = digest(0..n) + digest(n..m), whatever the layout of the file.

The digest of a row is a sum over its cells of a mix of the value's bits and the column's name, times an odd number of
the row, modulo 2^64. So the order of columns, empty columns and the way a number is written do not count. It finds
accidents, not forgers.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["bytes_digest", "cells_digest", "text_bits", "to_hex"]

Words: TypeAlias = "NDArray[np.uint64]"

MODULUS = 1 << 64
_GROUP = 1 << 15


def bytes_digest(data: bytes) -> str:
    """A digest of bytes as text."""
    return hashlib.blake2b(data, digest_size=10).hexdigest()


def to_hex(total: int) -> str:
    """A sum of digests as a cursor keeps it."""
    return f"{total % MODULUS:016x}"


def text_bits(text: str) -> int:
    """64 bits that stand for a text."""
    data = text.encode("utf-8", errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@lru_cache(maxsize=1 << 16)
def _column(name: str) -> tuple[int, int]:
    """What a column's name is mixed in with: one word to XOR, one odd word to multiply."""
    data = hashlib.blake2b(name.encode("utf-8", errors="surrogatepass"), digest_size=16).digest()
    return int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little") | 1


@lru_cache(maxsize=256)
def _columns(names: tuple[str, ...]) -> tuple[Words, Words]:
    both = np.array([_column(name) for name in names], dtype=np.uint64).reshape(-1, 2)
    return both[:, :1].copy(), both[:, 1:].copy()


def row_weights(rows: NDArray[np.int64]) -> Words:
    """An odd word for each row number."""
    word = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    word ^= word >> np.uint64(30)
    word *= np.uint64(0xBF58476D1CE4E5B9)
    word ^= word >> np.uint64(27)
    return word | np.uint64(1)


def cells_digest(names: Sequence[str], bits: Words, present: NDArray[np.bool_]) -> Words:
    """The digests (n,) of rows, without their weights; `bits` (k, n) are the cells' bits, counted where `present`."""
    total = np.zeros(bits.shape[1], dtype=np.uint64)
    marks, factors = _columns(tuple(names))
    # Groups of columns that stay in the cache; one at a time would cost calls, all at once memory traffic.
    group = max(1, _GROUP // max(1, bits.shape[1]))
    for first in range(0, len(bits), group):
        part = slice(first, first + group)
        mixed = bits[part] >> np.uint64(32)
        mixed ^= bits[part]
        mixed ^= marks[part]
        mixed *= factors[part]
        if not present[part].all():
            mixed *= present[part]
        total += mixed[0] if len(mixed) == 1 else mixed.sum(axis=0, dtype=np.uint64)
    return total

"""Sorting more records than fit into memory: sorted runs in a temporary file, merged by blocks of numpy columns.

Records are rows of int64 arrays (n, width); floats travel as their bits. The same code serves what fits, without a file.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["BUDGET", "Records", "Run", "Store", "merge", "sort_by"]

Records: TypeAlias = "NDArray[np.int64]"

BUDGET = 128 << 20
"""Bytes of records that are held in memory at most, about."""

_WAYS = 64
"""Runs that are merged at once: more would make the blocks small and the rounds many."""

_LEAST_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Segment:
    """Where records lie: `array`, or at byte `offset` of the store's file."""

    count: int
    width: int
    array: Records | None = None
    offset: int = 0


@dataclass(slots=True)
class Store:
    """Holds records: up to `budget` bytes in memory, the rest in a temporary file that vanishes with `close`."""

    budget: int
    used: int = 0
    _file: IO[bytes] | None = None
    _end: int = 0

    def write(self, records: Records) -> Segment:
        """Keep a copy of `records`."""
        count, width = records.shape
        if self.used + records.nbytes <= self.budget:
            self.used += records.nbytes
            return Segment(count, width, array=np.ascontiguousarray(records))
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="bridge-sort-")  # noqa: SIM115 - lives as long as the store
        self._file.seek(self._end)
        segment = Segment(count, width, offset=self._end)
        self._end += self._file.write(np.ascontiguousarray(records).data)
        return segment

    def read(self, segment: Segment, start: int, stop: int) -> Records:
        """The records of `segment` from `start` to `stop`."""
        if segment.array is not None:
            return segment.array[start:stop]
        assert self._file is not None
        self._file.seek(segment.offset + start * segment.width * 8)
        data = self._file.read((stop - start) * segment.width * 8)
        return np.frombuffer(data, dtype=np.int64).reshape(-1, segment.width)

    def close(self) -> None:
        """Let go of everything."""
        if self._file is not None:
            self._file.close()
            self._file = None


@dataclass(slots=True)
class Run:
    """Records in order, in segments one after another."""

    store: Store
    segments: list[Segment] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(segment.count for segment in self.segments)

    def append(self, records: Records) -> None:
        """Add records that follow those there are."""
        if len(records):
            self.segments.append(self.store.write(records))

    def blocks(self, size: int) -> Iterator[Records]:
        """All records, at most `size` at once."""
        for segment in self.segments:
            for start in range(0, segment.count, size):
                yield self.store.read(segment, start, min(segment.count, start + size))


def sort_by(records: Records, keys: Sequence[int]) -> Records:
    """`records` sorted by the columns `keys`, the first the most important."""
    return records[np.lexsort([records[:, key] for key in reversed(keys)])]


def merge(runs: Sequence[Run], keys: Sequence[int], *, budget: int) -> Iterator[Records]:
    """The records of sorted `runs` of one store, sorted by the columns `keys`, in pieces of about `budget` bytes at most.

    Records with equal keys come in one piece.
    """
    runs = [run for run in runs if run.segments]
    if not runs:
        return
    width = runs[0].segments[0].width
    if sum(map(len, runs)) * width * 8 > budget:
        while len(runs) > _WAYS:
            runs = [_merged(runs[first : first + _WAYS], keys, budget) for first in range(0, len(runs), _WAYS)]
    size = max(_LEAST_BLOCK, budget // (len(runs) * width * 8 * 2))
    heads = [_Head(run.blocks(size), keys) for run in runs]
    while heads:
        bounds = [head.last for head in heads if head.next is not None]
        if not bounds:
            yield _joined([head.block for head in heads], keys)
            return
        bound = min(bounds)
        yield _joined([head.take(bound) for head in heads], keys)
        heads = [head for head in heads if head.advance()]


def _merged(runs: Sequence[Run], keys: Sequence[int], budget: int) -> Run:
    merged = Run(runs[0].store)
    for records in merge(runs, keys, budget=budget):
        merged.append(records)
    return merged


def _joined(parts: Iterable[Records], keys: Sequence[int]) -> Records:
    filled = [part for part in parts if len(part)]
    return filled[0] if len(filled) == 1 else sort_by(np.concatenate(filled), keys)


class _Head:
    """The block of a run that is being merged, and the one after it (None: there is none)."""

    def __init__(self, blocks: Iterator[Records], keys: Sequence[int]) -> None:
        self._blocks = blocks
        self._keys = keys
        self.block = next(blocks)
        self.next = next(blocks, None)
        self._complete()

    @property
    def last(self) -> tuple[int, ...]:
        """The keys of the block's last record."""
        return tuple(int(self.block[-1, key]) for key in self._keys)

    def take(self, bound: tuple[int, ...]) -> Records:
        """The records up to `bound`, which leave the block."""
        count = self._up_to(self.block, bound)
        taken, self.block = self.block[:count], self.block[count:]
        return taken

    def _up_to(self, block: Records, bound: tuple[int, ...]) -> int:
        """How many records of `block` have keys up to `bound`."""
        low, high = 0, len(block)
        for key, value in zip(self._keys, bound, strict=True):
            column = block[low:high, key]
            first = low + int(np.searchsorted(column, value, side="left"))
            high = low + int(np.searchsorted(column, value, side="right"))
            low = first
        return high

    def advance(self) -> bool:
        """Load the next block where this one is used up; false where there is nothing left."""
        if len(self.block):
            return True
        if self.next is None:
            return False
        self.block, self.next = self.next, next(self._blocks, None)
        self._complete()
        return True

    def _complete(self) -> None:
        """Take what has the keys of the block's last record into the block."""
        while self.next is not None and all(self.next[0, key] == self.block[-1, key] for key in self._keys):
            following = self.next
            taken = self._up_to(following, self.last)
            self.block = np.concatenate([self.block, following[:taken]])
            self.next = following[taken:] if taken < len(following) else next(self._blocks, None)

"""Statistics of metrics: from summary.json if they cover all rows of metrics.csv, else computed from metrics.csv.

The original logger starts its summary anew with each session, says nothing of the rows it covers, and a first NaN
spoils min and max; a CSVLogger writes no summary at all. Computing reads all of metrics.csv, so the results are kept in
a file in the user's cache directory, by a digest of the content: a copied, moved or touched directory costs no second
computation.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from bridge.errors import RunDirectoryError, UsageError
from bridge.files import Refused, open_plain, own_file
from bridge.files import cache_dir as default_cache_dir
from bridge.registry.record import compute_statistics
from bridge.registry.store import NewerStoreError, Store
from bridge.rundir.run import read_run

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator

    from bridge.model import RunFile
    from bridge.registry.record import RunRecord

__all__ = ["with_statistics"]

Statistics: TypeAlias = dict[str, dict[str, Any]]


def with_statistics(records: Iterable[RunRecord], cache_dir: str | os.PathLike[str] | None = None) -> list[RunRecord]:
    """Return the records with statistics that cover all rows of their runs.

    A run whose metrics.csv cannot be read keeps what it has.
    """
    records = list(records)
    if all(record.covered for record in records):
        return records
    with _opened(cache_dir) as cache:
        return [record if record.covered else _completed(record, cache) for record in records]


def _completed(record: RunRecord, cache: _Cache) -> RunRecord:
    try:
        file = own_file(Path(record.run_dir), "metrics.csv")
        if file is None:
            return record
        content = cache.content(file)
        stats = cache.statistics(content)
        if stats is None:
            stats = compute_statistics(read_run(Path(record.run_dir)))
            cache.new_statistics.append((content, stats))
    except (OSError, Refused, RunDirectoryError):
        return record
    return record.with_statistics(stats)


class _Cache:
    """The file of statistics, and what is to be added to it. With `store` None nothing is found and nothing kept."""

    def __init__(self, store: Store | None) -> None:
        self._store = store
        self._new_contents: list[tuple[str, str, bytes]] = []
        self.new_statistics: list[tuple[bytes, Statistics]] = []

    def content(self, file: RunFile) -> bytes:
        """Return a digest of the content of `file`, which is read only if its size or mtime is new."""
        path, stamp = str(file.path), f"{file.size}.{file.mtime_ns}"
        with contextlib.suppress(sqlite3.Error):
            known = None if self._store is None else self._store.content_of(path, stamp)
            if known is not None:
                return known
        with open_plain(file.path) as stream:
            digest = hashlib.file_digest(stream, "sha256").digest()
        self._new_contents.append((path, stamp, digest))
        return digest

    def statistics(self, content: bytes) -> Statistics | None:
        """Return the statistics of a metrics.csv with this content; None if they are not known."""
        with contextlib.suppress(sqlite3.Error, msgspec.MsgspecError):
            return None if self._store is None else self._store.statistics(content)
        return None

    def save(self) -> None:
        """Add what is new to the file."""
        if self._store is not None and (self._new_contents or self.new_statistics):
            self._store.keep_statistics(self._new_contents, self.new_statistics)


@contextlib.contextmanager
def _opened(directory: str | os.PathLike[str] | None) -> Iterator[_Cache]:
    """Yield the cache, and save it at the end; without a usable file one that keeps nothing."""
    store = None
    with contextlib.suppress(sqlite3.Error, OSError, RuntimeError, NewerStoreError, UsageError):
        base = default_cache_dir() if directory is None else Path(directory)
        store, _ = Store.open(base / "statistics.sqlite", default_path=True)
    cache = _Cache(store)
    try:
        yield cache
    finally:
        with contextlib.suppress(sqlite3.Error):
            cache.save()
        if store is not None:
            store.close()

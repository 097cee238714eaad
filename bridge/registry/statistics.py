"""Statistics of metrics: from summary.json if they cover all rows of metrics.csv, else computed from metrics.csv.

The original logger starts its summary anew with each session, says nothing of the rows it covers, and a first NaN
spoils min and max; a CSVLogger writes no summary at all. Computing reads all of metrics.csv, so the results are kept in
a file in the user's cache directory until size or mtime of metrics.csv changes.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from bridge.errors import RunDirectoryError, UsageError
from bridge.files import Refused, own_file
from bridge.files import cache_dir as default_cache_dir
from bridge.registry.record import compute_statistics
from bridge.registry.store import NewerStoreError, Store
from bridge.rundir.run import read_run

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from bridge.registry.record import RunRecord


def with_statistics(records: Iterable[RunRecord], cache_dir: str | os.PathLike[str] | None = None) -> list[RunRecord]:
    """Return the records with statistics that cover all rows of their runs.

    A run whose metrics.csv cannot be read keeps what it has.
    """
    records = list(records)
    if all(record.covered for record in records):
        return records
    computed: list[tuple[str, str, dict[str, dict[str, Any]]]] = []
    with contextlib.closing(_opened(cache_dir)) as store:
        try:
            return [record if record.covered else _completed(record, store, computed) for record in records]
        finally:
            with contextlib.suppress(sqlite3.Error):
                store.keep_statistics(computed)


def _completed(
    record: RunRecord, store: Store, computed: list[tuple[str, str, dict[str, dict[str, Any]]]]
) -> RunRecord:
    """Return a record with all its statistics, and add those that `store` does not know to `computed`."""
    try:
        file = own_file(Path(record.run_dir), "metrics.csv")
        if file is None:
            return record
        path, stamp = str(file.path), f"{file.size}.{file.mtime_ns}"
        stats = None
        with contextlib.suppress(sqlite3.Error, msgspec.MsgspecError):
            stats = store.statistics(path, stamp)
        if stats is None:
            stats = compute_statistics(read_run(Path(record.run_dir)))
            computed.append((path, stamp, stats))
    except (OSError, Refused, RunDirectoryError):
        return record
    return record.with_statistics(stats)


def _opened(directory: str | os.PathLike[str] | None) -> Store:
    """Return the store in the cache directory; where no file can be used, an empty one."""
    with contextlib.suppress(sqlite3.Error, OSError, RuntimeError, NewerStoreError, UsageError):
        base = default_cache_dir() if directory is None else Path(directory)
        return Store.open(base / "statistics.sqlite", default_path=True)[0]
    return Store.in_memory()

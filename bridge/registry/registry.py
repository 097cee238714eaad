"""`open_registry`: the runs of a tree as records, found, chosen and sorted."""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bridge.errors import BridgeError, UsageError
from bridge.files import cache_dir as default_cache_dir
from bridge.registry.order import ordered
from bridge.registry.refs import named, status_of
from bridge.registry.scanner import scan as scan_into
from bridge.registry.store import NewerStoreError, Store, damaged
from bridge.registry.where import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import pandas as pd

    from bridge.model import Scalar
    from bridge.registry.record import RunRecord
    from bridge.registry.scanner import ScanReport

__all__ = ["Registry", "open_registry"]

T = TypeVar("T")


class Registry:
    """The records of all runs below a root as of its last scan, in the order of their start.

    `report` is what the scan counted, None if none was made. Runs whose directory is gone are in `orphans` only.
    """

    def __init__(self, records: Sequence[RunRecord], *, root: Path, report: ScanReport | None = None) -> None:
        self.root = root
        self.report = report
        self._records = tuple(record for record in records if not record.orphaned)
        self.orphans = tuple(record for record in records if record.orphaned)
        # Of several directories with one run id the one that started last is meant.
        self._by_id = {record.run_id: record for record in self._records}

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[RunRecord]:
        return iter(self._records)

    def __contains__(self, run_id: object) -> bool:
        return run_id in self._by_id

    def __getitem__(self, run_id: str) -> RunRecord:
        return self._by_id[run_id]

    def get(self, run_id: str) -> RunRecord | None:
        """The run of this id, of several the one that started last; None where there is none."""
        return self._by_id.get(run_id)

    def query(
        self,
        *,
        tag: str | Sequence[str] | None = None,
        status: str | Sequence[str] | None = None,
        alive: bool | None = None,
        hparams: Mapping[str, Scalar] | None = None,
        where: str | None = None,
        sort_by: str | None = None,
        descending: bool = False,
        limit: int | None = None,
    ) -> list[RunRecord]:
        """The runs for which all holds that is given: every tag, one of the statuses, equal hyperparameters, `where`.

        `sort_by` is a field, `hparams.KEY`, `summary.METRIC` (the last value), `max.METRIC` or `min.METRIC`; what
        follows the first dot is the whole name, whatever signs it has. Runs without a value come last. Raises
        UsageError for a field, a status, a condition or a limit that is none.
        """
        if limit is not None and limit < 0:
            raise UsageError(f"limit is the most runs that are wanted, so {limit} is none.")
        tags, statuses = _several(tag), [status_of(word) for word in _several(status)]
        condition = None if where is None else parse(where)
        found = [
            record
            for record in self._records
            if all(name in record.tags for name in tags)
            and (status is None or record.status in statuses)
            and (alive is None or record.alive == alive)
            and all(record.hparams.get(key, ...) == value for key, value in (hparams or {}).items())
            and (condition is None or condition.holds(record))
        ]
        if sort_by is not None:
            found = ordered(found, named(sort_by), descending=descending)
        elif descending:
            found.reverse()
        return found[:limit]

    def to_dataframe(self, records: Sequence[RunRecord] | None = None) -> pd.DataFrame:
        """A pandas table, one line a run: its fields, `hparams.*`, `summary.*`, `max.*`, `min.*`; times with their zone.

        `records` are all runs unless given. Raises BridgeError where pandas is not installed.
        """
        from bridge.registry.table import columns, time_columns

        try:
            import pandas as pd
        except ImportError as error:
            raise BridgeError(
                "to_dataframe needs pandas, which is not installed.", hint="pip install pandas"
            ) from error
        frame = pd.DataFrame(columns(self._records if records is None else records))
        for name in time_columns:
            if name in frame:
                frame[name] = pd.to_datetime(frame[name], utc=True, format="ISO8601", errors="coerce")
        return frame


def open_registry(
    root: str | os.PathLike[str],
    *,
    db_path: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    scan: bool = True,
    scan_ttl_s: float = 0.0,
    full: bool = False,
    heartbeat_timeout: float = 180.0,
    say: Callable[[str], None] | None = None,
) -> Registry:
    """The runs at and below `root`, read through the SQLite cache and scanned first where that is due.

    The cache is the file `db_path`, else one for this root's real path in `cache_dir`, else in the user's cache
    directory; a root that is itself a run directory needs none. `scan=False` takes what the cache holds, a positive
    `scan_ttl_s` skips a scan that is younger; `full` reads everything again. A cache that is damaged or of an older
    format is rebuilt; one that cannot be used is done without, in memory. Both are said once, through `say`
    (default: a warning of the logger `bridge.registry`). Raises UsageError where `root` is no directory.
    """
    real = os.path.realpath(root)
    if not os.path.isdir(real):  # noqa: PTH112
        raise UsageError(f"{os.fspath(root)} is no directory.")
    say = say or logging.getLogger("bridge.registry").warning
    work = partial(_load, real, scan=scan, ttl=scan_ttl_s, full=full, heartbeat_timeout=heartbeat_timeout)
    if db_path is None and _is_run(real):
        return work(Store.in_memory())
    try:
        path = Path(db_path) if db_path is not None else _place(real, cache_dir)
        return _with_file(path, work, say, own_place=db_path is None)
    except (sqlite3.Error, OSError, RuntimeError, NewerStoreError) as error:
        say(f"The cache of runs cannot be used, so this goes on in memory: {error}")
    return work(Store.in_memory())


def _with_file(path: Path, work: Callable[[Store], T], say: Callable[[str], None], *, own_place: bool) -> T:
    """`work` on the store in `path`, and once more on a new one if its content proves to be broken."""
    store, told = Store.open(path, own_place=own_place)
    if told:
        say(told)
    try:
        return work(store)
    except sqlite3.DatabaseError as error:
        if not damaged(error):
            raise
    finally:
        store.close()
    say(f"The cache of runs {path} was damaged; it is rebuilt.")
    store = Store.rebuilt(path)
    try:
        return work(store)
    finally:
        store.close()


def _load(root: str, store: Store, *, scan: bool, ttl: float, full: bool, heartbeat_timeout: float) -> Registry:
    report = None
    scanned_at = store.scanned_at(root)
    if scanned_at is None or (scan and not 0 <= time.time() - scanned_at < ttl):
        from bridge.rundir.discover import walk
        from bridge.rundir.run import read_run
        from bridge.rundir.times import Clock

        read = partial(read_run, clock=Clock(_clock_dir()), heartbeat_timeout=heartbeat_timeout)
        report = scan_into(root, store, full=full, heartbeat_timeout=heartbeat_timeout, walk=walk, read=read)
    return Registry(store.records(root), root=Path(root), report=report)


def _clock_dir() -> Path | None:
    """Where a file may be written to learn the file server's time; None where there is no home."""
    try:
        return default_cache_dir()
    except RuntimeError:
        return None


def _place(root: str, directory: str | os.PathLike[str] | None) -> Path:
    """The cache's file for a root: named for it as far as that is readable, and by a digest of its real path."""
    base = default_cache_dir() / "registry" if directory is None else Path(directory)
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    return base / f"runs-{digest}.sqlite"


def _is_run(path: str) -> bool:
    return any(os.path.isfile(f"{path}/{name}") for name in ("sidecar.json", "metrics.csv"))  # noqa: PTH113


def _several(value: str | Sequence[str] | None) -> Sequence[str]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)

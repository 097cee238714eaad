"""The SQLite cache of records, and the scan that fills it.

The cache is derived from the run directories, so a damaged or old one is simply rebuilt. It never uses WAL: homes are
often on NFS, where WAL does not work. A scan writes in one transaction.

A scan reads a run directory again only if its stamp differs (inode, size and mtime of the files that its record is made
of), or if a sign of life may have changed the status that is shown.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias, TypeVar

import msgspec

from bridge import rundir
from bridge.errors import RunDirectoryError, UsageError
from bridge.files import Refused, cache_dir, own_file
from bridge.model import SkippedFolder, Status
from bridge.registry.record import RunRecord, read_ended
from bridge.rundir.discover import OWN_FOLDERS, checkpoint_folders, has_folders, lstat, runs_within, walk
from bridge.rundir.event_runs import event_names, is_event_file
from bridge.rundir.run import read_run
from bridge.secrets import hide_all, hide_in
from logger.sidecar import TERMINAL_STATUSES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from bridge.rundir.discover import RunListing

log = logging.getLogger(__name__)

FORMAT = 7
"""The format number of the cache. One of another format is rebuilt."""

LOCK_TIMEOUT_S = 5.0
"""Seconds to wait for another process's transaction, which takes far less."""

_APPLICATION_ID = 0x62726467  # "brdg": PRAGMA application_id, which marks a file as ours

# Paths are BLOBs, since they need not be UTF-8. The columns beside the record are those that a scan compares.
_TABLES = (
    "CREATE TABLE runs (root BLOB, run_dir BLOB, stamp TEXT, status TEXT, ended INTEGER, last_alive REAL, start REAL,"
    " listing BLOB, record BLOB, PRIMARY KEY (root, run_dir))",
    # Statistics computed from a metrics.csv.
    "CREATE TABLE statistics (path BLOB PRIMARY KEY, stamp TEXT, stats BLOB)",
    "CREATE TABLE scans (root BLOB PRIMARY KEY, scanned_at REAL NOT NULL)",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {FORMAT}",
)

T = TypeVar("T")
One = TypeVar("One")

Row: TypeAlias = "tuple[Any, ...]"
"""The values of one row of `runs`."""

Stats: TypeAlias = "dict[str, os.stat_result | None]"
"""What lstat says of files, by name."""


class CachedRun(NamedTuple):
    """What the cache knows of a run directory, as far as a scan compares it."""

    run_dir: bytes
    stamp: str
    status: str
    ended: int
    last_alive: float
    listing: bytes


class Store:
    """An open cache, as a context manager that closes it. Every method may raise sqlite3.Error."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Return the store in the file `path`, which is made if needed; `:memory:` lives as long as the process.

        Raises sqlite3.Error if the file cannot be used, which is exactly sqlite3.DatabaseError if it is damaged or of
        another format.
        """
        connection = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
        try:
            # A power cut may cost the cache, which can be rebuilt; waiting for the disk would slow down every scan.
            connection.execute("PRAGMA synchronous = OFF")
            # Of a new file; a record takes a kilobyte, and four fill a usual page.
            connection.execute("PRAGMA page_size = 16384")
            if _version(connection) != FORMAT:
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
                    version = _version(connection)  # again, since another process may have made the tables meanwhile
                    if version not in (0, FORMAT):
                        raise sqlite3.DatabaseError("it has another format")
                    for statement in _TABLES if version == 0 else ():
                        connection.execute(statement)
        except BaseException:
            connection.close()
            raise
        return cls(connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._connection.close()

    def scanned_at(self, root: str) -> float | None:
        """Return the time of the last scan of `root` in seconds since the epoch; None if there was none."""
        row = self._connection.execute("SELECT scanned_at FROM scans WHERE root = ?", (os.fsencode(root),)).fetchone()
        return None if row is None else float(row[0])

    def known(self, root: str) -> dict[str, CachedRun]:
        """Return what is known of the runs below `root`, by run directory."""
        rows = self._connection.execute(
            "SELECT run_dir, stamp, status, ended, last_alive, listing FROM runs WHERE root = ?", (os.fsencode(root),)
        )
        return {os.fsdecode(row[0]): CachedRun._make(row) for row in rows}

    def records(self, root: str) -> list[RunRecord]:
        """Return the records of all runs below `root` in the order of their start.

        Raises msgspec.MsgspecError if one is damaged.
        """
        rows = self._connection.execute(
            "SELECT run_dir, record FROM runs WHERE root = ? ORDER BY start, run_dir", (os.fsencode(root),)
        )
        return [RunRecord.decoded(record, os.fsdecode(path)) for path, record in rows]

    def save(self, root: str, *, rows: Iterable[Row], relisted: Iterable[RunListing], gone: Iterable[str]) -> None:
        """Store the result of one scan in one transaction; `relisted` are known runs with another fingerprint."""
        key = os.fsencode(root)
        with self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            connection.executemany(
                "UPDATE runs SET listing = ? WHERE root = ? AND run_dir = ?",
                [(_encoded_listing(folder), key, os.fsencode(folder.path)) for folder in relisted],
            )
            connection.executemany(
                "DELETE FROM runs WHERE root = ? AND run_dir = ?", [(key, os.fsencode(path)) for path in gone]
            )
            connection.execute("INSERT OR REPLACE INTO scans VALUES (?, ?)", (key, time.time()))

    def statistics(self, path: str, stamp: str) -> dict[str, dict[str, Any]] | None:
        """Return the statistics of a metrics.csv as it was at this stamp; None if they are not known."""
        row = self._connection.execute(
            "SELECT stats FROM statistics WHERE path = ? AND stamp = ?", (os.fsencode(path), stamp)
        ).fetchone()
        return None if row is None else msgspec.msgpack.decode(row[0], type=dict[str, dict[str, Any]])

    def keep_statistics(self, found: Iterable[tuple[str, str, dict[str, dict[str, Any]]]]) -> None:
        """Store (path, stamp, statistics) of files."""
        rows = [(os.fsencode(path), stamp, msgspec.msgpack.encode(stats)) for path, stamp, stats in found]
        with self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT OR REPLACE INTO statistics VALUES (?, ?, ?)", rows)


def with_store(path: Callable[[], Path], use: Callable[[Store], T], say: Callable[[str], None]) -> T:
    """Return `use(store)` for the cache at `path()`, a rebuilt one if it is damaged, one in memory if none can be used.

    `say` gets a message then. `use` may be called twice.
    """
    try:
        file = path()
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with Store.open(file) as store:
                return use(store)
        except (sqlite3.DatabaseError, msgspec.MsgspecError) as error:
            # SQLite's subclasses of DatabaseError mean that the file is locked, out of reach or full.
            if isinstance(error, sqlite3.DatabaseError) and type(error) is not sqlite3.DatabaseError:
                raise
            say(f"The cache of runs {file} was damaged or of another format; it is rebuilt.")
        for name in (file, file.with_name(f"{file.name}-journal")):
            name.unlink(missing_ok=True)
        with Store.open(file) as store:
            return use(store)
    except (sqlite3.Error, OSError, RuntimeError) as error:
        say(f"The cache of runs cannot be used, so the runs are kept in memory: {error}")
    with Store.open(":memory:") as store:
        return use(store)


def refuse_foreign(path: Path) -> None:
    """Raise UsageError if `path` is something else than a cache of runs, before SQLite turns it into a database."""
    try:
        # Look before opening: a pipe would block, and a device must not be replaced.
        if stat.S_ISREG(path.stat().st_mode):
            with path.open("rb") as file:
                head = file.read(100)
            # Bytes 68 to 71 of a SQLite file hold its application id.
            is_database = head.startswith(b"SQLite format 3\x00")
            if not head or (is_database and head[68:72] == _APPLICATION_ID.to_bytes(4, "big")):
                return
    except FileNotFoundError:  # also where another scan replaces it at this moment
        return
    raise UsageError(
        f"{path} is not a cache of runs, so it was not changed.",
        hint="Give --db a file that does not exist yet, or move this one away.",
    )


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def with_statistics(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Return the records with statistics that cover all rows of their runs.

    Where summary.json does not cover all rows of metrics.csv, they are computed from that and kept
    in the user's cache directory until its size or mtime changes. (The original logger starts its summary anew with
    each session, and a CSVLogger writes none.) A run whose metrics.csv cannot be read keeps what it has.
    """
    records = list(records)
    if all(record.covered for record in records):
        return records

    def complete(store: Store) -> list[RunRecord]:
        computed: list[tuple[str, str, dict[str, dict[str, Any]]]] = []
        try:
            return [record if record.covered else _completed(record, store, computed) for record in records]
        finally:
            with contextlib.suppress(sqlite3.OperationalError):
                store.keep_statistics(computed)

    return with_store(lambda: cache_dir() / "statistics.sqlite", complete, lambda message: None)


def _completed(
    record: RunRecord, store: Store, computed: list[tuple[str, str, dict[str, dict[str, Any]]]]
) -> RunRecord:
    """Return a record with all its statistics, and add those that `store` does not know to `computed`."""
    try:
        file = own_file(Path(record.run_dir), "metrics.csv")
        if file is None:
            return record
        path, stamp = str(file.path), f"{file.size}.{file.mtime_ns}"
        stats = store.statistics(path, stamp)
        if stats is None:
            stats = rundir.read_summary(read_run(Path(record.run_dir)))
            computed.append((path, stamp, stats))
    except (OSError, Refused, RunDirectoryError):
        return record
    return record.with_statistics(stats)


# ---------------------------------------------------------------------------------------------------------------------
# The scan
# ---------------------------------------------------------------------------------------------------------------------

_SIGNS_OF_LIFE = ("heartbeat", "metrics.csv")
_CLOCK_TOLERANCE_S = 120.0
"""Seconds by which the clocks of this machine and of the file server may differ."""

_SAMPLE = 16
_SLOW_S = 0.003
"""Seconds that a look at one run takes on average where a file system is slow; a local one takes less than a tenth."""
_AT_ONCE = 16

_computing = threading.Lock()
"""Held while all rows of a metrics.csv are read, which may take much memory."""


class ScanReport(msgspec.Struct, frozen=True, kw_only=True):
    """The counts of a scan: `total` = `upserted` (read again) + `unchanged` + `invalid` (cannot be read).

    `orphaned` counts the runs that the scan before found and this one does not; the cache forgets them.
    `problems` are pairs (run directory, reason), one for each invalid run; `skipped` are folders that look like a run
    directory and are none.
    """

    root: str
    total: int
    upserted: int
    unchanged: int
    invalid: int
    orphaned: int
    seconds: float
    problems: tuple[tuple[str, str], ...] = ()
    skipped: tuple[SkippedFolder, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        problems = [{"run_dir": path, "reason": reason} for path, reason in self.problems]
        return {**msgspec.to_builtins(self), "problems": problems}


def scan(
    root: str,
    store: Store,
    *,
    full: bool = False,
    heartbeat_timeout: float = 180.0,
) -> ScanReport:
    """Bring `store` up to date with the run directories at and below the real path `root`.

    With `full`, read all of them again. A run that cannot be read keeps its last record.
    """
    began = time.perf_counter()
    known = store.known(root)
    doubtful_since = time.time() - heartbeat_timeout - _CLOCK_TOLERANCE_S
    skipped: list[SkippedFolder] = []
    problems: list[tuple[str, str]] = []
    rows: list[Row] = []
    unchanged: set[str] = set()

    def stamped(run_dir: str, names: Sequence[str]) -> tuple[str, Stats] | None:
        """Return the stamp of a run and what lstat says of its files; None for a run that is now `unchanged`."""
        before = None if full else known.get(run_dir)
        stats = {name: lstat(f"{run_dir}/{name}") for name in _stamped_names(run_dir, names)}
        stamp = _stamp(run_dir, stats)
        if before is not None and _has_stamp(run_dir, before, stamp):
            signs = _SIGNS_OF_LIFE if "sidecar.json" in names else ()  # without a sidecar the stamp holds them
            if not _may_have_moved(run_dir, before, doubtful_since, signs):
                unchanged.add(run_dir)
                return None
        return stamp, stats

    def is_unchanged(run_dir: str, names: Sequence[str]) -> bool:
        return run_dir in known and stamped(run_dir, names) is None

    def look(folder: RunListing) -> None:
        """Add the row of a run that is new or changed, or why it cannot be read, and the runs within it."""
        run_dir, names, _ = folder
        found = None if run_dir in unchanged else stamped(run_dir, names)
        if found is None:
            return
        stamp, stats = found
        sidecar, summary = stats.get("sidecar.json"), stats.get("summary.json")
        # Most checkpoints hold no folders, and were looked at for the stamp.
        own = [name for name in OWN_FOLDERS if name in names and (name not in stats or has_folders(stats[name]))]
        within = runs_within(run_dir, own)
        skipped.extend(within)
        try:
            record = None if sidecar is None else read_ended(run_dir, sidecar, summary)
            if record is None:
                stamp += _hparams_mark(run_dir)
                run = read_run(Path(run_dir), heartbeat_timeout=heartbeat_timeout)
                record = RunRecord.of(run)
                if sidecar is None and not record.covered:  # nothing else knows even the last values
                    with _computing:
                        record = record.with_statistics(rundir.read_summary(run))
            rows.append(_row(root, "" if within else stamp, folder, record))  # those within are named by every scan
        except RunDirectoryError as error:
            problems.append((run_dir, error.message))
        except Exception as error:  # whatever goes wrong with one run, the others are found all the same
            log.debug("run %s cannot be read", run_dir, exc_info=hide_in(error))
            problems.append((run_dir, hide_all(f"{type(error).__name__}: {error}")))

    listings = {} if full else {path: os.fsdecode(run.listing).split("/") for path, run in known.items()}
    runs = list(walk([root], skipped, is_unchanged, listings))
    look_at_each(look, runs)
    gone = known.keys() - {run.path for run in runs}
    relisted = [run for run in runs if run.path in listings and listings[run.path][0] != run.fingerprint]
    store.save(root, rows=rows, relisted=relisted, gone=gone)
    return ScanReport(
        root=root,
        total=len(runs),
        upserted=len(rows),
        unchanged=len(runs) - len(rows) - len(problems),
        invalid=len(problems),
        orphaned=len(gone),
        seconds=time.perf_counter() - began,
        problems=tuple(sorted(problems)),  # threads find them in any order
        skipped=tuple(sorted(skipped, key=lambda folder: folder.path)),
    )


def look_at_each(look: Callable[[One], T], runs: Sequence[One]) -> list[T]:
    """Return what `look` finds for each of `runs`, several at once if the first show that the file system is slow."""
    began = time.perf_counter()
    looks = [look(run) for run in runs[:_SAMPLE]]
    is_slow = time.perf_counter() - began > _SLOW_S * len(looks)
    # Threads wait for a server at once; on a local disk they would only slow each other down.
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return [*looks, *(pool.map if is_slow else map)(look, runs[_SAMPLE:])]


def _row(root: str, stamp: str, folder: RunListing, record: RunRecord) -> Row:
    ended = record.status_word in TERMINAL_STATUSES
    state = (stamp, record.status, ended, record.last_alive, record.start)
    return (os.fsencode(root), os.fsencode(record.run_dir), *state, _encoded_listing(folder), record.encoded())


def _encoded_listing(folder: RunListing) -> bytes:
    """Return what the next walk needs in order not to list a folder again; no name holds a slash."""
    return os.fsencode("/".join((folder.fingerprint, *folder.names))) if folder.fingerprint else b""


def _stamped_names(run_dir: str, names: Sequence[str]) -> list[str]:
    """Return the names of the files of which a stamp is made."""
    if "sidecar.json" in names:
        stamped = ["sidecar.json", "summary.json"]
    elif "metrics.csv" in names:  # also of a run whose sidecar was lost
        stamped = ["metrics.csv", "summary.json", "heartbeat"]
    else:
        stamped = sorted(filter(is_event_file, names)) or sorted(event_names(run_dir))
    return [*stamped, "checkpoints"] if "checkpoints" in names else stamped


def _stamp(run_dir: str, stats: Stats) -> str:
    """Return a text that changes if any file that the record is made of is replaced or grows."""
    sidecar, checkpoints = stats.get("sidecar.json"), stats.get("checkpoints")
    parts = list(map(_mark, stats.values()))
    if sidecar is not None and stat.S_ISLNK(sidecar.st_mode):
        with contextlib.suppress(OSError):
            parts.append(_mark(os.stat(f"{run_dir}/sidecar.json")))  # noqa: PTH116 - a Path costs more than the call
    if has_folders(checkpoints):
        parts += [_mark(lstat(folder)) for folder in checkpoint_folders(run_dir)]
    return "|".join(parts)


def _hparams_mark(run_dir: str) -> str:
    """Return the part of a stamp that `read_ended` does not need: hparams.yaml counts if a sidecar has no hparams."""
    return f"|{_mark(lstat(f'{run_dir}/hparams.yaml'))}"


def _has_stamp(run_dir: str, before: CachedRun, stamp: str) -> bool:
    return before.stamp == stamp or (
        before.stamp.startswith(f"{stamp}|") and before.stamp == stamp + _hparams_mark(run_dir)
    )


def _mark(found: os.stat_result | None) -> str:
    return f"{found.st_ino}.{found.st_size}.{found.st_mtime_ns}" if found else ""


def _may_have_moved(run_dir: str, before: CachedRun, doubtful_since: float, names: Sequence[str]) -> bool:
    """Return whether a sign of life, or its absence, may change the status though no sidecar was written."""
    if before.ended:
        return False
    if before.status == Status.RUNNING or before.last_alive >= doubtful_since:
        return True
    signs = (lstat(f"{run_dir}/{name}") for name in names)
    # The time in a heartbeat is a moment older than the file. A run that goes on is at least a timeout younger.
    return any(sign is not None and sign.st_mtime > before.last_alive + _CLOCK_TOLERANCE_S for sign in signs)

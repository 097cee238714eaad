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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias, TypeVar

import msgspec

from bridge.errors import RunDirectoryError, UsageError
from bridge.model import Status
from bridge.registry.record import RunRecord, compute_statistics, read_ended
from bridge.rundir.discover import checkpoint_folders, has_folders, lstat, runs_within, walk
from bridge.rundir.event_runs import event_names
from bridge.secrets import hide_all, hide_in
from logger.sidecar import TERMINAL_STATUSES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from bridge.model import Run
    from bridge.rundir.discover import Skipped

log = logging.getLogger(__name__)

FORMAT = 3
"""The format number of the cache. An older one is rebuilt, a newer one left alone."""

LOCK_TIMEOUT_S = 5.0
"""Seconds to wait for another process's transaction, which takes far less."""

_MAGIC = b"SQLite format 3\x00"
_APPLICATION_ID = 0x62726467  # "brdg": PRAGMA application_id, which marks a file as ours
_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

# Paths are BLOBs, since they need not be UTF-8. The columns beside the record are those that a scan compares.
_TABLES = (
    "CREATE TABLE runs (root BLOB, run_dir BLOB, stamp TEXT, status TEXT, ended INTEGER, last_alive REAL, start REAL,"
    " orphaned INTEGER, record BLOB, PRIMARY KEY (root, run_dir))",
    # Statistics computed from a metrics.csv.
    "CREATE TABLE statistics (path BLOB PRIMARY KEY, stamp TEXT, stats BLOB)",
    "CREATE TABLE scans (root BLOB PRIMARY KEY, scanned_at REAL NOT NULL)",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {FORMAT}",
)

T = TypeVar("T")

Row: TypeAlias = "tuple[Any, ...]"
"""The values of one row of `runs`."""


_decoder = msgspec.msgpack.Decoder(RunRecord)


class _DamagedRowError(sqlite3.DatabaseError):
    """A row holds something that no version of this program writes."""


class NewerStoreError(Exception):
    """The cache was made by a newer bridge, and was not changed."""


class CachedRun(NamedTuple):
    """What the cache knows of a run directory, as far as a scan compares it."""

    stamp: str
    status: str
    ended: int
    last_alive: float
    orphaned: int


class Store:
    """An open cache. Every method may raise sqlite3.Error; `is_damage` tells which of them call for a rebuild."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    def in_memory(cls) -> Self:
        """Return an empty store that lives as long as the process."""
        connection = sqlite3.connect(":memory:", isolation_level=None)
        with _transaction(connection):
            _create_tables(connection)
        return cls(connection)

    @classmethod
    def open(cls, path: Path, *, default_path: bool = False) -> tuple[Self, str]:
        """Return the store in the file `path`, and a message for the user ("" for none).

        Rebuild a file that is damaged or of an older format. With `default_path`, where only we have files, rebuild one
        that is no database too. Raises UsageError for a file that is not ours, which stays as it is whatever its name;
        NewerStoreError for a newer format; sqlite3.Error and OSError if it cannot be opened or made.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        if _is_foreign(path, default_path=default_path):
            raise UsageError(
                f"{path} is not a cache of runs, so it was not changed.",
                hint="Give --db a file that does not exist yet, or move this one away.",
            )
        connection = _connect(path)
        try:
            return cls(connection), _prepare(connection, path)
        except BaseException as error:
            connection.close()
            if not (isinstance(error, sqlite3.Error) and is_damage(error)):
                raise
        return cls.rebuilt(path), f"The cache of runs {path} was damaged; it is rebuilt."

    @classmethod
    def rebuilt(cls, path: Path) -> Self:
        """Replace the file `path` by an empty store and return it."""
        for name in (path, path.with_name(path.name + "-journal")):
            name.unlink(missing_ok=True)
        connection = _connect(path)
        _prepare(connection, path)
        return cls(connection)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def scanned_at(self, root: str) -> float | None:
        """Return the time of the last scan of `root` in seconds since the epoch; None if there was none."""
        row = self._connection.execute("SELECT scanned_at FROM scans WHERE root = ?", (os.fsencode(root),)).fetchone()
        return None if row is None else float(row[0])

    def known(self, root: str) -> dict[str, CachedRun]:
        """Return what is known of the runs below `root`, by run directory."""
        rows = self._connection.execute(
            "SELECT run_dir, stamp, status, ended, last_alive, orphaned FROM runs WHERE root = ?",
            (os.fsencode(root),),
        )
        with _damage_errors():
            return {os.fsdecode(path): CachedRun(*columns) for path, *columns in rows}

    def records(self, root: str) -> list[RunRecord]:
        """Return the records of all runs below `root`, orphans too, in the order of their start."""
        rows = self._connection.execute(
            "SELECT run_dir, record, orphaned FROM runs WHERE root = ? ORDER BY start, run_dir", (os.fsencode(root),)
        )
        with _damage_errors():
            return [
                msgspec.structs.replace(_decoder.decode(record), run_dir=os.fsdecode(path), orphaned=bool(orphaned))
                for path, record, orphaned in rows
            ]

    def save(
        self,
        root: str,
        *,
        rows: Iterable[Row] = (),
        orphans: Sequence[str] = (),
        found_again: Sequence[str] = (),
        full: bool = False,
        now: float | None = None,
    ) -> None:
        """Store the result of one scan in one transaction; with `full`, forget everything that was known before."""
        key = os.fsencode(root)
        with _transaction(self._connection) as connection:
            if full:
                connection.execute("DELETE FROM runs WHERE root = ?", (key,))
            connection.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            for orphaned, paths in ((1, orphans), (0, found_again)):
                connection.executemany(
                    "UPDATE runs SET orphaned = ? WHERE root = ? AND run_dir = ?",
                    [(orphaned, key, os.fsencode(path)) for path in paths],
                )
            scanned = (key, time.time() if now is None else now)
            connection.execute("INSERT OR REPLACE INTO scans VALUES (?, ?)", scanned)

    def statistics(self, path: str, stamp: str) -> dict[str, dict[str, Any]] | None:
        """Return the statistics of a metrics.csv as it was at this stamp; None if they are not known."""
        row = self._connection.execute(
            "SELECT stats FROM statistics WHERE path = ? AND stamp = ?", (os.fsencode(path), stamp)
        ).fetchone()
        return None if row is None else msgspec.msgpack.decode(row[0], type=dict[str, dict[str, Any]])

    def keep_statistics(self, found: Iterable[tuple[str, str, dict[str, dict[str, Any]]]]) -> None:
        """Store (path, stamp, statistics) of files."""
        rows = [(os.fsencode(path), stamp, msgspec.msgpack.encode(stats)) for path, stamp, stats in found]
        with _transaction(self._connection) as connection:
            connection.executemany("INSERT OR REPLACE INTO statistics VALUES (?, ?, ?)", rows)


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether the error means that the file's content is broken, and not that it is locked or out of reach."""
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, _DamagedRowError) or (code is not None and code & 0xFF in _CORRUPT)


@contextlib.contextmanager
def _damage_errors() -> Iterator[None]:
    """Turn the errors that a foreign row causes into one that means damage."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _DamagedRowError(f"a row of the cache cannot be read ({error})") from error


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None)


def _is_foreign(path: Path, *, default_path: bool) -> bool:
    """Return whether the file is something else than a cache, before SQLite turns it into a database."""
    try:
        # Look before opening: a pipe would block, and a device must not be replaced.
        if not stat.S_ISREG(path.stat().st_mode):
            return True
        with path.open("rb") as file:
            head = file.read(100)
    except FileNotFoundError:
        return False
    if not head.startswith(_MAGIC):
        return bool(head) and not default_path
    # Bytes 68 to 71 of a SQLite file hold its application id.
    return head[68:72] != _APPLICATION_ID.to_bytes(4, "big")


def _prepare(connection: sqlite3.Connection, path: Path) -> str:
    """Make the tables if they are missing or of an older format. Return a message for the user ("" for none)."""
    # A power cut may cost the cache, which can be rebuilt; waiting for the disk would slow down every scan.
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute(
        "PRAGMA page_size = 16384"
    )  # of a new file; a record takes a kilobyte, and four fill a usual page
    if _version(connection) == FORMAT:
        return ""
    with _transaction(connection):
        version = _version(connection)  # again, since another process may have made the tables meanwhile
        if version > FORMAT:
            raise NewerStoreError(f"The cache of runs {path} was made by a newer bridge, and was not changed.")
        if version == FORMAT:
            return ""
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for name in tables:
            quoted = name.replace('"', '""')
            connection.execute(f'DROP TABLE "{quoted}"')
        _create_tables(connection)
    return f"The cache of runs {path} has an older format; it is rebuilt." if tables else ""


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        # After some errors, such as a full disk, SQLite has rolled back already.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _create_tables(connection: sqlite3.Connection) -> None:
    for statement in _TABLES:
        connection.execute(statement)


# ---------------------------------------------------------------------------------------------------------------------
# The scan
# ---------------------------------------------------------------------------------------------------------------------

_SIGNS_OF_LIFE = ("heartbeat", "metrics.csv")
_CLOCK_TOLERANCE_S = 120.0
"""Seconds by which the clocks of this machine and of the file server may differ."""

_SAMPLE = 32
_SLOW_S = 0.003
"""Seconds that a look at one run takes on average where a file system is slow; a local one takes less than a tenth."""
_AT_ONCE = 16

_computing = threading.Lock()
"""Held while all rows of a metrics.csv are read, which may take much memory."""


@dataclass(frozen=True, slots=True)
class ScanReport:
    """The counts of a scan: `total` = `upserted` (read again) + `unchanged` + `invalid` (cannot be read).

    `orphaned` counts known runs that are not found any more, whether they are gone, moved, or no run directory now.
    `problems` are pairs (run directory, reason), one for each invalid run; `skipped` are such pairs for folders that
    look like a run directory and are none.
    """

    root: str
    total: int
    upserted: int
    unchanged: int
    invalid: int
    orphaned: int
    seconds: float
    problems: tuple[tuple[str, str], ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        problems = [{"run_dir": path, "reason": reason} for path, reason in self.problems]
        skipped = [{"path": path, "reason": reason} for path, reason in self.skipped]
        return asdict(self) | {"problems": problems, "skipped": skipped}


def scan(
    root: str,
    store: Store,
    *,
    full: bool = False,
    heartbeat_timeout: float = 180.0,
    read: Callable[[Path], Run],
) -> ScanReport:
    """Bring `store` up to date with the run directories at and below the real path `root`.

    With `full`, read all of them again and forget those that are gone. A run that cannot be read keeps its last record.
    `heartbeat_timeout` must be the one that `read` uses.
    """
    began = time.perf_counter()
    known = {} if full else store.known(root)
    doubtful_since = time.time() - heartbeat_timeout - _CLOCK_TOLERANCE_S
    skipped: list[Skipped] = []
    unchanged: set[str] = set()
    nothing: tuple[None, list[Skipped]] = (None, [])

    def stamped(
        run_dir: str, events: list[str] | None = None
    ) -> tuple[str, os.stat_result | None, os.stat_result | None]:
        """Return the stamp of a run, and what lstat says of its JSON files; add it to `unchanged` if it is."""
        before = known.get(run_dir)
        sidecar = lstat(f"{run_dir}/sidecar.json")
        summary = sidecar and lstat(f"{run_dir}/summary.json")
        stamp = _stamp(run_dir, sidecar, summary, events)
        signs = _SIGNS_OF_LIFE if sidecar else ()  # without a sidecar the stamp holds them
        if (
            before
            and _has_stamp(run_dir, before, stamp)
            and not _may_have_moved(run_dir, before, doubtful_since, signs)
        ):
            unchanged.add(run_dir)
        return stamp, sidecar, summary

    def is_unchanged(run_dir: str, events: list[str]) -> bool:
        if run_dir in known:
            stamped(run_dir, events)
        return run_dir in unchanged

    def look(run_dir: str) -> tuple[Row | str | None, list[Skipped]]:
        """Return the row of a run that is new or changed, why it cannot be read, or None, and the runs within it."""
        if run_dir in unchanged:
            return nothing
        stamp, sidecar, summary = stamped(run_dir)
        if run_dir in unchanged:
            return nothing
        within = runs_within(run_dir)
        try:
            record = None if sidecar is None else read_ended(run_dir, sidecar, summary)
            if record is None:
                stamp += _hparams_mark(run_dir)
                run = read(Path(run_dir))
                record = RunRecord.of(run)
                if sidecar is None and not record.covered:  # nothing else knows even the last values
                    with _computing:
                        record = record.with_statistics(compute_statistics(run))
            return _row(root, "" if within else stamp, record), within  # those within are named by every scan
        except RunDirectoryError as error:
            return error.message, within
        except Exception as error:  # whatever goes wrong with one run, the others are found all the same
            log.debug("run %s cannot be read", run_dir, exc_info=hide_in(error))
            return hide_all(f"{type(error).__name__}: {error}"), within

    runs = list(walk([root], skipped, is_unchanged))
    looks = _look_at_each(look, runs)
    rows = [found for found, _ in looks if isinstance(found, tuple)]
    problems = [(run_dir, found) for run_dir, (found, _) in zip(runs, looks, strict=True) if isinstance(found, str)]
    skipped += [one for _, within in looks for one in within]
    seen = set(runs)
    gone = [path for path in known if path not in seen]
    store.save(
        root,
        rows=rows,
        orphans=[path for path in gone if not known[path].orphaned],
        found_again=[path for path, before in known.items() if before.orphaned and path in seen],
        full=full,
    )
    return ScanReport(
        root=root,
        total=len(seen),
        upserted=len(rows),
        unchanged=len(seen) - len(rows) - len(problems),
        invalid=len(problems),
        orphaned=len(gone),
        seconds=time.perf_counter() - began,
        problems=tuple(problems),
        skipped=tuple((str(folder.path), folder.reason) for folder in skipped),
    )


def _look_at_each(look: Callable[[str], T], runs: Sequence[str]) -> list[T]:
    """Return what `look` finds for each of `runs`, several at once if the first show that the file system is slow."""
    began = time.perf_counter()
    looks = [look(run_dir) for run_dir in runs[:_SAMPLE]]
    is_slow = time.perf_counter() - began > _SLOW_S * len(looks)
    # Threads wait for a server at once; on a local disk they would only slow each other down.
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return [*looks, *(pool.map if is_slow else map)(look, runs[_SAMPLE:])]


def _row(root: str, stamp: str, record: RunRecord) -> Row:
    paths = (os.fsencode(root), os.fsencode(record.run_dir))
    ended = record.status_word in TERMINAL_STATUSES
    return (*paths, stamp, record.status, ended, record.last_alive, record.start, 0, record.encoded())


def _stamp(
    run_dir: str, sidecar: os.stat_result | None, summary: os.stat_result | None, events: list[str] | None
) -> str:
    """Return a text that changes if any file that the record is made of is replaced or grows."""
    parts = [_mark(sidecar), _mark(summary)]
    if sidecar is None:
        metrics = lstat(f"{run_dir}/metrics.csv")
        parts.append(_mark(metrics))
        if metrics is None:
            parts += [_mark(lstat(f"{run_dir}/{name}")) for name in sorted(events or event_names(run_dir))]
        else:  # a run whose sidecar was lost
            parts += [_mark(lstat(f"{run_dir}/{name}")) for name in ("summary.json", "heartbeat")]
    elif stat.S_ISLNK(sidecar.st_mode):
        with contextlib.suppress(OSError):
            parts.append(_mark(os.stat(f"{run_dir}/sidecar.json")))  # noqa: PTH116 - a Path costs more than the call
    checkpoints = lstat(f"{run_dir}/checkpoints")
    parts += [_mark(checkpoints), _mark(lstat(f"{run_dir}/media"))]
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
    return any(sign is not None and sign.st_mtime > before.last_alive for sign in signs)

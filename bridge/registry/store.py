"""The SQLite cache of records: derived from the run directories, so whatever is wrong with it, it is made anew.

No WAL: homes are often NFS, where it does not work. Writers hold the lock for one transaction a scan.
"""

from __future__ import annotations

import contextlib
import sqlite3
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from bridge.errors import UsageError
from bridge.registry.rows import COLUMNS, STATUSES, from_text, record_of, to_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from bridge.model import Status
    from bridge.registry.record import RunRecord
    from bridge.registry.rows import Row

__all__ = ["FORMAT", "CachedDirectory", "NewerStoreError", "Store", "damaged"]

FORMAT = 1
"""The format number of the cache; an older one is rebuilt, a newer one left alone."""

_MAGIC = b"SQLite format 3\x00"
_APPLICATION = 0x62726467  # "brdg": PRAGMA application_id, by which a file is known to be ours
PATIENCE_S = 5.0
"""Seconds to wait for the lock of another process, whose one transaction takes far less."""
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


_NAMES = ", ".join(f'"{name}"' for name in COLUMNS)
_SELECT = f"SELECT {_NAMES} FROM runs WHERE root = ?"  # noqa: S608 - constants only
_UPSERT = f"INSERT OR REPLACE INTO runs VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 - constants only


class _DamagedError(sqlite3.DatabaseError):
    """A row holds what no version of ours has written."""


class NewerStoreError(Exception):
    """The cache was made by a newer bridge and stays as it is."""


@dataclass(frozen=True, slots=True)
class CachedDirectory:
    """What a scan must know of a run that is in the cache, to see whether anything changed."""

    stamp: str
    status: Status
    status_word: str | None
    last_alive: float
    orphaned: bool


class Store:
    """An open cache. Every method may raise sqlite3.Error; `damaged` tells which of them mean a rebuild."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    def in_memory(cls) -> Self:
        """An empty store that is gone with the process."""
        connection = sqlite3.connect(":memory:", isolation_level=None)
        with _transaction(connection):
            _create(connection)
        return cls(connection)

    @classmethod
    def open(cls, path: Path, *, own_place: bool = False) -> tuple[Self, str]:
        """The store in the file `path`, and what a person should be told ('' for nothing).

        A file of an older format, or a damaged one, is rebuilt; in our `own_place`, where nobody else has files, so is
        one that is no database. Raises UsageError for a file that is not ours, which is never altered whatever its
        name, NewerStoreError for a newer format, sqlite3.Error and OSError where it cannot be opened or made.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        if _is_others(path, own_place=own_place):
            raise _not_ours(path)
        connection = _connect(path)
        try:
            return cls(connection), _ready(connection, path)
        except sqlite3.DatabaseError as error:
            connection.close()
            if not damaged(error):
                raise
        except BaseException:
            connection.close()
            raise
        return cls.rebuilt(path), f"The cache of runs {path} was damaged; it is rebuilt."

    @classmethod
    def rebuilt(cls, path: Path) -> Self:
        """An empty store in place of the file `path`."""
        for name in (path, path.with_name(path.name + "-journal")):
            name.unlink(missing_ok=True)
        connection = _connect(path)
        _ready(connection, path)
        return cls(connection)

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def scanned_at(self, root: str) -> float | None:
        """When `root` was last scanned, in seconds since the epoch; None where it never was."""
        row = self._connection.execute("SELECT scanned_at FROM scans WHERE root = ?", (to_text(root),)).fetchone()
        return None if row is None else float(row[0])

    def known(self, root: str) -> dict[str, CachedDirectory]:
        """What is known of each run below `root`, by its directory."""
        rows = self._connection.execute(
            "SELECT run_dir, stamp, status, status_word, last_alive, orphaned FROM runs WHERE root = ?",
            (to_text(root),),
        )
        with _trust():
            return {
                from_text(path): CachedDirectory(stamp, STATUSES[status], word, alive, bool(orphaned))
                for path, stamp, status, word, alive, orphaned in rows
            }

    def records(self, root: str) -> list[RunRecord]:
        """All records of runs below `root`, orphans too, in the order of their start."""
        rows = self._connection.execute(f"{_SELECT} ORDER BY start, run_dir", (to_text(root),))
        with _trust():
            return [record_of(row) for row in rows]

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
        """Bring the outcome of one scan in, in one transaction; `rows` are of what was read anew.

        `full` replaces all that was known.
        """
        key = to_text(root)
        with _transaction(self._connection) as connection:
            if full:
                connection.execute("DELETE FROM runs WHERE root = ?", (key,))
            connection.executemany(_UPSERT, rows)
            for gone, paths in ((1, orphans), (0, found_again)):
                marks = [(gone, key, to_text(path)) for path in paths]
                connection.executemany("UPDATE runs SET orphaned = ? WHERE root = ? AND run_dir = ?", marks)
            scanned = (key, time.time() if now is None else now)
            connection.execute("INSERT OR REPLACE INTO scans VALUES (?, ?)", scanned)


def damaged(error: sqlite3.Error) -> bool:
    """Whether the error means that the file's content is broken, as against a lock or a disk that fails."""
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, _DamagedError) or (code is not None and code & 0xFF in _DAMAGED)


@contextlib.contextmanager
def _trust() -> Iterator[None]:
    """Rows are read without checks; one that is not ours shows by these errors."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _DamagedError(f"a row of the cache cannot be read ({error})") from error


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=PATIENCE_S, isolation_level=None)


def _is_others(path: Path, *, own_place: bool) -> bool:
    """Whether the file holds something else than a cache, judged before a database is made of it."""
    try:
        # Before it is opened: a pipe would wait, a device is not to be replaced.
        if not stat.S_ISREG(path.stat().st_mode):
            return True
        with path.open("rb") as file:
            head = file.read(100)
    except FileNotFoundError:
        return False
    if not head.startswith(_MAGIC):
        return bool(head) and not own_place
    return head[68:72] != _APPLICATION.to_bytes(4, "big")


def _not_ours(path: Path) -> UsageError:
    return UsageError(
        f"{path} is not a cache of runs, so it stays as it is.",
        hint="Give --db a file that does not exist yet, or move this one away.",
    )


def _ready(connection: sqlite3.Connection, path: Path) -> str:
    """Make the tables where they are missing or older; returns what to tell."""
    # The cache can be made anew: a power cut may cost it, never a scan's time.
    connection.execute("PRAGMA synchronous = OFF")
    if _version(connection) == FORMAT:
        return ""
    with _transaction(connection):
        version = _version(connection)  # of two processes that make the same cache, one was faster
        if version > FORMAT:
            raise NewerStoreError(f"The cache of runs {path} was made by a newer bridge and stays as it is.")
        if version == FORMAT:
            return ""
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        if tables and connection.execute("PRAGMA application_id").fetchone() != (_APPLICATION,):
            raise _not_ours(path)  # the file was empty a moment ago: somebody else has filled it
        for name in tables:
            quoted = name.replace('"', '""')
            connection.execute(f'DROP TABLE "{quoted}"')
        _create(connection)
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
        # After some errors (a full disk) SQLite has rolled back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _create(connection: sqlite3.Connection) -> None:
    """Make the tables, within a transaction."""
    connection.execute(f"CREATE TABLE runs ({_NAMES}, PRIMARY KEY (root, run_dir))")
    connection.execute("CREATE TABLE scans (root PRIMARY KEY, scanned_at REAL NOT NULL)")
    connection.execute(f"PRAGMA application_id = {_APPLICATION}")
    connection.execute(f"PRAGMA user_version = {FORMAT}")

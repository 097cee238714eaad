"""The scan: which run directories are new or different, read just those, and what became of the others.

A directory is read again only where its stamp differs (inode, size and mtime of what its record is made of), or
where a sign of life can have changed what is shown of it.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.errors import RunDirectoryError
from bridge.model import Status
from bridge.registry.record import RunRecord
from bridge.registry.rows import Found, row_of
from bridge.registry.summary import with_summary
from bridge.secrets import hide_all, hide_in
from logger.sidecar import TERMINAL_STATUSES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bridge.model import Run
    from bridge.registry.rows import Row
    from bridge.registry.store import CachedDirectory, Store

__all__ = ["ScanReport", "scan"]

log = logging.getLogger(__name__)

_SIGNS_OF_LIFE = ("heartbeat", "metrics.csv")
_CLOCKS_DIFFER = 120.0
"""Seconds by which this machine's clock and the file server's are allowed to disagree."""


@dataclass(frozen=True, slots=True)
class ScanReport:
    """What a scan counted: `total` = `upserted` (read anew) + `unchanged` + `invalid` (cannot be read).

    `orphaned` are known runs that the walk does not find any more, newly or still: gone, moved, or no run directory
    now. `problems` are (run directory, reason) of the invalid ones.
    """

    root: str
    total: int
    upserted: int
    unchanged: int
    invalid: int
    orphaned: int
    seconds: float
    problems: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        problems = [{"run_dir": path, "reason": reason} for path, reason in self.problems]
        return asdict(self) | {"problems": problems}


def scan(
    root: str,
    store: Store,
    *,
    full: bool = False,
    heartbeat_timeout: float = 180.0,
    walk: Callable[[list[str]], Iterable[str]],
    read: Callable[[Path], Run],
) -> ScanReport:
    """Bring `store` up to date with the run directories at and below the real path `root`, in one transaction.

    `full` reads all of them again and forgets what is not there. A run that cannot be read keeps its last record.
    `heartbeat_timeout` is the one that `read` judges by.
    """
    began = time.perf_counter()
    known = {} if full else store.known(root)
    rows: list[Row] = []
    problems: list[tuple[str, str]] = []
    seen: set[str] = set()
    doubtful_since = time.time() - heartbeat_timeout - _CLOCKS_DIFFER
    for run_dir in walk([root]):
        seen.add(run_dir)
        before = known.get(run_dir)
        sidecar, summary = _lstat(f"{run_dir}/sidecar.json"), _lstat(f"{run_dir}/summary.json")
        stamp = _stamp(run_dir, sidecar, summary)
        if before and _is_unchanged(run_dir, before, stamp) and not _may_have_moved(run_dir, before, doubtful_since):
            continue
        try:
            stamp += _hparams_mark(run_dir)
            found = Found.of(RunRecord.of(with_summary(read(Path(run_dir)))))
            rows.append(row_of(root, stamp, found))
        except RunDirectoryError as error:
            problems.append((run_dir, error.message))
        except Exception as error:  # one failure of any kind is this run's; the others are found all the same
            log.debug("run %s cannot be read", run_dir, exc_info=hide_in(error))
            problems.append((run_dir, hide_all(f"{type(error).__name__}: {error}")))
    gone = [path for path in known if path not in seen]
    found_again = [path for path, before in known.items() if before.orphaned and path in seen]
    new_orphans = [path for path in gone if not known[path].orphaned]
    store.save(root, rows=rows, orphans=new_orphans, found_again=found_again, full=full)
    return ScanReport(
        root=root,
        total=len(seen),
        upserted=len(rows),
        unchanged=len(seen) - len(rows) - len(problems),
        invalid=len(problems),
        orphaned=len(gone),
        seconds=time.perf_counter() - began,
        problems=tuple(problems),
    )


def _stamp(run_dir: str, sidecar: os.stat_result | None, summary: os.stat_result | None) -> str:
    """What stat says of the files that a record is made of; another text where any of them was replaced or grew."""
    parts = [_mark(sidecar), _mark(summary)]
    if sidecar is None:
        parts.append(_mark(_lstat(f"{run_dir}/metrics.csv")))
    elif stat.S_ISLNK(sidecar.st_mode):
        parts.append(_mark(_stat(f"{run_dir}/sidecar.json")))
    return "|".join(parts)


def _hparams_mark(run_dir: str) -> str:
    """The part of the stamp that the short road does without: where a sidecar has no hparams, this file has them."""
    return f"|{_mark(_lstat(f'{run_dir}/hparams.yaml'))}"


def _is_unchanged(run_dir: str, before: CachedDirectory, stamp: str) -> bool:
    return before.stamp == stamp or (
        before.stamp.startswith(f"{stamp}|") and before.stamp == stamp + _hparams_mark(run_dir)
    )


def _mark(found: os.stat_result | None) -> str:
    return f"{found.st_ino}.{found.st_size}.{found.st_mtime_ns}" if found else ""


def _lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116 - a Path costs more than the call
    except OSError:
        return None


def _may_have_moved(run_dir: str, before: CachedDirectory, doubtful_since: float) -> bool:
    """Whether a sign of life, or its absence, may show another status though no sidecar was written."""
    if before.status_word in TERMINAL_STATUSES:
        return False
    if before.status is Status.RUNNING or before.last_alive >= doubtful_since:
        return True
    signs = (_lstat(f"{run_dir}/{name}") for name in _SIGNS_OF_LIFE)
    return any(sign is not None and sign.st_mtime > before.last_alive for sign in signs)

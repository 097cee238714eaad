"""Queries: the runs of a tree as records, chosen, sorted, and as a table."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import time
from collections import Counter
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.errors import BridgeError, UsageError, counted
from bridge.files import cache_dir
from bridge.model import Status
from bridge.registry.record import FIELDS as RECORD_FIELDS
from bridge.registry.store import Store, refuse_foreign, scan, with_statistics, with_store
from bridge.registry.where import FIELDS, Kind, column, parse, status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import pandas as pd

    from bridge.model import Scalar
    from bridge.registry.record import RunRecord
    from bridge.registry.store import ScanReport
    from bridge.registry.where import Ref


class Registry:
    """The records of all runs below a root as of its last scan, in the order of their start.

    `report` holds the counts of the scan, None if there was none.
    """

    def __init__(self, records: Sequence[RunRecord], *, root: Path, report: ScanReport | None = None) -> None:
        self.root = root
        self.report = report
        self._records = tuple(records)
        # If several directories have one run id, the one that started last counts.
        self._by_id = {record.run_id: record for record in self._records}

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[RunRecord]:
        return iter(self._records)

    def __contains__(self, run_id: object) -> bool:
        return run_id in self._by_id

    def __getitem__(self, run_id: str) -> RunRecord:
        return self._by_id[run_id]

    def __repr__(self) -> str:
        counts = Counter(record.status for record in self._records)
        statuses = ", ".join(f"{counts[status]} {status}" for status in Status if counts[status])
        return f"<Registry {self.root}: {counted(len(self), 'run')} ({statuses or 'none'})>"

    def close(self) -> None:
        """Do nothing: the records are in memory, and the cache is closed. Code for the original registry calls this."""

    def get(self, run_id: str) -> RunRecord | None:
        """Return the run with this id, of several the one that started last; None if there is none."""
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
        descending: bool | None = None,
        limit: int | None = None,
    ) -> list[RunRecord]:
        """Return the runs that have every tag, one of the statuses, equal hyperparameters, and for which `where` holds.

        `sort_by` is a field, `hparams.KEY`, `summary.METRIC` (the last value), `max.METRIC` or `min.METRIC`, where the
        whole rest after the first dot is the name, or a name as in `where`. The greatest value comes first unless
        `descending` is false; runs without a value come last. Without `sort_by` the runs are in the order of their
        start, the newest first if `descending`. Raises UsageError for a sort key that no run has, an unknown status, a
        wrong condition, or a negative limit.
        """
        if limit is not None and limit < 0:
            raise UsageError(f"limit must not be negative, but is {limit}.")
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
            by = column(sort_by)
            for problem in unknown_refs(self._records, [by]) if self._records else ():
                raise UsageError(f"sort_by: {problem}")
            found = ordered(found, by, descending=descending is not False)
        elif descending:
            found.reverse()
        return found[:limit]

    def with_statistics(self) -> Registry:
        """Return a registry of records whose statistics cover all rows of their runs."""
        return Registry(with_statistics(self._records), root=self.root, report=self.report)

    def to_dataframe(self, records: Sequence[RunRecord] | None = None, **query: Any) -> pd.DataFrame:
        """Return a pandas table with a line for each run: its fields, `hparams.*`, `summary.*`, `max.*` and `min.*`.

        The runs are `records`, or else those that `query` finds with these keywords, which are all without any. Times
        have a zone. Raises BridgeError if pandas is not installed, and UsageError as `query` does.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise BridgeError(
                "to_dataframe needs pandas, which is not installed.", hint="pip install pandas"
            ) from error
        frame = pd.DataFrame(columns(self.query(**query) if records is None else records))
        for name in time_columns:
            if name in frame:
                frame[name] = pd.to_datetime(frame[name], utc=True, format="ISO8601", errors="coerce")
        return frame


def open_registry(
    root: str | os.PathLike[str],
    *,
    db_path: str | os.PathLike[str] | None = None,
    scan_ttl_s: float = 0.0,
    full: bool = False,
    heartbeat_timeout: float = 180.0,
    statistics: bool = True,
    say: Callable[[str], None] | None = None,
) -> Registry:
    """Return the runs at and below `root`, read through the SQLite cache, after a scan if one is due.

    The cache is the file `db_path`, by default one for the real path of `root` in the user's cache directory. A root
    that is a run directory needs none. A positive `scan_ttl_s` skips the scan if the last one is younger, and `full`
    reads every run again. Where summary.json does not cover all rows of metrics.csv, the statistics are computed from
    that, once, unless `statistics` is false. A cache that is damaged or of another format is rebuilt; without a usable
    one the scan works in memory. Both are reported once, through `say` (by default a warning of the logger
    `bridge.registry`). Raises UsageError if `root` is no directory, or `db_path` a file of something else.
    """
    real = os.path.realpath(root)
    if not os.path.isdir(real):  # noqa: PTH112
        raise UsageError(f"{os.fspath(root)} is not a directory.")
    load = partial(_load, real, ttl=scan_ttl_s, full=full, heartbeat_timeout=heartbeat_timeout)
    say = say or logging.getLogger("bridge.registry").warning
    if db_path is not None:
        file = Path(db_path)
        refuse_foreign(file)
        registry = with_store(lambda: file, load, say)
    elif any(os.path.isfile(f"{real}/{name}") for name in ("sidecar.json", "metrics.csv")):  # noqa: PTH113
        with Store.open(":memory:") as store:
            registry = load(store)
    else:
        digest = hashlib.sha256(os.fsencode(real)).hexdigest()[:16]
        registry = with_store(lambda: cache_dir() / "registry" / f"runs-{digest}.sqlite", load, say)
    return registry.with_statistics() if statistics else registry


def _load(root: str, store: Store, *, ttl: float, full: bool, heartbeat_timeout: float) -> Registry:
    report = None
    scanned_at = store.scanned_at(root)
    if scanned_at is None or not 0 <= time.time() - scanned_at < ttl:
        report = scan(root, store, full=full, heartbeat_timeout=heartbeat_timeout)
    return Registry(store.records(root), root=Path(root), report=report)


def _several(value: str | Sequence[str] | None) -> Sequence[str]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


# ---------------------------------------------------------------------------------------------------------------------
# Names, order and tables
# ---------------------------------------------------------------------------------------------------------------------


def unknown_refs(records: Iterable[RunRecord], refs: Iterable[Ref]) -> list[str]:
    """Return a sentence for each metric and hyperparameter of `refs` that no run has, with the nearest name."""
    refs = list(refs)
    if any(ref.kind is Kind.METRIC for ref in refs):
        records = with_statistics(records)
    metrics = {name for record in records for name in (*record.summary, *record.stats)}
    hparams = {name for record in records for name in record.hparams}
    said = {}
    for ref in refs:
        if ref.kind is Kind.METRIC and ref.name not in metrics:
            said[ref.name] = no_run_has(ref.name, ref.name, metrics | set(FIELDS))
        elif ref.kind is Kind.HPARAM and ref.name not in hparams:
            said[str(ref)] = no_run_has(str(ref), ref.name, hparams, prefix="hparams.")
    return list(said.values())


def no_run_has(what: str, name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """Return the sentence that no run has `what`, with the name among `known` that is nearest to `name`."""
    near = get_close_matches(name, known, n=1)
    return f"no run has {what}" + (f"; did you mean {prefix}{near[0]}?" if near else "")


def ordered(records: Sequence[RunRecord], by: Ref, *, descending: bool = False) -> list[RunRecord]:
    """Return the records sorted by the value that `by` names: numbers before texts, equal ones in their order.

    Those without a value, or with NaN, come last in either direction.
    """
    pairs = [(_cell(by.of(record)), record) for record in records]
    # Only NaN differs from itself.
    present = [pair for pair in pairs if pair[0] not in (None, ...) and pair[0] == pair[0]]
    missing = [pair for pair in pairs if pair[0] in (None, ...) or pair[0] != pair[0]]
    present.sort(key=lambda pair: (isinstance(pair[0], str), pair[0]), reverse=descending)
    return [record for _, record in (*present, *missing)]


time_columns = ("created_at", "ended_at", "heartbeat", "updated_at")
"""The columns that hold times, as ISO text in UTC."""


def columns(records: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """Return the records as columns of one length: fields, then `hparams.*`, `summary.*`, `max.*` and `min.*`.

    A value that a run does not have is None. Tags are joined by `, `.
    """
    table: dict[str, list[Any]] = {name: [_cell(getattr(record, name)) for record in records] for name in RECORD_FIELDS}
    for key in _sorted_names(record.hparams for record in records):
        table[f"hparams.{key}"] = [record.hparams.get(key) for record in records]
    metrics = _sorted_names((*record.summary, *record.stats) for record in records)
    for head, statistic in (("summary", "last"), ("max", "max"), ("min", "min")):
        for metric in metrics:
            table[f"{head}.{metric}"] = [record.metric(metric, statistic) for record in records]
    return table


def csv_table(records: Sequence[RunRecord]) -> bytes:
    """Return the records as CSV in UTF-8, with one header line; a missing value is an empty cell."""
    import csv

    text = io.StringIO(newline="")
    writer = csv.writer(text)
    table = columns(records)
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    return text.getvalue().encode("utf-8", "backslashreplace")


def parquet_table(records: Sequence[RunRecord]) -> Any:
    """Return the records as the bytes of a Parquet file; a column of mixed types becomes text."""
    import pyarrow as pa
    from pyarrow import parquet

    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table({name: _arrow_array(pa, values) for name, values in columns(records).items()}), sink)
    return sink.getvalue()


def _arrow_array(pa: Any, values: Sequence[Any]) -> Any:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeError):
        # Numbers beside texts, a whole number beyond 64 bits, or a letter that no file can hold.
        texts = [None if value is None else str(value).encode("utf-8", "backslashreplace").decode() for value in values]
        return pa.array(texts, pa.string())


def _sorted_names(several: Iterable[Iterable[str]]) -> list[str]:
    return sorted({name for names in several for name in names})


def _cell(value: Any) -> Any:
    if isinstance(value, tuple):
        return ", ".join(value)
    return str(value) if isinstance(value, str) else value

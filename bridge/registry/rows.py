"""Records as rows of the cache's table, and back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from bridge.model import Status
from bridge.registry.lazy import Document, Lazy, Statistics
from bridge.registry.record import RunRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COLUMNS", "STATUSES", "Found", "Row", "from_text", "record_of", "row_of", "to_text"]

COLUMNS = (
    "root", "run_dir", "stamp", "run_id", "identity", "status", "status_word", "start", "end", "last_alive", "updated",
    "name", "parent", "notes", "archived", "checkpoint_path", "sessions", "orphaned", "tags", "document", "stats",
)  # fmt: skip
STATUSES = {str(status): status for status in Status}

Row: TypeAlias = "tuple[Any, ...]"
"""Values in the order of COLUMNS."""


class Found(NamedTuple):
    """A record with the texts that hold its hyperparameters and last values (`document`), and its statistics."""

    record: RunRecord
    document: str
    stats: str

    @classmethod
    def of(cls, record: RunRecord) -> Found:
        """The texts are made anew. Python's JSON keeps NaN, which is fine where nobody else reads it."""
        parts = {"hparams": dict(record.hparams), "summary": dict(record.summary)}
        return cls(record, json.dumps(parts), json.dumps({"metrics": dict(record.stats)}))


def row_of(root: str, stamp: str, found: Found) -> Row:
    """The row of what a scan of `root` has found."""
    record = found.record
    return (
        to_text(root),
        to_text(record.run_dir),
        stamp,
        to_text(record.run_id),
        to_text(record.identity),
        str(record.status),
        to_text(record.status_word),
        record.start,
        record.end,
        record.last_alive,
        record.updated,
        to_text(record.name),
        to_text(record.parent),
        to_text(record.notes),
        record.archived,
        to_text(record.checkpoint_path),
        record.sessions,
        record.orphaned,
        json.dumps(record.tags) if record.tags else "",
        found.document,
        found.stats,
    )


def record_of(row: Sequence[Any]) -> RunRecord:
    """The record in a row. Raises ValueError, TypeError or KeyError for one that is not ours."""
    (_, run_dir, _, run_id, identity, status, word, start, end, last_alive, updated, *rest) = row
    (name, parent, notes, archived, checkpoint, sessions, orphaned, tags, text, stats) = rest
    document = Document(text)
    return RunRecord(
        run_id=from_text(run_id),
        run_dir=from_text(run_dir),
        identity=from_text(identity),
        status=STATUSES[status],
        status_word=word if word is None else from_text(word),
        start=start,
        end=end,
        last_alive=last_alive,
        updated=updated,
        name=from_text(name),
        parent=from_text(parent),
        tags=tuple(json.loads(tags)) if tags else (),
        notes=from_text(notes),
        archived=bool(archived),
        hparams=Lazy(document.hparams),
        summary=Lazy(document.summary),
        stats=Statistics(stats),
        checkpoint_path=checkpoint if checkpoint is None else from_text(checkpoint),
        sessions=sessions,
        orphaned=bool(orphaned),
    )


def to_text(value: str | None) -> str | bytes | None:
    """`value` for SQLite, which refuses lone surrogates (undecodable file names, hostile JSON): those as bytes."""
    if value is None or value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogatepass")
    return value


def from_text(value: str | bytes) -> str:
    """The text that `to_text` made this of."""
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value

"""What a run directory holds past a cursor."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from bridge.errors import IdentityError
from bridge.files import fitting
from bridge.model import Delta, DeltaKind
from bridge.rundir.append import append
from bridge.rundir.csv_rows import opened
from bridge.rundir.digest import to_hex
from bridge.rundir.place import Changed
from bridge.rundir.reading import Reading

if TYPE_CHECKING:
    from bridge.cursor import ContentOptions, Cursor
    from bridge.model import Run
    from bridge.rundir.wanted import ReadOptions

__all__ = ["read_delta"]

LOOKS = 4
BETWEEN_LOOKS = 1.0
"""Seconds between two looks at a file that became shorter or changed: it may just be in the middle of a rewrite."""


def read_delta(run: Run, cursor: Cursor | None, content: ContentOptions, wanted: ReadOptions) -> Delta:
    """What the run directory of `run` holds past `cursor` (None: everything), up to about `wanted.limit` points.

    Nothing is opened where size and mtime are the cursor's, and of a file that grew only the new bytes are parsed. Of kind
    CHANGED where the target must be made anew: what the cursor covers is there no more, or the options differ.
    Raises IdentityError where the directory moved and its first rows are others, RunDirectoryError where a file
    cannot be read.
    """
    stat = look(run, content)
    if cursor is not None:
        if cursor.path != fitting(str(run.path)):
            _check_moved(run, cursor, content)
        reason = _outdated(cursor, content)
        if reason:
            return Delta(run=run, kind=DeltaKind.CHANGED, after=cursor, before=cursor, reason=reason)
        if cursor.stat == stat and cursor.replacing is None:
            after = cursor.with_(path=str(run.path))
            return Delta(run=run, kind=DeltaKind.SAME, after=after, before=cursor)
    seen: Changed | None = None
    for _ in range(LOOKS):
        try:
            return append(run, cursor, content, wanted)
        except Changed as change:
            assert cursor is not None
            if seen is not None and seen.evidence == change.evidence:
                return Delta(run=run, kind=DeltaKind.CHANGED, after=cursor, before=cursor, reason=change.reason)
            seen = change
        time.sleep(BETWEEN_LOOKS)
    assert cursor is not None
    return Delta(
        run=run, kind=DeltaKind.SAME, after=cursor, before=cursor, reason="metrics.csv is being rewritten just now"
    )


def look(run: Run, content: ContentOptions) -> tuple[int, int, int, int]:
    """(size, mtime in nanoseconds) of metrics.csv and media.jsonl, zeros where there is none or it is left out."""
    names = ("metrics.csv", "media.jsonl") if content.media else ("metrics.csv",)
    found = [0, 0, 0, 0]
    for place, name in enumerate(names):
        if name in run.files:
            with contextlib.suppress(OSError):
                status = os.stat(run.files[name].path)  # noqa: PTH116 - asked for every run of every export
                found[2 * place : 2 * place + 2] = status.st_size, status.st_mtime_ns
    return found[0], found[1], found[2], found[3]


def _outdated(cursor: Cursor, content: ContentOptions) -> str:
    if not cursor.complete:
        return "an earlier export was stopped before the target was complete"
    mine, theirs = content.differences(), dict(cursor.content)
    if mine == theirs:
        return ""
    differing = [key for key in dict.fromkeys((*mine, *theirs)) if mine.get(key) != theirs.get(key)]
    words = (f"{key.replace('_', '-')} (was {_word(theirs, key)}, is {_word(mine, key)})" for key in differing)
    return f"made with other options: {', '.join(words)}"


def _word(options: dict[str, object], key: str) -> str:
    if key not in options:
        return "the default"
    value = options[key]
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _check_moved(run: Run, cursor: Cursor, content: ContentOptions) -> None:
    """Raise IdentityError where the first rows are not those of the cursor."""
    if not cursor.early_rows:
        return
    reading = Reading.begin(run, content)
    with opened(run) as table:
        found = table.layout() if table is not None else None
        if table is not None and found is not None:
            for rows in table.rows(found[0], found[0].end, 0, block=1 << 16):
                reading.take(rows.head(min(len(rows), cursor.early_rows - reading.rows)))
                if reading.rows == cursor.early_rows:
                    break
    if to_hex(reading.digest) != cursor.early:
        raise IdentityError(
            f"{run.path} has the identity {run.identity} of a run that was exported from {cursor.path}, but its first "
            "rows are others.",
            hint=f"Give it an identity of its own: bridge export {run.path} --as NEW_ID",
        )

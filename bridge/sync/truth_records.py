"""The complete records of a CSV file that may still grow, by the standard library's csv module."""

from __future__ import annotations

import contextlib
import csv
import sys
import threading
from typing import TYPE_CHECKING

from bridge.errors import RunDirectoryError
from bridge.files import LONGEST_ROW, open_plain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["records"]

LONGEST_RECORD = 2 * LONGEST_ROW
"""Bytes, also of one whose quoted cells go over many lines; a longer one is not read, so that no file can fill the memory."""

_FIELD_LIMIT = threading.Lock()


def records(path: Path) -> Iterator[tuple[list[str] | None, int]]:
    """Each complete record of the file `path` with the number of its first line; None for one that is no CSV.

    A record whose end is not there yet is left out. Raises OSError, and RunDirectoryError for one without an end.
    """
    lines = _Lines(path)
    with _no_field_limit():
        reader = csv.reader(lines)
        while True:
            first = lines.begin()
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error:
                yield None, first
                continue
            if lines.torn:
                return
            yield cells, first


class _Lines:
    """The complete lines of a file for csv.reader, which asks for more within a quoted cell.

    `torn` is set when the reader asked for a line that is not there yet: what it made of the rest is no row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = 0
        self.torn = False
        self._first = 1
        self._size = 0

    def begin(self) -> int:
        """Let the next line be the first of a record; returns its number."""
        self._first, self._size = self.number + 1, 0
        return self._first

    def __iter__(self) -> Iterator[str]:
        with open_plain(self.path) as file:
            while True:
                line = file.readline(LONGEST_RECORD)
                self._size += len(line)
                if self._size >= LONGEST_RECORD:
                    raise RunDirectoryError(
                        f"{self.path}:{self._first} cannot be read: longer than {LONGEST_RECORD >> 20} MiB.",
                        hint="A quote that is never closed makes one line of all that follows.",
                    )
                if not line.endswith(b"\n"):
                    break
                if self.number == 0:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                self.number += 1
                yield line.decode("utf-8", errors="replace")
        self.torn = True


@contextlib.contextmanager
def _no_field_limit() -> Iterator[None]:
    """Let csv take cells of any length (lines are limited already); the setting is the process's, so put it back."""
    with _FIELD_LIMIT:
        before = csv.field_size_limit(sys.maxsize)
        try:
            yield
        finally:
            csv.field_size_limit(before)

"""How far runs are, told by those who work on them to whoever hired them: threads, or processes of this machine."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from types import TracebackType

__all__ = ["Wire", "attach", "tell"]

_mine = threading.local()


class Wire:
    """A pipe of messages (number of a run, bytes read of it, points sent of it), totals each. A context manager.

    No lock guards it, since a killed worker would never open it again: a message is one write, short enough that the
    operating system keeps it in one piece.
    """

    def __init__(self) -> None:
        from multiprocessing import get_context

        self._here, self.end = get_context("spawn").Pipe(duplex=False)

    def messages(self) -> Iterator[tuple[int, int, int]]:
        """What has come since the last call, without waiting."""
        while self._here.poll():
            yield self._here.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._here.close()
        self.end.close()


def attach(end: Connection[tuple[int, int, int], tuple[int, int, int]]) -> None:
    """What this thread tells from now on goes into that `end` of a Wire."""
    _mine.end = end


def tell(number: int, size: int, points: int) -> None:
    """Tell how far run `number` is; where nothing is attached, or nobody listens any more, nothing happens."""
    end = getattr(_mine, "end", None)
    if end is not None:
        with contextlib.suppress(OSError):
            end.send((number, size, points))

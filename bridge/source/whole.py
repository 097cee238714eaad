"""All that a run directory holds, in the one order that a target has whatever its history was."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from bridge.model import Cursor
from bridge.source.append import append

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.model import Delta, Run, Shape
    from bridge.source.wanted import Wanted

__all__ = ["read_whole"]


def read_whole(
    run: Run, shape: Shape, wanted: Wanted, *, anchors: tuple[tuple[int, float], ...] = ()
) -> Iterator[Delta]:
    """Everything in the run directory of `run`, portion by portion, the first of kind NEW."""
    cursor = None
    for _ in count():
        delta = append(run, cursor, shape, wanted)
        yield delta
        cursor = delta.after
        if not delta.more:
            return

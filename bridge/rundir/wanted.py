"""What a target needs of the deltas that it is handed."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ReadOptions"]


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How a delta is to be read for one kind of target.

    `ordered`: series must have strictly increasing steps, any lower step is a rewind (a rebuild).
    `removals`: with a rewind the delta names the superseded points (`removed`) beside the new ones.
    `replaces`: with a rewind the delta holds every point at or after its `replace_from`; goes before `removals`.
    `hold_back`: the last rows of a running run that share the last row's step stay for a later delta.
    `limit`: at most about this many points in one delta.
    """

    ordered: bool = False
    removals: bool = False
    replaces: bool = False
    hold_back: bool = False
    limit: int = 1_000_000

"""The order of records by anything that they hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridge.registry.record import RunRecord
    from bridge.registry.refs import Ref

__all__ = ["ordered"]


def ordered(records: Sequence[RunRecord], by: Ref, *, descending: bool = False) -> list[RunRecord]:
    """The records sorted by what `by` names: numbers before texts; equal ones stay in their order.

    Those that hold nothing there, or NaN, come last in either direction.
    """
    keyed = [(_key(by.of(record)), record) for record in records]
    present = [pair for pair in keyed if pair[0] is not None]
    present.sort(key=lambda pair: pair[0], reverse=descending)
    return [record for _, record in present] + [record for key, record in keyed if key is None]


def _key(value: Any) -> Any:
    """What sorts next to anything else; None for what is missing."""
    if isinstance(value, bool | int | float):
        return None if value != value else (0, value)  # noqa: PLR0124 - only NaN differs from itself
    if isinstance(value, str):
        return (1, str(value))
    return (2, tuple(value)) if isinstance(value, tuple) else None

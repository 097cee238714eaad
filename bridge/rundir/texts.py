"""Text cells apart from numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.rundir.reading import block_of
from bridge.rundir.rows import TEXT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bridge.model import Block

__all__ = ["without_texts"]


def without_texts(blocks: Iterable[Block]) -> tuple[Block, ...]:
    """Return `blocks` without the series that stand for texts."""
    numbers: list[Block] = []
    for block in blocks:
        of_texts = [line for line, name in enumerate(block.names) if name.endswith(TEXT)]
        if not of_texts:
            numbers.append(block)
            continue
        present = block.present.copy()
        present[of_texts] = False
        made = block_of(block.names, block.row, block.step, block.time, block.values, present)
        if made is not None:
            numbers.append(made)
    return tuple(numbers)

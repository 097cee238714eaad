"""Text cells apart from numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bridge.model import Text
from bridge.rundir.reading import block_of
from bridge.rundir.rows import TEXT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bridge.model import Block

__all__ = ["split_texts"]


def split_texts(
    blocks: Iterable[Block], texts: Mapping[tuple[int, str], str]
) -> tuple[tuple[Block, ...], tuple[Text, ...]]:
    """`blocks` without the series that stand for texts, and the `texts` (by row and name) that they stood for."""
    numbers: list[Block] = []
    found: list[Text] = []
    for block in blocks:
        of_texts = [line for line, name in enumerate(block.names) if name.endswith(TEXT)]
        if not of_texts:
            numbers.append(block)
            continue
        for column in np.flatnonzero(block.present[of_texts].any(axis=0)).tolist():
            for line in of_texts:
                if block.present[line, column]:
                    row, name = int(block.row[column]), block.names[line].removesuffix(TEXT)
                    text = texts[row, name]
                    found.append(Text(row, int(block.step[column]), float(block.time[column]), name, text))
        present = block.present.copy()
        present[of_texts] = False
        made = block_of(block.names, block.row, block.step, block.time, block.values, present)
        if made is not None:
            numbers.append(made)
    return tuple(numbers), tuple(found)

"""How far an export is, from what its runs tell."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridge.sync.progress import Progress

__all__ = ["Tally"]


@dataclass(slots=True)
class Tally:
    """Turns the totals of single runs into what is more than before: a run that is begun again counts once.

    `sizes` are the bytes of each run that are to be read, by its number: a run that is done counts with all of them.
    """

    progress: Progress
    sizes: Sequence[int]
    _told: dict[int, tuple[int, int]] = field(default_factory=dict)

    def told(self, number: int, size: int, points: int) -> None:
        """Of run `number` so many bytes were read and so many points sent, all in all."""
        size_before, points_before = self._told.get(number, (0, 0))
        size = max(size_before, min(size, self.sizes[number]))
        points = max(points_before, points)
        self._told[number] = size, points
        if (size, points) != (size_before, points_before):
            self.progress.moved(size - size_before, points - points_before)

    def done(self, number: int, points: int) -> None:
        """Run `number` is done, with so many points."""
        self.told(number, self.sizes[number], points)

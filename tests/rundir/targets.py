"""The plainest possible targets: they apply deltas as the contract says, and can be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.model import Cursor, Delta, DeltaKind
from bridge.options import ContentOptions
from bridge.rundir import read_delta, read_run, read_whole
from tests.rundir.oracle import Event, events_of

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.rundir import ReadOptions

BUDGET = 1 << 20


class Target:
    """Applies deltas, starts over where it must, and stores its cursor as text."""

    def __init__(
        self,
        wanted: ReadOptions,
        content: ContentOptions | None = None,
        *,
        keeps_last_points: bool = True,
        budget: int = BUDGET,
    ) -> None:
        self.wanted = wanted
        self.content = content or ContentOptions()
        self.keeps_last_points = keeps_last_points
        self.budget = budget
        self.text: str | None = None
        self.events: list[Event] = []
        self.points: dict[tuple[str, int], list[tuple[float, str]]] = {}
        self.metrics: tuple[str, ...] = ()
        self.rebuilds = 0
        self.kinds: list[DeltaKind] = []
        self.deltas: list[Delta] = []

    @property
    def cursor(self) -> Cursor | None:
        """Return the stored cursor, parsed from its text."""
        return None if self.text is None else Cursor.from_json(self.text, where="here")

    def export(self, path: Path) -> None:
        """Export the run directory `path`."""
        run = read_run(path)
        while True:
            delta = read_delta(run, self.cursor, self.content, self.wanted, budget=self.budget)
            self.kinds.append(delta.kind)
            changed = delta.kind is DeltaKind.CHANGED
            if changed or (delta.kind is DeltaKind.REWIND and not self.wanted.replaces):
                self.rebuild(path)
                return
            self.apply(delta)
            if not delta.more:
                return

    def rebuild(self, path: Path) -> None:
        """Start over with everything."""
        self.rebuilds += 1
        anchors = self.cursor.anchors if self.cursor else ()
        self.events, self.points = [], {}
        whole = read_whole(read_run(path), self.content, self.wanted, anchors=anchors, budget=self.budget)
        for delta in whole:
            self.apply(delta)

    def apply(self, delta: Delta) -> None:
        """Remove superseded points, add new ones, and store the cursor."""
        self.deltas.append(delta)
        if delta.replace_from is not None:
            self.points = {key: held for key, held in self.points.items() if key[1] < delta.replace_from}
            self.events.clear()
        new = events_of([delta])
        self.events += new
        for _, step, time, values in new:
            for name, value in values:
                self.points.setdefault((name, step), []).append((time, value))
        after = delta.after if self.keeps_last_points else delta.after.with_(last_points=None)
        self.text = after.to_json()
        self.metrics = delta.metrics

    def held(self) -> dict[tuple[str, int], list[tuple[float, str]]]:
        """Return the points by metric and step."""
        return {key: held for key, held in self.points.items() if held}


def points_of(events: list[Event]) -> dict[tuple[str, int], list[tuple[float, str]]]:
    """Return the points of `events` by metric and step."""
    found: dict[tuple[str, int], list[tuple[float, str]]] = {}
    for _, step, time, values in events:
        for name, value in values:
            found.setdefault((name, step), []).append((time, value))
    return found


def rising(events: list[Event]) -> bool:
    """Return whether the steps of each metric rise in the order of `events`."""
    last: dict[str, int] = {}
    for _, step, _, values in events:
        for name, _ in values:
            if step <= last.get(name, step - 1):
                return False
            last[name] = step
    return True

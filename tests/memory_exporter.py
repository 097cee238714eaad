"""The example exporter for other tests: with any capabilities, and boxes to look into and change.

The box of a run is what its `run.json` holds.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from dataclasses import asdict, dataclass, field
from itertools import compress, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from bridge.errors import TargetRefusedError
from logger.files import replace_file
from tests.example_exporter import JsonExporter, JsonTarget, load_state

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from bridge.exporters.contract import Applied, Capabilities, TargetState
    from bridge.model import Delta, Run
    from bridge.options import ContentOptions

MEMORY = replace(JsonExporter.capabilities, replaces_points=True)
"""What the exporter can do by default: everything, exactly."""


@dataclass(slots=True)
class Box:
    """The target of one run.

    `points` are the steps, times and values of each series. `cursor` is JSON text. `edited` names the facts that people
    changed, `extras` are further targets of the run.
    """

    cursor: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    points: dict[str, list[list[float]]] = field(default_factory=dict)
    media: list[dict[str, Any]] = field(default_factory=list)
    edited: list[str] = field(default_factory=list)
    extras: list[str] = field(default_factory=list)
    deleted: bool = False


class MemoryExporter(JsonExporter):
    """Exports into boxes in `folder`, by default a new one."""

    name = "memory"

    def __init__(self, folder: Path | None = None, *, capabilities: Capabilities = MEMORY) -> None:
        self.folder = folder or Path(tempfile.mkdtemp())
        self.capabilities = capabilities
        super().__init__(self.folder)

    def cursors(self, runs: Sequence[Run]) -> Mapping[str, TargetState]:
        """Return the states of the runs' boxes."""
        states = super().cursors(runs)
        boxes = {identity: self.box(identity) or Box() for identity in states}
        return {
            identity: replace(state, deleted=box.deleted, edited=tuple(box.edited), extras=box.extras)
            for (identity, state), box in zip(states.items(), boxes.values(), strict=True)
        }

    def open(self, run: Run, content: ContentOptions) -> MemoryTarget:
        """Return the target; no box is made yet."""
        return MemoryTarget(self, run, content)

    def box(self, identity: str) -> Box | None:
        """Return a copy of a run's box."""
        state = load_state(self._folder(identity))
        return Box(**state) if state["cursor"] else None

    @contextlib.contextmanager
    def opened(self, identity: str = "uid-a") -> Iterator[Box]:
        """Yield a run's box, and store what the block made of it."""
        box = self.box(identity)
        assert box is not None
        yield box
        replace_file(self._folder(identity) / "run.json", json.dumps(asdict(box)))

    def edit(self, identity: str, **facts: Any) -> None:
        """Change `name`, `notes` or `tags` as a person does in a UI."""
        with self.opened(identity) as box:
            box.facts |= facts
            box.edited = sorted({*box.edited, *facts})


class MemoryTarget(JsonTarget):
    """The box of one run. It replaces points, and refuses steps that do not increase if the exporter declares that."""

    def __init__(self, exporter: MemoryExporter, run: Run, content: ContentOptions) -> None:
        super().__init__(exporter._folder(run.identity), content)
        self._exporter = exporter
        self._identity = run.identity
        self._old = Box()

    def where(self) -> str:
        """Return the box's address."""
        return f"memory:{self._identity}"

    def _write(self, deltas: Iterable[Delta], state: dict[str, Any]) -> Applied:
        self._old = self._exporter.box(self._identity) or Box()
        return super()._write(_replacing(deltas, state["points"]), state)

    def _save(self, state: dict[str, Any]) -> None:
        if self._exporter.capabilities.ordered_steps:
            for name, (steps, *_) in state["points"].items():
                if any(one >= other for one, other in pairwise(steps)):
                    raise TargetRefusedError(f"The steps of {name} do not increase, which this target needs.")
        old = self._old
        facts = state["facts"] | {key: old.facts[key] for key in old.edited}
        super()._save(state | {"facts": facts, "edited": old.edited, "extras": old.extras, "deleted": False})


def _replacing(deltas: Iterable[Delta], points: dict[str, list[list[float]]]) -> Iterator[Delta]:
    """Yield `deltas`, after removing from `points` what each of them replaces."""
    for delta in deltas:
        if delta.replace_from is not None:
            for columns in points.values():
                kept = [step < delta.replace_from for step in columns[0]]
                columns[:] = [list(compress(column, kept)) for column in columns]
        yield delta

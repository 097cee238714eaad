"""The reference exporter for tests: the contract in its plainest form, with boxes that tests inspect and change.

The target of a run is one box, a file in a folder that several processes share. Unlike tests/example_exporter.py it
writes in visible steps, takes any capabilities, and refuses steps that do not increase where it declares that.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pickle
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from msgspec.structs import replace

from bridge.errors import BridgeError, ConflictError, TargetRefusedError, TargetUnavailableError
from bridge.exporters.contract import Applied, Capabilities, Exporter, TargetContent, TargetMedia, TargetState
from bridge.files import open_file
from bridge.model import Cursor, DeltaKind, Notice, NoticeKind, Series, Status, sent_facts
from bridge.secrets import Redaction

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from bridge.model import Block, Delta, MediaEvent, Run
    from bridge.options import ContentOptions

MEMORY = Capabilities(
    replaces_points=True,
    time_step=0.0,
    statuses={status: status.value for status in Status},
)
"""What the exporter can do by default: everything, exactly."""

Columns: TypeAlias = "tuple[NDArray[Any], ...]"
"""Row, step, time and value of a series."""


@dataclass(slots=True)
class Box:
    """The target of one run.

    `media` are items by their line in media.jsonl. `cursor` is JSON text. `edited` names the facts that people changed,
    `extras` are further targets of the run.
    """

    identity: str
    cursor: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    points: dict[str, Columns] = field(default_factory=dict)
    media: list[tuple[int, TargetMedia]] = field(default_factory=list)
    edited: set[str] = field(default_factory=set)
    extras: list[str] = field(default_factory=list)
    deleted: bool = False


class MemoryExporter(Exporter):
    """Exports into boxes in `folder`, by default a new one.

    After `fails` is set, the next write of a cursor fails, once.
    """

    name = "memory"

    def __init__(self, folder: Path | None = None, *, capabilities: Capabilities = MEMORY) -> None:
        self.folder = folder or Path(tempfile.mkdtemp())
        self.fails = False
        self._capabilities = capabilities

    @property
    def capabilities(self) -> Capabilities:
        """Return the capabilities that the test chose."""
        return self._capabilities

    def cursors(self, runs: Sequence[Run]) -> Mapping[str, TargetState]:
        """Return the states of the runs' boxes."""
        return {run.identity: self._state(run.identity) for run in runs}

    def _state(self, identity: str) -> TargetState:
        box = self.box(identity)
        if box is None:
            return TargetState()
        state = TargetState(
            exists=True, deleted=box.deleted, edited=tuple(sorted(box.edited)), extras=tuple(box.extras)
        )
        try:
            cursor = None if box.cursor is None else Cursor.from_json(box.cursor, where=self.where(identity))
        except BridgeError as error:
            return replace(state, error=error)
        return replace(state, cursor=cursor)

    def stale(self, run: Run, cursor: Cursor, content: ContentOptions) -> Sequence[str]:
        """Return the facts that differ from those last sent."""
        sent = _sent(run, content)
        return tuple(key for key in sent if cursor.sent.get(key) != sent[key])

    def open(self, run: Run, content: ContentOptions) -> MemoryTarget:
        """Return the target; no box is made yet."""
        return MemoryTarget(self, run, content)

    def box(self, identity: str) -> Box | None:
        """Return a copy of a run's box."""
        try:
            box: Box = pickle.loads(self._file(identity).read_bytes())
        except FileNotFoundError:
            return None
        return box

    def put(self, box: Box) -> None:
        """Store a box, whole and at one instant."""
        file = self._file(box.identity)
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(f".{os.getpid()}.new")
        beside.write_bytes(pickle.dumps(box))
        beside.replace(file)

    @contextlib.contextmanager
    def opened(self, identity: str = "uid-a") -> Iterator[Box]:
        """Yield a run's box, and store what the block made of it."""
        box = self.box(identity)
        assert box is not None
        yield box
        self.put(box)

    def edit(self, identity: str, **facts: Any) -> None:
        """Change `name`, `notes` or `tags` as a person does in a UI."""
        with self.opened(identity) as box:
            box.facts |= facts
            box.edited |= set(facts)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Let one writer at a time in, over threads and processes; a writer's death frees the lock."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def where(self, identity: str) -> str:
        """Return the address of a run's box."""
        return f"memory:{identity}"

    def _file(self, identity: str) -> Path:
        return self.folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.box"


class MemoryTarget:
    """The box of one run."""

    def __init__(self, exporter: MemoryExporter, run: Run, content: ContentOptions) -> None:
        self._exporter = exporter
        self._run = run
        self._content = content
        self._last: str | None = None

    def apply(self, delta: Delta) -> Applied:
        """Drop what no cursor covers, add points and media, then the facts, then the cursor.

        Raises ConflictError if another export has changed the box since this one last wrote to it.
        """
        with self._exporter.lock():
            box = self._exporter.box(self._run.identity) or Box(self._run.identity)
            if self._last is not None and box.cursor != self._last:
                raise ConflictError(f"{self.where()} was changed by another export.", hint="Export again.")
            if delta.remember is not None:
                before = None if box.cursor is None else Cursor.from_json(box.cursor, where=box.identity)
                box.cursor = delta.remember.with_(sent={} if before is None else before.sent).to_json()
                self._exporter.put(box)
            done = self._add(box, delta, visible=True)
            self._exporter.put(box)
            self._last = box.cursor
            return done

    def rebuild(self, deltas: Iterable[Delta]) -> Applied:
        """Fill a new box, and put it in place of the old one at the end."""
        with self._exporter.lock():
            old = self._exporter.box(self._run.identity) or Box(self._run.identity)
            facts = {key: old.facts[key] for key in old.edited}
            new = Box(self._run.identity, facts=facts, edited=old.edited, extras=old.extras)
            done = Applied()
            for delta in deltas:
                done += self._add(new, delta, visible=False)
            self._exporter.put(new)
            return done

    def read(self, *, only: Collection[str] | None = None) -> TargetContent:
        """Return the content of the box."""
        box = self._exporter.box(self._run.identity)
        if box is None:
            raise TargetRefusedError(f"{self.where()} does not exist.")
        facts = box.facts
        return TargetContent(
            series={
                name: Series(name, step, time, value)
                for name, (_, step, time, value) in box.points.items()
                if only is None or name in only
            },
            names=frozenset(name for name, columns in box.points.items() if len(columns[0])),
            params=facts.get("params", {}),
            tags=facts.get("tags", ()),
            notes=facts.get("notes", ""),
            name=facts.get("name", ""),
            status=facts.get("status", ""),
            start=facts.get("start"),
            end=facts.get("end"),
            media=tuple(item for _, item in sorted(box.media, key=lambda pair: pair[0])),
            cursor=self._exporter.cursors([self._run])[self._run.identity].cursor,
        )

    def where(self) -> str:
        """Return the box's address."""
        return self._exporter.where(self._run.identity)

    def _add(self, box: Box, delta: Delta, *, visible: bool) -> Applied:
        """Apply `delta` to `box`; if `visible`, store it after each step, as a real target would."""
        run, capabilities = self._run, self._exporter.capabilities
        if delta.kind is DeltaKind.NEW or delta.before is not None:
            _cut(box, delta.before or Cursor(identity=run.identity, path=str(run.path)))
        if delta.replace_from is not None:
            for name, columns in list(box.points.items()):
                kept = columns[1] < delta.replace_from
                box.points[name] = tuple(column[kept] for column in columns)
        for block in delta.blocks:
            _add_block(box, block, ordered=capabilities.ordered_steps)
            if visible:
                self._exporter.put(box)
        items = [(event, _item(event)) for event in delta.media]
        box.media += [(event.line, item) for event, item in items if item is not None]
        notices = [Notice(NoticeKind.MISSING_FILE, event.path) for event, item in items if item is None]
        shown = _shown(delta.run, self._content)
        if not delta.more:
            params = delta.run.params
            notices += [Notice(NoticeKind.REDACTED, key) for key in params if shown["params"][key] is not params[key]]
        shown |= {
            "status": capabilities.statuses[delta.run.status],
            "start": delta.run.start,
            "end": delta.run.end,
        }
        box.facts |= {key: value for key, value in shown.items() if key not in box.edited}
        box.deleted = False
        if visible:
            self._exporter.put(box)
        if self._exporter.fails:
            self._exporter.fails = False
            raise TargetUnavailableError("The target went away, as the test asked for.")
        box.cursor = delta.after.with_(sent=_sent(delta.run, self._content)).to_json()
        media = sum(item is not None for _, item in items)
        return Applied(points=delta.points, media=media, notices=tuple(notices))


def _cut(box: Box, before: Cursor) -> None:
    """Drop what lies past the cursor `before`, the rest of an attempt that failed."""
    for name, columns in list(box.points.items()):
        kept = columns[0] < before.rows
        box.points[name] = tuple(column[kept] for column in columns)
    box.media = [(line, item) for line, item in box.media if line < before.media_lines]


def _add_block(box: Box, block: Block, *, ordered: bool) -> None:
    """Add the points of a block. Raises TargetRefusedError if `ordered` and the steps do not increase."""
    for number, name in enumerate(block.names):
        here = block.present[number]
        if not here.any():
            continue
        new: Columns = (block.row[here], block.step[here], block.time[here], block.values[number][here])
        old = box.points.get(name)
        if old is not None:
            # A whole run in several deltas does not say what came before: points that come again are replaced.
            again = set(zip(new[0].tolist(), new[1].tolist(), strict=True))
            kept = [pair not in again for pair in zip(old[0].tolist(), old[1].tolist(), strict=True)]
            new = tuple(np.concatenate((mine[kept], theirs)) for mine, theirs in zip(old, new, strict=True))
        if ordered and (new[1][1:] <= new[1][:-1]).any():
            raise TargetRefusedError(f"The steps of {name} do not increase, which this target needs.")
        box.points[name] = new


def _item(event: MediaEvent) -> TargetMedia | None:
    """Return a media event as the target holds it, or None if its file is missing."""
    try:
        with open_file(event.file) as file:
            digest = hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return None
    return TargetMedia(event.tag, event.step, event.index, digest, event.caption)


def _shown(run: Run, content: ContentOptions) -> dict[str, Any]:
    """Return name, notes, tags and params with secrets masked."""
    redaction = Redaction(content.redact)
    return {
        "name": run.name,
        "notes": run.notes,
        "tags": tuple(redaction.tag(tag) for tag in run.tags),
        "params": {key: redaction.value(key, value) for key, value in run.params.items()},
    }


def _sent(run: Run, content: ContentOptions) -> dict[str, str]:
    """Return what the cursor records of the facts: digests of those of `_shown`, and status and times."""
    shown = _shown(run, content)
    texts = shown | {"params": sorted((key, repr(value)) for key, value in shown["params"].items())}
    return sent_facts(run) | {
        key: hashlib.sha256(repr(value).encode()).hexdigest()[:16] for key, value in texts.items()
    }

"""The reference exporter, for tests: the contract in its plainest form, with abilities to choose and failures to order.

Targets live in this process, or as one file each in a folder, so that several processes can share them. Every
write can be made to fail, or to be the process's last.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import hashlib
import os
import pickle
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from bridge.errors import BridgeError, ConflictError, TargetRefusedError
from bridge.exporters.contract import Applied, Capabilities, Exporter, TargetContent, TargetState
from bridge.model import Cursor, DeltaKind, Notice, NoticeKind, Series, Status, sent_facts
from bridge.secrets import Redaction
from tests.memory_exporter_box import Box, Failure, Picture, add_block, cut, picture_of, remove, stored_time

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from bridge.model import Delta, Run, Scalar
    from bridge.options import ContentOptions

__all__ = ["MEMORY", "Box", "Failure", "MemoryExporter", "MemoryTarget", "Picture"]

MEMORY = Capabilities(
    replaces_points=True,
    time_step=0.0,
    statuses={status: status.value for status in Status},
)
"""What the exporter can do unless other abilities are chosen: everything, exactly."""

EDITABLE = ("name", "notes", "tags")

_LOCK = threading.RLock()


class MemoryExporter(Exporter):
    """Keep runs in boxes: files in `folder`, or without it objects that are pickled with the exporter."""

    name = "memory"

    def __init__(
        self, folder: Path | None = None, *, capabilities: Capabilities = MEMORY, failure: Failure | None = None
    ) -> None:
        self.folder = folder
        self.failure = failure
        self._abilities = capabilities
        self._boxes: dict[str, Box] = {}

    @property
    def capabilities(self) -> Capabilities:
        """As chosen."""
        return self._abilities

    def prepare(self, runs: Sequence[Run], content: ContentOptions) -> None:
        """Nothing to prepare."""

    def cursors(self, runs: Sequence[Run]) -> Mapping[str, TargetState]:
        """Return what the boxes say."""
        return {run.identity: self._known(run.identity) for run in runs}

    def _known(self, identity: str) -> TargetState:
        box = self.box(identity)
        if box is None:
            return TargetState()
        known = TargetState(
            exists=True, deleted=box.deleted, edited=tuple(sorted(box.edited)), extras=tuple(box.extras)
        )
        try:
            cursor = None if box.cursor is None else Cursor.from_json(box.cursor, where=self.place(identity))
        except BridgeError as error:
            return replace(known, error=error)
        return replace(known, cursor=cursor)

    def stale(self, run: Run, cursor: Cursor, content: ContentOptions) -> Sequence[str]:
        """Return the facts that are not as last sent."""
        sent = _sent(run, content)
        return tuple(key for key in sent if cursor.sent.get(key) != sent[key])

    def open(self, run: Run, content: ContentOptions) -> MemoryTarget:
        """Return the target; no box is made yet."""
        return MemoryTarget(self, run, content)

    def finish(self, runs: Sequence[Run], content: ContentOptions) -> Sequence[Notice]:
        """Nothing concerns several runs here."""
        return ()

    def close(self) -> None:
        """Nothing is kept open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def box(self, identity: str) -> Box | None:
        """Return a copy of what is held of a run."""
        if self.folder is None:
            return copy.deepcopy(self._boxes.get(identity))
        try:
            box: Box = pickle.loads(self._file(identity).read_bytes())
        except FileNotFoundError:
            return None
        return box

    def put(self, box: Box) -> None:
        """Hold `box` from now on, whole and at one instant; tests tamper with it."""
        if self.folder is None:
            self._boxes[box.identity] = copy.deepcopy(box)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self._file(box.identity)
        beside = file.with_suffix(f".{os.getpid()}.new")
        beside.write_bytes(pickle.dumps(box))
        beside.replace(file)

    def remove(self, identity: str) -> None:
        """Forget all that is held of a run, as if it had never been exported."""
        self._boxes.pop(identity, None)
        if self.folder is not None:
            self._file(identity).unlink(missing_ok=True)

    def edit(self, identity: str, **facts: Any) -> None:
        """Change `name`, `notes` or `tags` as a person does in a UI."""
        box = self.box(identity)
        assert box is not None
        assert set(facts) <= set(EDITABLE)
        box.facts |= facts
        box.edited |= set(facts)
        self.put(box)

    def write(self, box: Box, *, cursor: bool = False) -> None:
        """One write of a target: may fail as ordered. `cursor` says that it carries one."""
        due = self.failure is not None and self.failure.is_due(cursor=cursor)
        if not due or (self.failure is not None and self.failure.after):
            self.put(box)
        if due and self.failure is not None:
            self.failure.happen()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One writer at a time, over threads and processes; freed by the system when its holder dies."""
        with _LOCK:
            if self.folder is None:
                yield
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "lock").open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield

    def _file(self, identity: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.box"

    def place(self, identity: str) -> str:
        """Where the box of a run is."""
        return f"memory:{identity}" if self.folder is None else str(self._file(identity))


class MemoryTarget:
    """The box of one run."""

    def __init__(self, exporter: MemoryExporter, run: Run, content: ContentOptions) -> None:
        self._exporter = exporter
        self._run = run
        self._content = content
        self._last: str | None = None

    def apply(self, delta: Delta) -> Applied:
        """Cut off what no cursor covers, add the points, then the facts, then the cursor.

        Raises ConflictError where another export has changed the box since this one last wrote to it.
        """
        with self._exporter.lock():
            box = self._exporter.box(self._run.identity) or Box(self._run.identity)
            if self._last is not None and box.cursor != self._last:
                raise ConflictError(f"{self.where()} was changed by another export.", hint="Export again.")
            if delta.remember is not None:
                box.cursor = delta.remember.with_(sent=_sent_before(box)).to_json()
                self._exporter.write(box, cursor=True)
            done = self._add(box, delta, self._exporter.write)
            self._last = box.cursor
            return done

    def rebuild(self, deltas: Iterable[Delta]) -> Applied:
        """Fill a new box, out of sight, and put it in the old one's place at the end."""
        with self._exporter.lock():
            old = self._exporter.box(self._run.identity)
            new = Box(self._run.identity)
            if old is not None:
                new.generation, new.extras, new.edited = old.generation + 1, old.extras, old.edited
                new.facts = {key: old.facts[key] for key in old.edited}
            done = Applied()
            for delta in deltas:
                done += self._add(new, delta, _out_of_sight)
            self._exporter.write(new, cursor=True)
            return done

    def read(self, *, only: Collection[str] | None = None) -> TargetContent:
        """Return the box in the source's words."""
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
            media=tuple(picture.held for picture in sorted(box.media, key=lambda picture: picture.line)),
            cursor=self._exporter.cursors([self._run])[self._run.identity].cursor,
        )

    def where(self) -> str:
        """Return the box's file, or a name for it."""
        return self._exporter.place(self._run.identity)

    def _add(self, box: Box, delta: Delta, write: Any) -> Applied:
        capabilities = self._exporter.capabilities
        if delta.kind is DeltaKind.NEW:
            cut(box, Cursor(identity=self._run.identity, path=str(self._run.path)))
        elif delta.before is not None:
            cut(box, delta.before)
        remove(box, delta, capabilities)
        for block in delta.blocks:
            add_block(box, block, capabilities)
            write(box)
        notices = list(_losses(delta, self._content, capabilities))
        media = 0
        for event in delta.media:
            picture = picture_of(event)
            if picture is None:
                notices.append(Notice(NoticeKind.MISSING_FILE, event.path))
            else:
                box.media.append(picture)
                media += 1
        write(box)
        box.facts |= {key: value for key, value in self._facts(delta.run).items() if key not in box.edited}
        box.deleted = False
        write(box)
        box.cursor = delta.after.with_(sent=_sent(delta.run, self._content)).to_json()
        write(box, cursor=True)
        return Applied(points=delta.points, media=media, notices=tuple(notices))

    def _facts(self, run: Run) -> dict[str, Any]:
        capabilities = self._exporter.capabilities
        return {
            "name": run.name,
            "notes": run.notes,
            "tags": _shown_tags(run, self._content),
            "params": _shown_params(run, self._content),
            "status": capabilities.statuses.get(run.status, ""),
            "start": float(stored_time(np.float64(run.start), capabilities)),
            "end": None if run.end is None else float(stored_time(np.float64(run.end), capabilities)),
        }


def _out_of_sight(box: Box, *, cursor: bool = False) -> None:
    """Fail the write of a box before it can be seen."""


def _shown_params(run: Run, content: ContentOptions) -> dict[str, Scalar]:
    redaction = Redaction(content.redact)
    return {key: redaction.value(key, value) for key, value in run.params.items()}


def _shown_tags(run: Run, content: ContentOptions) -> tuple[str, ...]:
    redaction = Redaction(content.redact)
    return tuple(redaction.tag(tag) for tag in run.tags)


def _losses(delta: Delta, content: ContentOptions, capabilities: Capabilities) -> list[Notice]:
    run = delta.run
    found = [
        Notice(NoticeKind.REDACTED, key)
        for key, shown in _shown_params(run, content).items()
        if shown is not run.params[key] and not delta.more
    ]
    if not capabilities.infinities:
        for block in delta.blocks:
            infinite = (np.isinf(block.values) & block.present).sum(axis=1)
            found += [
                Notice(NoticeKind.CLIPPED, name, count=int(count))
                for name, count in zip(block.names, infinite, strict=True)
                if count
            ]
    return found


def _sent(run: Run, content: ContentOptions) -> dict[str, str]:
    params = sorted((key, repr(value)) for key, value in _shown_params(run, content).items())
    facts = {"name": run.name, "notes": run.notes, "tags": repr(_shown_tags(run, content)), "params": repr(params)}
    return sent_facts(run) | {key: hashlib.sha256(text.encode()).hexdigest()[:16] for key, text in facts.items()}


def _sent_before(box: Box) -> Mapping[str, str]:
    cursor = None if box.cursor is None else Cursor.from_json(box.cursor, where=box.identity)
    return {} if cursor is None else cursor.sent

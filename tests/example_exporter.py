"""An example exporter: each run becomes a folder with `run.json` and copies of its media files.

`run.json` holds points, facts and cursor. It is replaced in one step, so data and cursor change together.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import BridgeError, ConflictError
from bridge.exporters.contract import Applied, Capabilities, Exporter, TargetContent, TargetMedia, TargetState
from bridge.files import open_file
from bridge.locks import file_lock
from bridge.model import Cursor, DeltaKind, Notice, NoticeKind, Series, Status, sent_facts
from bridge.secrets import Redaction
from logger.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from bridge.model import Delta, Run
    from bridge.options import ContentOptions


class JsonExporter(Exporter):
    """Exports runs into folders below `logdir`."""

    name = "json"
    capabilities = Capabilities(time_step=0.0, statuses={status: status.value for status in Status})

    def __init__(self, logdir: Path) -> None:
        self._logdir = Path(logdir).absolute()

    def cursors(self, runs: Sequence[Run]) -> Mapping[str, TargetState]:
        """Return what the folders say, by identity."""
        return {run.identity: _target_state(self._folder(run.identity)) for run in runs}

    def stale(self, run: Run, cursor: Cursor, content: ContentOptions) -> Sequence[str]:
        """Return which facts differ from those last sent."""
        return [key for key, digest in _digests(run, content).items() if cursor.sent.get(key) != digest]

    def open(self, run: Run, content: ContentOptions) -> JsonTarget:
        """Return the run's folder, which need not exist."""
        return JsonTarget(self._folder(run.identity), content)

    def _folder(self, identity: str) -> Path:
        return self._logdir / hashlib.sha256(identity.encode()).hexdigest()[:32]


class JsonTarget:
    """The folder of one run."""

    def __init__(self, folder: Path, content: ContentOptions) -> None:
        self._folder = folder
        self._content = content
        self._written = ""

    def apply(self, delta: Delta) -> Applied:
        """Add `delta`. A delta of kind NEW replaces what there was."""
        if delta.kind is DeltaKind.NEW:
            return self.rebuild([delta])
        with self._locked() as state:
            before, after = _position(state["cursor"]), _position(delta.after.to_json())
            if before == after and delta.after.complete and delta.kind is not DeltaKind.SAME:
                return Applied()
            # The parts of a full read have no `before`: each follows the one that this target wrote last.
            last = json.dumps(state)
            follows = _position(delta.before.to_json()) == before if delta.before else self._written == last
            if not follows:
                raise ConflictError(f"{self.where()} was changed by another export.", hint="Export again.")
            return self._write([delta], state)

    def rebuild(self, deltas: Iterable[Delta]) -> Applied:
        """Replace the target by a complete new one."""
        with self._locked():
            return self._write(deltas, {"points": {}, "media": []})

    def read(self, *, only: Collection[str] | None = None) -> TargetContent:
        """Return what `run.json` holds."""
        state = json.loads((self._folder / "run.json").read_bytes())
        facts = state["facts"]
        return TargetContent(
            series={
                name: Series(name, *(np.array(column, kind) for column, kind in zip(columns, "qdd", strict=True)))
                for name, columns in state["points"].items()
                if only is None or name in only
            },
            names=frozenset(name for name, columns in state["points"].items() if columns[0]),
            media=tuple(TargetMedia(**item) for item in state["media"]),
            cursor=Cursor.from_json(state["cursor"], where=self.where()),
            **{**facts, "tags": tuple(facts["tags"])},
        )

    def where(self) -> str:
        """Return the folder's path."""
        return str(self._folder)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[dict[str, Any]]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with file_lock(self._folder / "lock"):
            yield load_state(self._folder)

    def _write(self, deltas: Iterable[Delta], state: dict[str, Any]) -> Applied:
        done = Applied()
        for delta in deltas:
            for block in delta.blocks:
                for name, present, values in zip(block.names, block.present, block.values, strict=True):
                    columns = state["points"].setdefault(name, [[], [], []])
                    for column, array in zip(columns, (block.step, block.time, values), strict=True):
                        column.extend(array[present].tolist())
            items = [self._copy(event) for event in delta.media]
            state["media"] += [item for item in items if isinstance(item, dict)]
            state["facts"], masked = _facts(delta.run, self._content)
            notices = [item for item in items if isinstance(item, Notice)]
            notices += [Notice(NoticeKind.REDACTED, key) for key in masked if not delta.more]
            state["cursor"] = delta.after.with_(sent=_digests(delta.run, self._content)).to_json()
            done += Applied(delta.points, len(items), notices=tuple(notices))
        self._save(state)
        return done

    def _save(self, state: dict[str, Any]) -> None:
        self._written = json.dumps(state)
        replace_file(self._folder / "run.json", self._written)

    def _copy(self, event: Any) -> dict[str, Any] | Notice:
        try:
            with open_file(event.file) as file:
                data = file.read()
            digest = hashlib.sha256(data).hexdigest()
            (self._folder / f"{digest}.{event.format}").write_bytes(data)
        except FileNotFoundError:
            return Notice(NoticeKind.MISSING_FILE, f"{event.tag}: {event.path}")
        return {"tag": event.tag, "step": event.step, "index": event.index, "digest": digest, "caption": event.caption}


def load_state(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(FileNotFoundError):
        state: dict[str, Any] = json.loads((folder / "run.json").read_bytes())
        return state
    return {"cursor": None}


def _target_state(folder: Path) -> TargetState:
    text = load_state(folder)["cursor"]
    try:
        return TargetState(exists=text is not None, cursor=Cursor.from_json(text, where=str(folder)) if text else None)
    except BridgeError as error:  # made by a newer bridge
        return TargetState(exists=True, error=error)


_POSITION = ("rows", "digest", "media_lines", "media_digest", "complete", "replacing")


def _position(text: str | None) -> object:
    """Return what is equal for cursors that cover the same rows and media lines."""
    cursor = None if text is None else json.loads(text)
    return cursor and [cursor.get(key) for key in _POSITION]


def _facts(run: Run, content: ContentOptions) -> tuple[dict[str, Any], list[str]]:
    """Return the run's facts with secrets masked, and the params that were masked."""
    redaction = Redaction(content.redact)
    params = {key: redaction.value(key, value) for key, value in run.params.items()}
    tags = [redaction.tag(tag) for tag in run.tags]
    facts = {"params": params, "tags": tags, "notes": run.notes, "name": run.name, "status": run.status.value}
    masked = [key for key, value in params.items() if value is not run.params[key]]
    return facts | {"start": run.start, "end": run.end}, masked


def _digests(run: Run, content: ContentOptions) -> dict[str, str]:
    """Return what the cursor remembers of the facts that were sent, with digests of the long ones."""
    facts = {key: repr(_facts(run, content)[0][key]) for key in ("params", "tags", "notes", "name")}
    return sent_facts(run) | {key: hashlib.sha256(text.encode()).hexdigest()[:16] for key, text in facts.items()}

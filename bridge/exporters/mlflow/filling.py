"""Bring one delta into one MLflow run that is there: files first, then points and facts, the cursor with the last."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import RebuildNeededError
from bridge.exporters.contract import Applied
from bridge.exporters.mlflow.artifacts import names_map, stage_checkpoints, stage_files, stage_maps
from bridge.exporters.mlflow.best import Best, best_names, check_bests, running_best
from bridge.exporters.mlflow.changes import Changes, changes_of
from bridge.exporters.mlflow.checkpoints import CHECKPOINTS_FILE
from bridge.exporters.mlflow.database import Change
from bridge.exporters.mlflow.facts import Facts, facts_of
from bridge.exporters.mlflow.foresight import point_losses
from bridge.exporters.mlflow.media import MEDIA_FILE, stage_media
from bridge.exporters.mlflow.names import keys_of
from bridge.exporters.mlflow.points import series_of
from bridge.exporters.mlflow.shelf import Shelf
from bridge.exporters.mlflow.stage import Stage
from bridge.exporters.mlflow.sweeps import Sweep
from bridge.exporters.mlflow.tags import TAG_LIMIT, Tag, sweep_of
from bridge.model import DeltaKind, Notice, NoticeKind, Points

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from bridge.cursor import ContentOptions, Cursor
    from bridge.exporters.mlflow.place import Place
    from bridge.exporters.mlflow.records import Record
    from bridge.model import Delta, Run, Series

__all__ = ["Filling"]


_ROOM = 800
"""Characters of a cursor for the tags of media that have no place."""


@dataclass(slots=True)
class _Work:
    """One delta on its way: what goes into the cursor's `sent` and `extra`, tags to set beside the facts, notices."""

    delta: Delta
    keys: Mapping[str, str]
    sent: dict[str, str]
    extra: dict[str, Any]
    best: Best
    facts: Facts | None = None
    changes: Changes | None = None
    tags: dict[str, str] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)


@dataclass(slots=True)
class Filling:
    """One MLflow run as it is known to be, on its way to what the run directory says.

    `record` and `params` are what the run holds. `files`: whether artifacts can be stored. `identity` are the tags
    that make it the target. `before_last` is called before the write that holds the last cursor of an export.
    """

    place: Place
    run: Run
    content: ContentOptions
    record: Record
    params: dict[str, str]
    files: bool
    identity: Mapping[str, str]
    before_last: Callable[[], None]

    @property
    def cursor(self) -> Cursor | None:
        """What the run has acknowledged. Raises NewerFormatError."""
        return self.record.cursor(f"MLflow run {self.record.run_id}")

    def fill(self, delta: Delta) -> Applied:
        """Bring `delta` in. Raises TargetError; RebuildNeededError with nothing changed."""
        if Tag.PENDING in self.record.tags and (delta.lowers or delta.kind is DeltaKind.REWIND):
            raise RebuildNeededError("points that no longer count were sent by an export that was stopped")
        if self._has_left_over_media(delta):
            raise RebuildNeededError("media that no longer count were sent by an export that was stopped")
        check_bests(delta, self.content)
        work = self._work(delta)
        if delta.remember is not None:
            self._remember(delta.remember)
        with Stage() as stage:
            if self.files:
                self._stage(stage, work)
            else:
                self._do_without_files(work)
            if self.files and delta.media:
                self._set_tags({Tag.PENDING_MEDIA: str(delta.after.media_lines)})
            work.notices += stage.send(self.place.api, self.record.run_id)
            size = stage.bytes
        after = delta.after.with_(sent=work.sent, extra=work.extra)
        if not delta.more:
            self.before_last()
        self._write(work, after)
        return Applied(points=delta.points, media=len(delta.media), bytes=size, notices=tuple(work.notices))

    def _work(self, delta: Delta) -> _Work:
        before = self.cursor
        extra = dict(before.extra) if before else {}
        rename = dict(self.content.rename)
        keys = keys_of([*best_names(self.content), *delta.metrics], rename)
        best = running_best(delta, self.content, extra.get("best", {}), lambda name: self._held(keys.get(name, name)))
        work = _Work(delta, keys, dict(before.sent) if before else {}, extra, best)
        if best.state:
            extra["best"] = best.state
        work.notices += point_losses(delta, keys, rename)
        if not delta.more:
            facts = work.facts = facts_of(self.run, self.content)
            work.notices += [*facts.notices, *self.place.naming.notices(self.run)]
            in_place = self.place.database is not None
            work.changes = changes_of(self.record, self.params, facts, before, in_place=in_place)
            start = work.sent.get("start")
            work.sent = dict(facts.sent)
            if start is not None and not in_place:
                work.sent["start"] = start  # MLflow's API cannot move it
            work.tags |= self._parent()
        return work

    def _held(self, key: str) -> Series | None:
        points = self.place.api.history(self.record.run_id, key)
        return series_of(key, points) if points else None

    def _parent(self) -> dict[str, str]:
        """The tag that nests the run below its sweep's parent."""
        sweep = sweep_of(self.run)
        if sweep is None or self.content.flat or Tag.PARENT in self.record.tags:
            return {}
        parent = Sweep(self.place, self.record.experiment_id, sweep).parent(
            start=facts_of(self.run, self.content).start
        )
        return {Tag.PARENT: parent} if parent is not None else {}

    def _has_left_over_media(self, delta: Delta) -> bool:
        """Whether an export that was stopped has sent media of which some do not count any more.

        It had marked the run with the lines that it was at; of those lines some now have nothing to show for.
        """
        cursor, until = self.cursor, self.record.tags.get(Tag.PENDING_MEDIA)
        acknowledged = cursor.media_lines if cursor is not None else 0
        if until is None or acknowledged >= int(until):
            return False
        return len(delta.media) < delta.after.media_lines - acknowledged

    def _set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags before the delta itself is written; nothing where they are so."""
        if tags.items() <= self.record.tags.items():
            return
        change = Change(expected_cursor=self.record.tags.get(Tag.CURSOR), tags=tags)
        self.place.writer.write(self.record.run_id, change)
        self._now_has(tags, ())

    def _remember(self, cursor: Cursor) -> None:
        before = self.cursor
        if before is not None:
            cursor = cursor.with_(sent=before.sent, extra=before.extra)
        self._set_tags({Tag.CURSOR: cursor.to_json()})

    def _stage(self, stage: Stage, work: _Work) -> None:
        """Stage the files of the delta and, with the last one, those of the run."""
        extra = work.extra
        extra.pop("no_files", None)
        media = stage_media(stage, self.run.identity, work.delta.media)
        work.notices += media.notices
        shelf = Shelf(self.place, self.record)
        if media.names:
            shelf.add_names(stage, MEDIA_FILE, media.names)
            extra["odd_media"] = True
        if media.shown:
            work.tags |= shelf.shows_images()
        if media.captions:
            work.tags |= shelf.add_captions(stage, media.captions)
        if work.facts is None:
            return
        files, notices = stage_files(stage, self.run, self.content, extra.get("files", {}))
        work.notices += notices
        maps = stage_maps(stage, work.keys, work.facts, extra.get("maps", ""))
        extra |= {key: value for key, value in (("files", files), ("maps", maps)) if value}
        if self.content.checkpoints:
            extra["checkpoints"], names, notices = stage_checkpoints(stage, self.run, extra.get("checkpoints", {}))
            work.notices += notices
            if names:
                shelf.add_names(stage, CHECKPOINTS_FILE, names)

    def _do_without_files(self, work: _Work) -> None:
        """Say what is left out where a database alone is written to and a server keeps the files."""
        hint = "the server keeps the files: export with --tracking-uri SERVER --database-uri DATABASE to send them too"
        lost = _lost(work.extra, (event.tag for event in work.delta.media))
        if work.delta.media:
            work.notices.append(Notice(NoticeKind.LEFT_OUT, "media", hint, count=len(work.delta.media)))
        if lost:
            work.extra["lost_media"] = lost
        if work.facts is not None:
            work.extra["no_files"] = True
            work.notices.append(Notice(NoticeKind.LEFT_OUT, "artifacts", hint))
            names = names_map(work.keys, work.facts)
            text = json.dumps(names, ensure_ascii=False, separators=(",", ":"))
            if any(names.values()) and len(text) <= TAG_LIMIT:
                work.tags[Tag.NAMES] = text

    def _write(self, work: _Work, after: Cursor) -> None:
        delta, changes = work.delta, work.changes
        missing = {key: value for key, value in self.identity.items() if self.record.tags.get(key) != value}
        tags = {**missing, **work.tags, **(changes.tags if changes else {}), Tag.CURSOR: after.to_json()}
        change = Change(
            expected_cursor=self.record.tags.get(Tag.CURSOR),
            blocks=(*delta.blocks, *work.best.blocks),
            names=work.keys,
            removed=_together(delta.removed, work.best.removed),
            tags=tags,
            deleted_tags=(*(changes.gone if changes else ()), Tag.PENDING_MEDIA),
            params=changes.params if changes else {},
            facts=changes.facts if changes else None,
        )
        self.place.writer.write(self.record.run_id, change)
        self._now_has(tags, (*change.deleted_tags, Tag.PENDING))
        self.params |= change.params
        facts = change.facts
        if facts is not None:
            self._now_has({Tag.NAME: facts.name}, ())
            self.record = replace(self.record, status=facts.status, start=facts.start_ms, end=facts.end_ms)

    def _now_has(self, tags: Mapping[str, str], gone: tuple[str, ...]) -> None:
        kept = {key: value for key, value in self.record.tags.items() if key not in gone}
        self.record = replace(self.record, tags=kept | dict(tags))


def _lost(extra: Mapping[str, Any], tags: Iterable[str]) -> list[str]:
    """The tags whose media have no place, as many as a cursor has room for."""
    kept, room = [], _ROOM
    for tag in dict.fromkeys((*extra.get("lost_media", ()), *tags)):
        room -= len(json.dumps(tag))
        if room > 0:
            kept.append(tag)
    return kept


def _together(one: Points | None, other: Points | None) -> Points | None:
    if one is None or other is None:
        return one if other is None else other
    return Points(
        names=(*one.names, *other.names),
        name=np.concatenate([one.name, other.name + np.int32(len(one.names))]),
        step=np.concatenate([one.step, other.step]),
        time=np.concatenate([one.time, other.time]),
        value=np.concatenate([one.value, other.value]),
    )

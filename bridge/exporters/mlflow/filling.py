"""Bring one delta into one MLflow run that is there: files first, then points and facts, the cursor with the last."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from bridge.errors import RebuildNeededError
from bridge.exporters.mlflow.artifacts import stage_files, stage_maps
from bridge.exporters.mlflow.changes import Changes, changes_of
from bridge.exporters.mlflow.database import Change
from bridge.exporters.mlflow.facts import Facts, facts_of
from bridge.exporters.mlflow.foresight import point_losses
from bridge.exporters.mlflow.names import keys_of
from bridge.exporters.mlflow.stage import Stage
from bridge.exporters.mlflow.tags import Tag
from bridge.model import Applied, DeltaKind, Loss, LossKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bridge.exporters.mlflow.place import Place
    from bridge.exporters.mlflow.records import Record
    from bridge.model import Cursor, Delta, Run, Shape

__all__ = ["Filling"]


@dataclass(slots=True)
class Filling:
    """One MLflow run as it is known to be, on its way to what the run directory says.

    `record` and `params` are what the run holds, `cursor` what it has acknowledged. `before_last` is called before the
    write that holds the last cursor of an export.
    """

    place: Place
    run: Run
    shape: Shape
    record: Record
    params: dict[str, str]
    files: bool
    before_last: Callable[[], None]
    extra_tags: Mapping[str, str] = field(default_factory=dict)
    _losses: list[Loss] = field(default_factory=list)

    @property
    def cursor(self) -> Cursor | None:
        """What the run has acknowledged. Raises NewerFormatError."""
        return self.record.cursor(f"MLflow run {self.record.run_id}")

    def fill(self, delta: Delta) -> Applied:
        """Bring `delta` in. Raises TargetError; RebuildNeededError with nothing changed."""
        if Tag.PENDING in self.record.tags and (delta.lowers or delta.kind is DeltaKind.REWIND):
            raise RebuildNeededError("points that no longer count were sent by an export that was stopped")
        run, last = delta.run, not delta.more
        facts = facts_of(run, self.shape)
        changes = self._changes(facts) if last else None
        keys = keys_of(delta.metrics)
        self._losses = [*point_losses(delta, keys), *(facts.losses if last else ())]
        if delta.remember is not None:
            self._remember(delta.remember)
        before = self.cursor
        sent = dict(before.sent) if before else {}
        extra: dict[str, Any] = dict(before.extra) if before else {}
        with Stage() as stage:
            if last:
                self._stage_files(stage, facts, keys, extra)
                sent = dict(facts.sent)
                if not self._in_place and before and "start" in before.sent:
                    sent["start"] = before.sent["start"]
            size = self._send(stage)
        after = delta.after.with_(sent=sent, extra=extra)
        if last:
            self.before_last()
        self._write(delta, keys, after, changes)
        return Applied(points=delta.points, media=len(delta.media), bytes=size, losses=tuple(self._losses))

    @property
    def _in_place(self) -> bool:
        return self.place.database is not None

    def _changes(self, facts: Facts) -> Changes:
        return changes_of(self.record, self.params, facts, self.cursor, in_place=self._in_place)

    def _remember(self, cursor: Cursor) -> None:
        before = self.cursor
        if before is not None:
            cursor = cursor.with_(sent=before.sent, extra=before.extra)
        text = cursor.to_json()
        if text != self.record.tags.get(Tag.CURSOR):
            change = Change(expected_cursor=self.record.tags.get(Tag.CURSOR), tags={Tag.CURSOR: text})
            self.place.writer.write(self.record.run_id, change)
            self._now_has({Tag.CURSOR: text}, ())

    def _stage_files(self, stage: Stage, facts: Facts, keys: Mapping[str, str], extra: dict[str, Any]) -> None:
        if not self.files:
            extra["no_files"] = True
            return
        extra.pop("no_files", None)
        sent = extra.get("files", {})
        now, losses = stage_files(stage, self.run, self.shape, sent)
        self._losses += losses
        maps = stage_maps(stage, keys, facts, extra.get("maps", ""))
        extra |= {"files": now} if now else {}
        extra |= {"maps": maps} if maps else {}

    def _send(self, stage: Stage) -> int:
        self._losses += stage.send(self.place.api, self.record.run_id)
        return stage.bytes

    def _write(self, delta: Delta, keys: Mapping[str, str], after: Cursor, changes: Changes | None) -> None:
        tags = {Tag.CURSOR: after.to_json()}
        gone: tuple[str, ...] = ()
        params: Mapping[str, str] = {}
        facts = None
        if changes is not None:
            missing = {key: value for key, value in self.extra_tags.items() if self.record.tags.get(key) != value}
            tags = {**missing, **changes.tags, **tags}
            gone, params, facts = changes.gone, changes.params, changes.facts
        change = Change(
            expected_cursor=self.record.tags.get(Tag.CURSOR),
            blocks=delta.blocks,
            names=keys,
            removed=delta.removed,
            tags=tags,
            deleted_tags=gone,
            params=params,
            facts=facts,
        )
        self.place.writer.write(self.record.run_id, change)
        self._now_has(tags, (*gone, Tag.PENDING))
        self.params |= params
        if facts is not None:
            name = {Tag.NAME: facts.name}
            self.record = replace(
                self.record,
                status=facts.status,
                start=facts.start_ms,
                end=facts.end_ms,
                tags={**self.record.tags, **name},
            )

    def _now_has(self, tags: Mapping[str, str], gone: tuple[str, ...]) -> None:
        kept = {key: value for key, value in self.record.tags.items() if key not in gone}
        self.record = replace(self.record, tags=kept | dict(tags))


def no_files_loss() -> Loss:
    """The loss of all artifacts where a database alone is written to and a server keeps the files."""
    return Loss(
        LossKind.LEFT_OUT,
        "artifacts",
        "the server keeps them; export with --tracking-uri SERVER --database-uri DATABASE to send them too",
    )

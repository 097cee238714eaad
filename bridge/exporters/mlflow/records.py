"""What is remembered of MLflow's runs, and which of several is the target of a run directory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bridge.cursor import Cursor
from bridge.errors import NewerFormatError
from bridge.exporters.contract import TargetState
from bridge.exporters.mlflow.facts import digest
from bridge.exporters.mlflow.people import people_tags, read_list
from bridge.exporters.mlflow.tags import TAG_LIMIT, Tag

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Choice", "Record", "choose", "edits"]


@dataclass(frozen=True, slots=True)
class Record:
    """One run of MLflow's: `status` is MLflow's word, times are in milliseconds.

    `tags` are all of its tags or, where `asked` is given, those of these keys.
    """

    run_id: str
    experiment_id: str
    status: str
    deleted: bool
    start: int | None
    end: int | None
    tags: Mapping[str, str]
    asked: frozenset[str] | None = None

    @property
    def name(self) -> str:
        """The run's name."""
        return self.tags.get(Tag.NAME, "")

    @property
    def superseded(self) -> bool:
        """Whether it is one of ours that another took the place of, or a rebuild that is not finished."""
        return self.building or Tag.REPLACED_BY in self.tags or Tag.DUPLICATE_OF in self.tags

    @property
    def building(self) -> bool:
        """Whether it is a rebuild that is not finished, by now or for good."""
        return Tag.BUILDING in self.tags

    def cursor(self, where: str) -> Cursor | None:
        """Its cursor. Raises NewerFormatError."""
        text = self.tags.get(Tag.CURSOR)
        return None if text is None else Cursor.from_json(text, where=where)


@dataclass(frozen=True, slots=True)
class Choice:
    """Of all runs of one identity: the target, the others that still stand, and rebuilds that are not finished.

    `deleted` is the one that a person deleted, where there is no target.
    """

    record: Record | None = None
    extras: tuple[Record, ...] = field(default=())
    building: tuple[Record, ...] = field(default=())
    deleted: Record | None = None

    @property
    def dead_ends(self) -> tuple[Record, ...]:
        """Rebuilds that were to take the place of a run which is no longer the target: killed, or about to find out."""
        if self.record is None:
            return ()
        return tuple(left for left in self.building if left.tags[Tag.BUILDING] != self.record.run_id)

    def known(self, where: str) -> TargetState:
        """What the contract asks for; `where` names the place in errors."""
        extras = tuple(f"{where} run {extra.run_id}" for extra in self.extras)
        if self.record is None:
            return TargetState(deleted=self.deleted is not None, extras=extras)
        try:
            cursor = self.record.cursor(f"{where} run {self.record.run_id}")
        except NewerFormatError as error:
            return TargetState(exists=True, error=error, extras=extras)
        if cursor is not None and not cursor.rows and not cursor.media_lines and not cursor.digest:
            # A run that was made and not filled; points that it may have already are the same points again, unless
            # their times were estimated from other anchors.
            return TargetState(exists=bool(cursor.anchors), extras=extras)
        return TargetState(cursor=cursor, exists=True, edited=edits(self.record, cursor), extras=extras)


def choose(records: Iterable[Record]) -> Choice:
    """Which of the runs of one identity is its target.

    A run that replaces others comes before them; else the smallest run id stays, so that all exports choose alike.
    """
    found = sorted(records, key=lambda record: record.run_id)
    active = [record for record in found if not record.deleted and not record.superseded]
    replaced = {record.tags.get(Tag.REPLACES) for record in active}
    first = next((record for record in active if record.run_id not in replaced), active[0] if active else None)
    leftover = [record for record in found if not record.deleted and record.superseded and not record.building]
    deleted = next((record for record in found if record.deleted and not record.superseded), None)
    return Choice(
        record=first,
        extras=tuple(record for record in [*active, *leftover] if record is not first),
        building=tuple(record for record in found if not record.deleted and record.building),
        deleted=deleted if first is None else None,
    )


def edits(record: Record, cursor: Cursor | None) -> tuple[str, ...]:
    """What people changed of name, notes and tags since they were last sent: `name`, `notes`, `tags.KEY`."""
    if cursor is None or not cursor.sent:
        return ()
    found = []
    if "name" in cursor.sent and digest(record.name) != cursor.sent["name"]:
        found.append("name")
    if "notes" in cursor.sent and digest(record.tags.get(Tag.NOTES, "")) != cursor.sent["notes"]:
        found.append("notes")
    return (*found, *(f"tags.{key}" for key in edited_tags(record)))


def edited_tags(record: Record) -> tuple[str, ...]:
    """The keys of people's tags that are not as the bridge last made them from `bridge.tags`; gone ones too."""
    return tuple(
        key
        for key, value in sent_tags(record).items()
        if (record.asked is None or key in record.asked) and record.tags.get(key) != value[:TAG_LIMIT]
    )


def sent_tags(record: Record) -> Mapping[str, str]:
    """People's tags as the bridge last sent them."""
    return people_tags(read_list(record.tags)).values

"""What must become of one MLflow run so that it says what its run directory says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.errors import RebuildNeededError
from bridge.exporters.mlflow.pairing import PROBE_FAMILY
from bridge.exporters.mlflow.records import edited_tags, edits, sent_tags
from bridge.exporters.mlflow.run_rows import RunFacts
from bridge.exporters.mlflow.tags import Tag

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bridge.cursor import Cursor
    from bridge.exporters.mlflow.facts import Facts
    from bridge.exporters.mlflow.records import Record

__all__ = ["Changes", "changes_of"]

_OWNED = (
    "bridge.checkpoint",
    "bridge.sessions",
    "bridge.restarts",
    "bridge.first_nan_step",
    "bridge.archived",
    Tag.TIME,
)
_OWNED_FAMILIES = ("bridge.checkpoint_", "bridge.slurm.", "bridge.newest.", f"{Tag.TAGS}.", PROBE_FAMILY)


@dataclass(frozen=True, slots=True)
class Changes:
    """Tags and params to set, tags to take away, and the run's own row; None where it stays."""

    tags: Mapping[str, str]
    gone: tuple[str, ...]
    params: Mapping[str, str]
    facts: RunFacts | None


def changes_of(
    record: Record, params: Mapping[str, str], facts: Facts, cursor: Cursor | None, *, in_place: bool
) -> Changes:
    """What differs between a run as it is (`record`, `params`, last sent as `cursor` says) and `facts`.

    What people edited stays. `in_place`: params can be replaced, a start time moved and an end time cleared. Raises
    RebuildNeededError for a param that changed where that is not possible.
    """
    edited = set(edits(record, cursor))
    mended = set(edited_tags(record))
    before = sent_tags(record)
    wanted = {key: value for key, value in facts.people.items() if not _is_peoples(key, record, before, mended)}
    wanted |= facts.own
    if "notes" not in edited and (facts.notes or Tag.NOTES in record.tags):
        wanted[Tag.NOTES] = facts.notes
    name = record.name if "name" in edited else facts.name
    return Changes(
        tags={key: value for key, value in wanted.items() if record.tags.get(key) != value},
        gone=tuple(sorted(_gone(record, facts, before, mended))),
        params=_params(params, facts, cursor, in_place=in_place),
        facts=_row(record, facts, name, in_place=in_place),
    )


def _is_peoples(key: str, record: Record, before: Mapping[str, str], mended: set[str]) -> bool:
    """Whether a person set (or took away) the tag `key` in MLflow, so that it stays as it is there."""
    return key in mended or (key not in before and key in record.tags and Tag.TAGS in record.tags)


def _gone(record: Record, facts: Facts, before: Mapping[str, str], mended: set[str]) -> set[str]:
    """Tags that the bridge set and that no longer hold."""
    people = {key for key in before if key not in facts.people and key not in mended and key in record.tags}
    own = {key for key in record.tags if (key in _OWNED or key.startswith(_OWNED_FAMILIES)) and key not in facts.own}
    return people | own


def _params(held: Mapping[str, str], facts: Facts, cursor: Cursor | None, *, in_place: bool) -> dict[str, str]:
    params = facts.params
    new = {key: value for key, value in params.values.items() if key not in held}
    changed = {
        key: value
        for key, value in params.values.items()
        if key in held and held[key] != value and not params.stays(key)
    }
    left = {key for key in held if key not in params.values and not params.stays(key)}
    if left and cursor is not None and "params" in cursor.sent:
        raise RebuildNeededError(f"the param {min(left)} is gone, and MLflow cannot take a param away")
    if changed and not in_place:
        raise RebuildNeededError(f"the param {min(changed)} changed, and MLflow cannot change a param")
    return new | changed


def _row(record: Record, facts: Facts, name: str, *, in_place: bool) -> RunFacts | None:
    now = (record.status, record.name, record.start, record.end)
    start = facts.start if in_place or record.start is None else record.start
    if (facts.status, name, start, facts.end) == now:
        return None
    if not in_place and facts.end is None and (facts.status, name) == now[:2]:
        return None  # an end time cannot be cleared through the API: the run is running with its old end
    return RunFacts(status=facts.status, name=name, start_ms=start, end_ms=facts.end)

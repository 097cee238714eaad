"""A rebuild: a complete new run first, then it takes the old one's place, with what people did to that."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.exporters.mlflow.artifacts import MARK
from bridge.exporters.mlflow.database import Change, NewRun, new_run_id
from bridge.exporters.mlflow.media import parse_path
from bridge.exporters.mlflow.records import edited_tags, edits, sent_tags
from bridge.exporters.mlflow.run_rows import ConflictError, RunFacts
from bridge.exporters.mlflow.stage import Stage
from bridge.exporters.mlflow.tags import Tag

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bridge.exporters.mlflow.api import Experiment
    from bridge.exporters.mlflow.facts import Facts
    from bridge.exporters.mlflow.place import Place
    from bridge.exporters.mlflow.records import Record
    from bridge.model import Run

__all__ = ["make_beside", "take_place"]

_TRIES = 50
_OWN_FILES = re.compile(
    r"(?:hparams\.yaml|sidecar\.json|metrics\.csv|media\.jsonl|summary\.json|" + re.escape(MARK) + r")"
    r"|bridge/.*|checkpoints/.*|images/.*\+bridge-[0-9a-f]{16}\+compressed\.webp"
)


def make_beside(
    place: Place, run: Run, experiment: Experiment, facts: Facts, tags: Mapping[str, str], old: Record | None
) -> str:
    """Make an empty run that nobody takes for the target of `run` yet; its id.

    In a database the id follows from that of `old`; one that a stopped rebuild has left there is passed over.
    """
    tags = {**tags, Tag.BUILDING: old.run_id if old is not None else "nothing"}
    database = place.database
    if database is None:
        return place.api.make_run(experiment.id, name=facts.name, start=facts.start, tags=tags)
    before = old.run_id if old is not None else None
    new = NewRun(experiment.id, facts.name, facts.start, facts.own.get("mlflow.user", "unknown"))
    for _ in range(_TRIES):
        run_id = new_run_id(experiment.unique, run.identity, replaces=before)
        try:
            database.write(run_id, Change(expected_cursor=None, tags=tags, create=new))
        except ConflictError:
            before = run_id
            continue
        place.check_run(run_id, None, made=True)
        return run_id
    raise ConflictError(f"{place.address.shown}: {_TRIES} rebuilds of {run.path} were stopped.", hint="mlflow gc")


@dataclass(frozen=True, slots=True)
class _Carried:
    """What people did to the old run that the new one takes over."""

    tags: Mapping[str, str]
    gone: tuple[str, ...]
    name: str | None


def take_place(place: Place, old: Record | None, new: Record, others: Sequence[Record], *, files: bool) -> None:
    """Put the complete run `new` in the place of `old`, and `others` away.

    What people edited, their tags and their files go along; children of `old` become those of `new`.
    """
    carried = _carried(place, old, new) if old is not None and not old.deleted else _Carried({}, (), None)
    if old is not None and not old.deleted and files:
        _copy_files(place, old.run_id, new.run_id)
    tags = dict(carried.tags) | ({Tag.REPLACES: old.run_id} if old is not None and old.run_id else {})
    facts = None
    if carried.name is not None and new.start is not None:
        facts = RunFacts(new.status, carried.name, new.start, new.end)
    place.writer.write(
        new.run_id,
        Change(
            expected_cursor=new.tags.get(Tag.CURSOR),
            tags=tags,
            deleted_tags=[Tag.BUILDING, *carried.gone],
            facts=facts,
        ),
    )
    if old is not None and old.run_id and not old.deleted:
        place.api.put_away(old.run_id, {Tag.REPLACED_BY: new.run_id})
        for child in place.api.search(f"tags.`{Tag.PARENT}` = '{old.run_id}'", [old.experiment_id]):
            if child.info.lifecycle_stage == "active":
                place.api.set_tags(child.info.run_id, {Tag.PARENT: new.run_id})
    for other in others:
        place.api.put_away(other.run_id, {Tag.DUPLICATE_OF: new.run_id})


def _carried(place: Place, old: Record, new: Record) -> _Carried:
    cursor = old.cursor(f"MLflow run {old.run_id}")
    edited = edits(old, cursor)
    mended = edited_tags(old)
    ours = set(sent_tags(old)) - set(mended)
    kept = {
        key: value
        for key, value in old.tags.items()
        if key not in ours and not key.startswith("bridge.") and (key not in new.tags or key in mended)
    }
    kept.pop(Tag.NAME, None)
    if Tag.PARENT in kept and Tag.SWEEP in place.whole(kept[Tag.PARENT])[0].tags:
        del kept[Tag.PARENT]  # nested by the bridge, which would have done so again if it were still to be
    if "notes" in edited:
        kept[Tag.NOTES] = old.tags.get(Tag.NOTES, "")
    gone = tuple(key for key in mended if key not in old.tags)
    return _Carried(kept, gone, old.name if "name" in edited else None)


def _copy_files(place: Place, old: str, new: str) -> None:
    """The files of `old` that are not the bridge's."""
    with tempfile.TemporaryDirectory(prefix="bridge-carry-") as folder, Stage() as stage:
        for path in _files(place, old, ""):
            if not _OWN_FILES.fullmatch(path) and parse_path(path) is None:
                stage.add(path, place.api.fetch(old, path, Path(folder)).read_bytes())
        stage.send(place.api, new)


def _files(place: Place, run_id: str, folder: str) -> Iterator[str]:
    for file in place.api.files(run_id, folder):
        if file.is_dir:
            yield from _files(place, run_id, file.path)
        else:
            yield file.path

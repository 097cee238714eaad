"""One MLflow run as the target of one run directory: create it, write deltas into it, replace it, read it back."""

from __future__ import annotations

import functools
import json
import tempfile
import zlib
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import (
    BridgeError,
    ConflictError,
    RebuildNeededError,
    TargetError,
    TargetRefusedError,
    TargetUnavailableError,
)
from bridge.exporters.contract import Applied
from bridge.exporters.mlflow.client import FoundRun, RunGoneError
from bridge.exporters.mlflow.facts import (
    NAMES_FILE,
    TAG_LIMIT,
    Tag,
    clean,
    facts_of,
    is_obsolete,
    keys_of,
    renamed,
    sweep_of,
)
from bridge.exporters.mlflow.find import Candidates, cursor_of, deleted_experiment, edited_tags, sent_tags, user_edits
from bridge.exporters.mlflow.media import (
    CAPTIONS_FILE,
    CHECKPOINTS_FILE,
    MEDIA_FILE,
    ArtifactUpload,
    add_captions,
    add_checkpoints,
    add_full_texts,
    add_media,
    add_run_files,
    is_own_file,
    names_map,
    table_tag,
)
from bridge.exporters.mlflow.readback import read_back
from bridge.exporters.mlflow.sweeps import Sweep
from bridge.exporters.mlflow.write_db import NewRun, RunRow, RunUpdate, new_run_id
from bridge.locks import machine_lock
from bridge.model import Cursor, Delta, DeltaKind, Notice, NoticeKind
from bridge.options import ContentOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping

    from bridge.exporters.contract import TargetContent
    from bridge.exporters.mlflow.client import Experiment
    from bridge.exporters.mlflow.facts import RunFacts
    from bridge.exporters.mlflow.find import MlflowStore
    from bridge.model import Run

ADJUSTED_OPTIONS = ("best", "checkpoints")
"""The content options that an existing run takes without a rebuild."""

_CONFLICT_ATTEMPTS = 5
_REPLACEMENT_ATTEMPTS = 50
_LOCKS = 16


class MlflowTarget:
    """The MLflow run of one run directory. `found` is what the exporter found for each identity."""

    def __init__(
        self, store: MlflowStore, run: Run, content: ContentOptions, found: MutableMapping[str, Candidates]
    ) -> None:
        self._store = store
        self._run = run
        self._content = content
        self._found = found
        self._writer: DeltaWriter | None = None
        self._new: NewRun | None = None

    def apply(self, delta: Delta) -> Applied:
        """Bring `delta` in. If another export is writing the same run, go on from what it has done."""
        for attempt in range(1, _CONFLICT_ATTEMPTS + 1):
            try:
                return self._apply(delta)
            except RunGoneError:  # perhaps a person deleted it, so the caller must look at the run again
                self._forget()
                raise
            except ConflictError:
                self._forget()
                if attempt == _CONFLICT_ATTEMPTS:
                    raise
            except BridgeError:
                self._forget()
                raise
        raise AssertionError("unreachable")

    def _apply(self, delta: Delta) -> Applied:
        if self._writer is None:
            self._writer = self._open(delta)
        cursor = cursor_of(self._writer.found)
        if cursor is not None and not _follows(cursor, delta):
            left = self._left_to_do(cursor, delta)
            if left is None:
                return Applied(notes=("another export brought this run up to date meanwhile",))
            delta = left
        applied = self._writer.write_delta(delta) + Applied(notes=self._store.take_notes())
        found = self._found.get(self._run.identity)
        if found is not None and found.target is None:
            # The run exists by now, so what MLflow holds has to be asked again.
            del self._found[self._run.identity]
        return applied

    def _left_to_do(self, cursor: Cursor, delta: Delta) -> Delta | None:
        """Return the part of `delta` that the target lacks, now that it stands at `cursor`; None if it lacks nothing.

        Raise TargetUnavailableError if `delta` cannot follow what another export has written meanwhile.
        """
        after = delta.after
        is_ahead = cursor.rows >= after.rows and cursor.media_lines >= after.media_lines
        if is_ahead and (cursor.rows > after.rows or cursor.digest == after.digest):
            sent = self._facts.sent
            if delta.more or all(cursor.sent.get(key) == value for key, value in sent.items()):
                return None
            return Delta(delta.run, DeltaKind.SAME, after=cursor, before=cursor, metrics=delta.metrics)
        only_adds = delta.kind in (DeltaKind.NEW, DeltaKind.APPEND, DeltaKind.SAME)
        rows_before = delta.before.rows if delta.before is not None else 0
        same_basis = cursor.anchors == after.anchors and cursor.content == after.content
        if only_adds and same_basis and cursor.rows >= rows_before:
            return delta  # points that the target holds already are the same points
        raise TargetUnavailableError(
            f"Another export has changed {self.where()} in the meantime.", hint="Export again."
        )

    def _open(self, delta: Delta) -> DeltaWriter:
        """Return a writer for the run of this run directory. Create the run if there is none."""
        is_unknown = self._run.identity not in self._found
        if is_unknown and self._store.database is None:
            return self._writer_of(self._create(delta))  # which looks for the run itself
        return self._writer_of(self._chosen() or self._create(delta))

    def _chosen(self) -> FoundRun | None:
        """Return the target as it is now, None if there is none. Raise RunGoneError if a person deleted it."""
        candidates = self._candidates()
        if candidates.target is None and candidates.deleted is not None:
            raise RunGoneError(f"{self.where()}: the run was deleted in the meantime.", hint="Export again.")
        return None if candidates.target is None else self._store.run(candidates.target.run_id)

    def _writer_of(self, found: FoundRun, before_last: Callable[[], FoundRun | None] | None = None) -> DeltaWriter:
        return DeltaWriter(
            store=self._store,
            run=self._run,
            content=self._content,
            found=found,
            takes_files=self._store.takes_files(self._store.experiment_by_id(found.experiment_id)),
            identity=self._identity_tags(),
            before_last=before_last or self._keep_one,
            all_facts=self._facts,
            new=self._new,
        )

    def _candidates(self) -> Candidates:
        candidates = self._found.get(self._run.identity)
        if candidates is None:
            candidates = self._found[self._run.identity] = self._store.find([self._run])[self._run.identity]
        return candidates

    def _forget(self) -> None:
        self._writer = self._new = None
        self._found.pop(self._run.identity, None)

    # Creating a run

    def _home(self) -> Experiment:
        experiment = self._store.experiment(self._store.naming.of_run(self._run), create=True)
        assert experiment is not None
        return experiment

    def _identity_tags(self) -> dict[str, str]:
        tags = {Tag.UID: self._run.identity}
        return tags | ({Tag.EXPERIMENT: self._store.naming.template} if self._store.naming.varies else {})

    def _first_tags(self, facts: RunFacts) -> dict[str, str]:
        """Return the tags of a new run. The list of user tags is not among them, since those are not sent yet."""
        return {key: value for key, value in facts.own_tags.items() if key != Tag.TAGS} | self._identity_tags()

    @functools.cached_property
    def _facts(self) -> RunFacts:
        return facts_of(self._run, self._content, ignores_case=self._store.ignores_case)

    def _create(self, delta: Delta) -> FoundRun:
        """Create the run with a cursor that covers nothing, or return the one that another export just created."""
        experiment, facts = self._home(), self._facts
        if experiment.deleted:
            raise deleted_experiment(experiment)
        nothing = delta.remember or Cursor(self._run.identity, str(self._run.path), content=delta.after.content)
        tags = self._first_tags(facts) | {Tag.CURSOR: nothing.to_json()}
        database = self._store.database
        if database is not None:
            # The id follows from the run directory, so two exports at once cannot create two runs. The run is created
            # by the first write, in one transaction with the points.
            run_id = new_run_id(experiment.unique, self._run.identity)
            self._new = NewRun(experiment.id, facts.name, facts.start, facts.user, tags)
            tags = {Tag.NAME: facts.name}
            return FoundRun(run_id, experiment.id, "RUNNING", deleted=False, start=facts.start, end=None, tags=tags)
        # The lock keeps exports of one machine from creating two. `_keep_one` finds those of other machines.
        # Some runs share one, so that threads can create others at the same time and the files of locks stay few.
        share = zlib.crc32(self._run.identity.encode("utf-8", "replace")) % _LOCKS
        with machine_lock(f"{self._store.address.uri} {experiment.id} {share}"):
            self._forget()
            return self._chosen() or self._store.api.create_run(
                experiment.id, name=facts.name, start=facts.start, tags=tags
            )

    def _keep_one(self) -> FoundRun | None:
        """Delete doubles before the last cursor, and return the run as it is now. Databases decide by run id.

        Raise ConflictError if another run is the target.
        """
        if self._store.database is not None or self._writer is None:
            return None
        mine = self._writer.found.run_id
        self._found.pop(self._run.identity, None)
        candidates = self._candidates()
        target = candidates.target
        if target is not None:
            for extra in candidates.extras:
                self._store.soft_delete(extra.run_id, {Tag.DUPLICATE_OF: target.run_id})
        if target is None or target.run_id != mine:
            raise ConflictError(f"MLflow run {mine} is no longer the target of {self._run.path}.", hint="Export again.")
        return target

    # Replacing a run

    def rebuild(self, deltas: Iterable[Delta]) -> Applied:
        """Fill a new run, and put it in the old one's place with what people did to the old one."""
        try:
            return self._rebuild(deltas)
        finally:
            self._forget()

    def _rebuild(self, deltas: Iterable[Delta]) -> Applied:
        self._forget()
        home = self._home()
        if home.deleted and self._candidates().target is None:
            raise deleted_experiment(home)
        candidates = self._candidates()
        old = candidates.target or candidates.deleted
        old = None if old is None or not old.run_id else self._store.run(old.run_id)
        if candidates.target is not None:
            home = self._store.experiment_by_id(candidates.target.experiment_id)
        replacement = self._create_replacement(home, old)
        writer = self._writer_of(self._store.run(replacement), partial(self._check_not_replaced, candidates.target))
        done = Applied()
        try:
            for delta in deltas:
                done += writer.write_delta(delta)
        except ConflictError:
            # Another export replaced the old run first. In a database both have filled the same run. Through a
            # server nobody else knows of this one.
            if self._store.database is None:
                why = {Tag.DUPLICATE_OF: old.run_id if old is not None else "nothing"}
                self._store.soft_delete(replacement, why)
            raise
        others = [run for run in (*candidates.extras, *candidates.building) if run.run_id != replacement]
        self._replace(old, writer, others)
        return done

    def _create_replacement(self, experiment: Experiment, old: FoundRun | None) -> str:
        """Create an empty run that no export takes for the target yet. Return its id.

        In a database the id follows from that of `old`. A run that a stopped rebuild left under that id is skipped.
        """
        facts = self._facts
        before = None if old is None else old.run_id
        tags = self._first_tags(facts) | {Tag.BUILDING: before or "nothing"}
        database = self._store.database
        if database is None:
            return self._store.api.create_run(experiment.id, name=facts.name, start=facts.start, tags=tags).run_id
        new = NewRun(experiment.id, facts.name, facts.start, facts.user)
        for _ in range(_REPLACEMENT_ATTEMPTS):
            run_id = new_run_id(experiment.unique, self._run.identity, replaces=before)
            try:
                database.write(run_id, RunUpdate(expected_cursor=None, tags=tags, create=new))
            except ConflictError:
                before = run_id
                continue
            return run_id
        raise ConflictError(f"{_REPLACEMENT_ATTEMPTS} rebuilds of {self._run.path} were stopped.", hint="mlflow gc")

    def _check_not_replaced(self, old: FoundRun | None) -> None:
        """Raise ConflictError if another rebuild has replaced `old` already."""
        if old is not None and self._store.run(old.run_id).superseded:
            raise ConflictError(f"MLflow run {old.run_id} was rebuilt by another export.", hint="Export again.")

    def _replace(self, old: FoundRun | None, writer: DeltaWriter, others: Iterable[FoundRun]) -> None:
        """Make the complete run of `writer` the target, and delete `old` and `others`.

        User edits, user tags and user files move over, and children of `old` become children of the new run.
        """
        new, store = writer.found, self._store
        tags: dict[str, str] = {} if old is None else {Tag.REPLACES: old.run_id}
        gone: list[str] = [Tag.BUILDING]
        row = None
        if old is not None and not old.deleted:
            tags |= self._carried_tags(old, new)
            gone += [key for key in edited_tags(old) if key not in old.tags]
            if "name" in user_edits(old, cursor_of(old)) and new.start is not None:
                row = RunRow(new.status, old.name, new.start, new.end)
            if writer.takes_files:
                self._copy_user_files(old.run_id, new.run_id)
        update = RunUpdate(expected_cursor=new.tags.get(Tag.CURSOR), tags=tags, deleted_tags=gone, row=row)
        store.write(new.run_id, update)
        if old is not None and not old.deleted:
            store.soft_delete(old.run_id, {Tag.REPLACED_BY: new.run_id})
            for child in store.runs_with_tag(Tag.PARENT, old.run_id, old.experiment_id):
                if not child.deleted:
                    store.set_tags(child.run_id, {Tag.PARENT: new.run_id})
        for other in others:
            store.soft_delete(other.run_id, {Tag.DUPLICATE_OF: new.run_id})

    def _carried_tags(self, old: FoundRun, new: FoundRun) -> dict[str, str]:
        """Return the tags of `old` that people set or changed."""
        edited = edited_tags(old)
        ours = set(sent_tags(old)) - set(edited)
        kept = {
            key: value
            for key, value in old.tags.items()
            if key not in ours
            and not key.startswith(("bridge.", "mlflow.bridge."))
            and (key not in new.tags or key in edited)
        }
        kept.pop(Tag.NAME, None)
        if Tag.PARENT in kept and Tag.SWEEP in self._store.run(kept[Tag.PARENT]).tags:
            del kept[Tag.PARENT]  # the bridge nested it, and would have done so again if it still belonged there
        if "notes" in user_edits(old, cursor_of(old)):
            kept[Tag.NOTES] = old.tags.get(Tag.NOTES, "")
        return kept

    def _copy_user_files(self, old: str, new: str) -> None:
        """Copy the artifacts of `old` that the bridge did not upload."""
        api = self._store.api
        with tempfile.TemporaryDirectory(prefix="bridge-carry-") as folder, ArtifactUpload() as upload:
            for path in api.all_files(old):
                if not is_own_file(path):
                    upload.add(path, api.download(old, path, Path(folder)).read_bytes())
            upload.send(api, new)

    # Reading back

    def read(self, *, only: Collection[str] | None = None) -> TargetContent:
        """Return the run as MLflow's API shows it."""
        target = self._candidates().target
        if target is None:
            raise TargetRefusedError(f"{self._store.address.shown} does not hold {self._run.path}.")
        return read_back(self._store, target.run_id, self._run, self._content, only=only)

    def where(self) -> str:
        """Return the run's page on a server, else the database and the run's id."""
        shown = self._store.address.shown
        candidates = self._found.get(self._run.identity)
        found = candidates.target if candidates is not None else None
        if self._writer is not None:
            found = self._writer.found
        if found is None:
            return shown
        if self._store.address.is_server:
            return self._store.address.page(f"/{found.experiment_id}/runs/{found.run_id}?workflowType=machine_learning")
        return f"{shown} run {found.run_id}"


def _follows(cursor: Cursor, delta: Delta) -> bool:
    """Return True if `delta` begins at `cursor`."""
    before = delta.before
    if before is None:
        return not cursor.rows and not cursor.media_lines
    here = (cursor.rows, cursor.media_lines, cursor.digest)
    return here == (before.rows, before.media_lines, before.digest)


# ---------------------------------------------------------------------------------------------------------------------
# Writing deltas into one run

_LOST_MEDIA_CHARACTERS = 800
"""Characters of a cursor for the tags of media that cannot be stored."""


@dataclass(slots=True)
class DeltaWriter:
    """Writes deltas into one MLflow run: files first, then points and facts, the cursor with the last.

    `found` is the run as it is now. `takes_files` is False if artifacts cannot be stored. `identity` are the tags that
    make it the target. `before_last` is called before the last cursor of an export is written, and may return the run
    as it is then. `all_facts` are those of the run directory. `new` says how the first write creates the run.
    """

    store: MlflowStore
    run: Run
    content: ContentOptions
    found: FoundRun
    takes_files: bool
    identity: Mapping[str, str]
    before_last: Callable[[], FoundRun | None]
    all_facts: RunFacts
    new: NewRun | None = None

    def write_delta(self, delta: Delta) -> Applied:
        """Bring `delta` in. Raise TargetError; RebuildNeededError with nothing changed."""
        self._check_leftovers(delta)
        cursor = cursor_of(self.found)
        keys = self._metric_keys(delta, cursor)
        work = _DeltaWork(delta, keys, dict(cursor.sent) if cursor else {}, dict(cursor.extra) if cursor else {})
        work.notices += self._point_notices(delta, keys)
        self._add_bests(work, cursor)
        if not delta.more:
            work.facts = self.all_facts
            work.notices += [*work.facts.notices, *self.store.naming.notices(self.run)]
            work.updates = self._field_updates(work.facts, cursor)
            start = work.sent.get("start")
            work.sent = dict(work.facts.sent)
            if start is not None and self.store.database is None:
                work.sent["start"] = start  # MLflow's API cannot move it
            work.tags |= self._parent_tag(work.facts)
        if delta.remember is not None:
            remembered = delta.remember.with_(sent=cursor.sent, extra=cursor.extra) if cursor else delta.remember
            self._set_tags({Tag.CURSOR: remembered.to_json()})
        size = self._upload(work)
        now = None if delta.more else self.before_last()
        options = self.content.differences()
        shaped = {key: value for key, value in delta.after.content.items() if key not in ADJUSTED_OPTIONS}
        shaped |= {key: options[key] for key in ADJUSTED_OPTIONS if key in options}
        after = delta.after.with_(sent=work.sent, extra=work.extra, content=shaped)
        if "pending" in work.extra and delta.media:
            # The cursor does not cover the media that could not be stored, so the next export reads them again.
            before = delta.before or Cursor(self.run.identity, str(self.run.path))
            kept = {name: getattr(before, name) for name in ("media_lines", "media_offset", "media_digest")}
            after = after.with_(stat=None, **kept)
        self._write(work, after, now)
        return Applied(points=delta.points, media=len(delta.media), bytes=size, notices=tuple(work.notices))

    def _metric_keys(self, delta: Delta, cursor: Cursor | None) -> dict[str, str]:
        """Return the key of each metric. A delta without new rows may not name the metrics, so ask MLflow's run."""
        if delta.metrics or cursor is None:
            rename = dict(self.content.rename)
            return keys_of(delta.metrics, rename, ignores_case=self.store.ignores_case)
        text: str | bytes | None = self.found.tags.get(Tag.NAMES)
        if cursor.extra.get("maps"):
            text = self._artifact(NAMES_FILE)
        renamed_keys: dict[str, str] = json.loads(text).get("metrics", {}) if text else {}
        taken = {*renamed_keys.values(), *cursor.extra.get("bests", ())}
        return {key: key for key in self.found.metrics if key not in taken} | renamed_keys

    def _check_leftovers(self, delta: Delta) -> None:
        """Raise RebuildNeededError if a stopped export sent points or media that no longer count."""
        # Before media are sent, the run is marked with the number of lines of media.jsonl. If fewer events count by
        # now than there are such lines, some of the media that were sent do not count any more.
        cursor, until = cursor_of(self.found), self.found.tags.get(Tag.PENDING_MEDIA)
        acknowledged = cursor.media_lines if cursor is not None else 0
        are_sent = until is not None and acknowledged < int(until)
        if are_sent and len(delta.media) < delta.after.media_lines - acknowledged:
            raise RebuildNeededError("media that no longer count were sent by an export that was stopped")

    def _point_notices(self, delta: Delta, keys: Mapping[str, str]) -> list[Notice]:
        """Return notices for metrics that were renamed, though not as users asked, and for infinite values."""
        rename = dict(self.content.rename)
        fresh = {name for block in delta.blocks for name in block.names}
        notices = [
            Notice(NoticeKind.RENAMED, name, f"as {key}; bridge/names.json maps it back")
            for name, key in renamed(keys).items()
            if name in fresh and key != rename.get(name)
        ]
        infinite: dict[str, int] = {}
        for block in delta.blocks:
            counts = (np.isinf(block.values) & block.present).sum(axis=1)
            for name, count in zip(block.names, counts.tolist(), strict=True):
                infinite[name] = infinite.get(name, 0) + count
        detail = "infinite values are stored as the greatest finite ones"
        return notices + [
            Notice(NoticeKind.CLIPPED, name, detail, count=count) for name, count in infinite.items() if count
        ]

    def _add_bests(self, work: _DeltaWork, cursor: Cursor | None) -> None:
        """Add the metrics `NAME.best` that `--best` asks for. The run's own metric of such a name wins.

        Those that are no longer asked for go. MLflow's API cannot delete them, so there they stay as they are.
        Raise RebuildNeededError if the run logs a metric of such a name by now, or the API cannot turn a direction.
        """
        made = set(work.extra.pop("bests", ()))
        own = set(work.keys.values())
        if made & own:
            raise RebuildNeededError(f"the run logs {min(made & own)} itself by now")
        before = ContentOptions(best=tuple(cursor.content.get("best", ()))).bests if cursor is not None else {}
        for metric, sign in self.content.bests.items():
            key = work.keys.get(metric)
            if key is None:
                continue
            best_key = clean(f"{key}.best")
            if best_key in own:
                detail = f"the run logs a metric of that name, so --best {metric} is left out"
                work.notices.append(Notice(NoticeKind.LEFT_OUT, best_key, detail))
                continue
            work.bests[best_key] = (key, sign)
            if best_key in made and before.get(metric, sign) != sign:
                if self.store.database is None:
                    raise RebuildNeededError(f"--best {metric} has another direction, and MLflow cannot delete points")
                work.deleted_keys.append(best_key)
        if self.store.database is not None:
            work.deleted_keys += sorted(made - set(work.bests))
            made = set()
        if made | set(work.bests):
            work.extra["bests"] = sorted(made | set(work.bests))

    def _field_updates(self, facts: RunFacts, cursor: Cursor | None) -> _FieldUpdates:
        """Compare the run with `facts`. Return the changes; what people edited stays.

        Raise RebuildNeededError for a param that is gone, or changed where it cannot be replaced.
        """
        found = self.found
        in_place = self.store.database is not None
        edited, edited_keys, before = set(user_edits(found, cursor)), set(edited_tags(found)), sent_tags(found)
        wanted = {
            key: value
            for key, value in facts.user_tags.items()
            # A tag is the user's own if it was edited, or set in MLflow before the run directory had one of that name.
            if key not in edited_keys and not (key not in before and key in found.tags and Tag.TAGS in found.tags)
        }
        wanted |= facts.own_tags
        if "notes" not in edited and (facts.notes or Tag.NOTES in found.tags):
            wanted[Tag.NOTES] = facts.notes
        gone = {key for key in before if key not in facts.user_tags and key not in edited_keys and key in found.tags}
        gone |= {key for key in found.tags if is_obsolete(key, facts)}
        name = found.name if "name" in edited else facts.name
        start = facts.start if in_place or found.start is None else found.start
        row: RunRow | None = RunRow(facts.status, name, start, facts.end)
        now = (found.status, found.name, found.start, found.end)
        if (facts.status, name, start, facts.end) == now:
            row = None
        elif not in_place and facts.end is None and (facts.status, name) == now[:2]:
            row = None  # an end time cannot be cleared through the API: a requeued run runs with its old end
        return _FieldUpdates(
            tags={key: value for key, value in wanted.items() if found.tags.get(key) != value},
            gone=tuple(sorted(gone)),
            params=self._changed_params(facts, cursor, in_place=in_place),
            row=row,
        )

    def _changed_params(self, facts: RunFacts, cursor: Cursor | None, *, in_place: bool) -> dict[str, str]:
        held, params = self.found.params, facts.params
        new = {key: value for key, value in params.values.items() if key not in held}
        changed = {
            key: value
            for key, value in params.values.items()
            if key in held and held[key] != value and not params.stays(key)
        }
        left = {key for key in held if key not in params.values and not params.stays(key)}
        if left and cursor is not None and "params" in cursor.sent:
            raise RebuildNeededError(f"the param {min(left)} is gone, and MLflow cannot delete a param")
        if changed and not in_place:
            raise RebuildNeededError(f"the param {min(changed)} changed, and MLflow cannot change a param")
        return new | changed

    def _parent_tag(self, facts: RunFacts) -> dict[str, str]:
        """Return the tag that nests the run below its sweep's parent."""
        sweep = sweep_of(self.run.tags)
        if sweep is None or self.content.flat or Tag.PARENT in self.found.tags:
            return {}
        parent = Sweep(self.store, self.found.experiment_id, sweep).parent(start=facts.start)
        return {Tag.PARENT: parent} if parent is not None else {}

    # Files

    def _upload(self, work: _DeltaWork) -> int:
        """Upload the files of the delta and, with the last one, those of the run. Return the bytes sent.

        If the artifact store fails, points and facts go on without files. The cursor says that files are pending.
        """
        if not self.takes_files:
            self._leave_files_out(work)
            return 0
        if work.delta.media:
            self._set_tags({Tag.PENDING_MEDIA: str(work.delta.after.media_lines)})
        extra, tags, notices = dict(work.extra), dict(work.tags), list(work.notices)
        error = self.store.artifact_failure
        if error is None:
            try:
                return self._send_files(work)
            except ConflictError:
                raise
            except TargetError as failure:
                error = self.store.artifact_failure = failure
        work.extra, work.tags, work.notices = extra, tags, notices
        work.extra["pending"] = True
        detail = f"{error.message} The next export sends them. {error.hint or ''}".rstrip()
        work.notices.append(Notice(NoticeKind.REFUSED, "artifacts", detail))
        return 0

    def _send_files(self, work: _DeltaWork) -> int:
        delta, extra = work.delta, work.extra
        for key in ("no_files", "pending"):
            extra.pop(key, None)
        experiment = self.store.experiment_by_id(self.found.experiment_id)
        with ArtifactUpload(self._folder()) as upload:
            media = add_media(upload, self.run.identity, delta.media)
            work.notices += media.notices
            if media.in_grid and Tag.IMAGES not in self.found.tags:
                work.tags[Tag.IMAGES] = "True"
            if media.names:
                self._add_names(upload, MEDIA_FILE, media.names)
                extra["odd_media"] = True
            if media.captions:
                add_captions(upload, media.captions, self._artifact(CAPTIONS_FILE))
                work.tags |= table_tag(self.found.tags)
            if work.facts is not None:
                files = add_run_files(upload, self.run, self.content, extra.get("files", {}), work.notices)
                texts = add_full_texts(upload, work.keys, work.facts, extra.get("maps", ""))
                extra |= {key: value for key, value in (("files", files), ("maps", texts)) if value}
                if self.content.checkpoints:
                    sent = extra.get("checkpoints", {})
                    extra["checkpoints"], names = add_checkpoints(upload, self.run, sent, work.notices)
                    if names:
                        self._add_names(upload, CHECKPOINTS_FILE, names)
            if self.new is not None and self._folder() is None:
                # An artifact store that is not a local path asks for the run.
                self._send(RunUpdate(expected_cursor=None, tags={}))
                self.store.write_waiting()
            is_path = self.store.address.is_server and experiment.artifacts.startswith(("/", "file:"))
            work.notices += upload.send(self.store.api, self.found.run_id, is_shared_path=is_path)
            return upload.bytes

    def _folder(self) -> Path | None:
        """Return the local folder of the run's artifacts, None if they are stored elsewhere."""
        experiment = self.store.experiment_by_id(self.found.experiment_id)
        return self.store.artifact_folder(experiment, self.found.run_id)

    def _add_names(self, upload: ArtifactUpload, path: str, names: Mapping[str, str]) -> None:
        """Add the map `path` with `names` merged into it."""
        held = self._artifact(path)
        upload.add_json(path, (json.loads(held) if held else {}) | dict(names))

    def _artifact(self, path: str) -> bytes | None:
        folder = self._folder()
        if folder is not None:
            file = folder / path
            return file.read_bytes() if file.is_file() else None
        with tempfile.TemporaryDirectory(prefix="bridge-fetch-") as into:
            found = self.store.api.find_artifact(self.found.run_id, path, Path(into))
            return None if found is None else found.read_bytes()

    def _leave_files_out(self, work: _DeltaWork) -> None:
        """Name the files that are left out because a server keeps them and only its database is given."""
        hint = "the server keeps the files: export with --tracking-uri SERVER --database-uri DATABASE to send them too"
        if work.delta.media:
            work.notices.append(Notice(NoticeKind.LEFT_OUT, "media", hint, count=len(work.delta.media)))
            lost, room = [], _LOST_MEDIA_CHARACTERS
            for tag in dict.fromkeys((*work.extra.get("lost_media", ()), *(event.tag for event in work.delta.media))):
                room -= len(json.dumps(tag))
                lost += [tag] if room > 0 else []
            work.extra["lost_media"] = lost
        if work.facts is not None:
            work.extra["no_files"] = True
            work.notices.append(Notice(NoticeKind.LEFT_OUT, "artifacts", hint))
            names = names_map(work.keys, work.facts)
            text = json.dumps(names, ensure_ascii=False, separators=(",", ":"))
            if any(names.values()) and len(text) <= TAG_LIMIT:
                work.tags[Tag.NAMES] = text

    # Writes

    def _set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags before the delta itself is written. Do nothing if they are set already."""
        if tags.items() <= self.found.tags.items():
            return
        self._send(RunUpdate(expected_cursor=self.found.tags.get(Tag.CURSOR), tags=tags))

    def _send(self, update: RunUpdate, gone: tuple[str, ...] = (), now: FoundRun | None = None) -> None:
        """Write `update`, and remember the tags that the run has then. The first write creates a new run."""
        if self.new is not None:
            update = replace(update, create=self.new, tags={**self.new.tags, **update.tags})
        self.store.write(self.found.run_id, update, now)
        self.new = None
        self._note_tags(update.tags, gone)

    def _write(self, work: _DeltaWork, after: Cursor, now: FoundRun | None) -> None:
        """Write points, facts and the cursor `after`, and remember the run as it is then. `now` is the run before."""
        delta, updates, found = work.delta, work.updates, self.found
        missing = {key: value for key, value in self.identity.items() if found.tags.get(key) != value}
        replace_from = delta.replace_from
        interim = None
        if replace_from is not None and delta.before is not None:
            before = cursor_of(found) or delta.before
            interim = before.with_(replacing=replace_from).to_json()
        update = RunUpdate(
            expected_cursor=found.tags.get(Tag.CURSOR),
            blocks=delta.blocks,
            names=work.keys,
            replace_from=replace_from,
            interim_cursor=interim,
            bests=work.bests,
            deleted_keys=work.deleted_keys,
            tags={**missing, **work.tags, **updates.tags, Tag.CURSOR: after.to_json()},
            deleted_tags=(*updates.gone, *(() if "pending" in work.extra else (Tag.PENDING_MEDIA,))),
            params=updates.params,
            row=updates.row,
        )
        self._send(update, (*update.deleted_tags, Tag.PENDING), now)
        self.found = replace(self.found, params={**found.params, **updates.params})
        if updates.row is not None:
            row = updates.row
            self._note_tags({Tag.NAME: row.name})
            self.found = replace(self.found, status=row.status, start=row.start, end=row.end)

    def _note_tags(self, tags: Mapping[str, str], gone: tuple[str, ...] = ()) -> None:
        kept = {key: value for key, value in self.found.tags.items() if key not in gone}
        self.found = replace(self.found, tags=kept | dict(tags))


@dataclass(frozen=True, slots=True)
class _FieldUpdates:
    """Tags and params to set, tags to delete, and the run's own row; None leaves the row as it is."""

    tags: Mapping[str, str] = field(default_factory=dict)
    gone: tuple[str, ...] = ()
    params: Mapping[str, str] = field(default_factory=dict)
    row: RunRow | None = None


@dataclass(slots=True)
class _DeltaWork:
    """The parts of one write: `sent` and `extra` of the new cursor, tags to set beside the facts, notices.

    `keys` maps each metric to its key. These are the entries of `extra`, each of them absent if it has nothing to say:

    - `files`, `maps`, `checkpoints`: signatures of what was uploaded (`add_run_files`, `add_full_texts`,
      `add_checkpoints`).
    - `bests`: the keys of the metrics that `--best` added.
    - `odd_media`: true if some tags of media were changed, so MEDIA_FILE must be read.
    - `pending`: true if the artifact store failed, so the next export sends the files.
    - `no_files`: true if artifacts cannot be stored at all. `lost_media`: the tags of the media left out then.
    """

    delta: Delta
    keys: Mapping[str, str]
    sent: dict[str, str]
    extra: dict[str, Any]
    bests: dict[str, tuple[str, int]] = field(default_factory=dict)
    deleted_keys: list[str] = field(default_factory=list)
    facts: RunFacts | None = None
    updates: _FieldUpdates = field(default_factory=_FieldUpdates)
    tags: dict[str, str] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)

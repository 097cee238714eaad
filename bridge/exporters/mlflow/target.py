"""One MLflow run as the target of one run directory: create it, write deltas into it, replace it, read it back."""

from __future__ import annotations

import contextlib
import json
import tempfile
import zlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import BridgeError, ConflictError, RebuildNeededError, TargetError, TargetRefusedError
from bridge.exporters.contract import Applied
from bridge.exporters.mlflow.errors import RunGoneError
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
from bridge.exporters.mlflow.media import (
    CAPTIONS_FILE,
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
from bridge.exporters.mlflow.readback import RunReader
from bridge.exporters.mlflow.rows import rows_of
from bridge.exporters.mlflow.runs import FoundRun, RunRow, RunUpdate, new_run_id
from bridge.exporters.mlflow.store import (
    Candidates,
    cursor_of,
    deleted_experiment,
    edited_tags,
    sent_tags,
    user_edits,
)
from bridge.exporters.mlflow.sweeps import Sweep
from bridge.locks import machine_lock
from bridge.model import Cursor, Delta, Notice, NoticeKind
from bridge.options import ContentOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from bridge.exporters.contract import TargetContent
    from bridge.exporters.mlflow.facts import RunFacts
    from bridge.exporters.mlflow.runs import Experiment
    from bridge.exporters.mlflow.store import MlflowStore
    from bridge.model import Run

ADJUSTED_OPTIONS = ("best", "checkpoints")
"""The content options that an existing run takes without a rebuild."""

_REPLACEMENT_ATTEMPTS = 50
_LOCKS = 16


class MlflowTarget:
    """The MLflow run of one run directory. `candidates` are what MLflow holds of it, None if that was not asked yet."""

    def __init__(
        self, store: MlflowStore, run: Run, content: ContentOptions, candidates: Candidates | None = None
    ) -> None:
        self._store = store
        self._run = run
        self._content = content
        self._candidates = candidates
        self._writer: DeltaWriter | None = None
        self._reader: RunReader | None = None

    def apply(self, delta: Delta) -> Applied:
        """Bring `delta` in. Raise ConflictError if another export has written to the run, unless it did the same."""
        self._reader = None
        try:
            if self._writer is None:
                self._writer = self._open(delta)
            cursor = cursor_of(self._writer.found)
            if cursor is not None and not _begins_at(cursor, delta):
                if _is_past(cursor, delta) and (delta.more or self._facts.sent.items() <= cursor.sent.items()):
                    return Applied(notes=("another export brought this run up to date meanwhile",))
                raise ConflictError(f"Another export has changed {self.where()} in the meantime.", hint="Export again.")
            return self._writer.write_delta(delta) + Applied(notes=self._store.take_notes())
        except BridgeError:
            self._forget()
            raise

    def _open(self, delta: Delta) -> DeltaWriter:
        """Return a writer for the run of this run directory. Create the run if there is none."""
        # Without a database `_create` looks for the run itself.
        looks_first = self._candidates is not None or self._store.database is not None
        found = self._chosen() if looks_first else None
        if found is not None:
            return self._writer_of(found)
        experiment = self._home()
        if experiment.deleted:
            raise deleted_experiment(experiment)
        nothing = delta.remember or Cursor(self._run.identity, str(self._run.path), content=delta.after.content)
        new = self._new_run(experiment, {Tag.CURSOR: nothing.to_json()})
        if self._store.database is not None:
            # The run is created by the first write, in one transaction with the points.
            return self._writer_of(new, is_new=True)
        # The lock keeps exports of one machine from creating two. `_keep_one` finds those of other machines.
        # Some runs share one, so that threads can create others at the same time and the files of locks stay few.
        share = zlib.crc32(self._run.identity.encode("utf-8", "replace")) % _LOCKS
        with machine_lock(f"{self._store.address.uri} {experiment.id} {share}"):
            self._candidates = None
            return self._writer_of(self._chosen() or self._store.runs.create(new))

    def _chosen(self) -> FoundRun | None:
        """Return the target as it is now, None if there is none. Raise RunGoneError if a person deleted it."""
        candidates = self._look()
        if candidates.target is None and candidates.deleted is not None:
            raise RunGoneError(f"{self.where()}: the run was deleted in the meantime.", hint="Export again.")
        return None if candidates.target is None else self._store.runs.run(candidates.target.run_id)

    def _writer_of(
        self, found: FoundRun, before_last: Callable[[], FoundRun | None] | None = None, *, is_new: bool = False
    ) -> DeltaWriter:
        store = self._store
        return DeltaWriter(
            store=store,
            run=self._run,
            content=self._content,
            facts=self._facts,
            found=found,
            experiment=store.experiment_by_id(found.experiment_id),
            before_last=before_last or self._keep_one,
            is_new=is_new,
        )

    def _look(self) -> Candidates:
        """Return what MLflow holds of this run directory. Ask only once."""
        if self._candidates is None:
            self._candidates = self._store.find([self._run])[self._run.identity]
        return self._candidates

    def _forget(self) -> None:
        self._writer = self._candidates = self._reader = None

    def _home(self) -> Experiment:
        experiment = self._store.experiment(self._store.naming.of_run(self._run), create=True)
        assert experiment is not None
        return experiment

    @cached_property
    def _facts(self) -> RunFacts:
        return facts_of(self._run, self._content, ignores_case=self._store.ignores_case)

    def _new_run(self, experiment: Experiment, tags: dict[str, str], replaces: str | None = None) -> FoundRun:
        """Return the run to be created, with `tags` and those of the run directory.

        In a database the id follows from the run directory, and `replaces` if it is to take that run's place. So two
        exports at once cannot create two. The list of user tags is not among the tags, since those are not sent yet.
        """
        facts = self._facts
        return FoundRun(
            new_run_id(experiment.unique, self._run.identity, replaces=replaces),
            experiment.id,
            "RUNNING",
            deleted=False,
            start=facts.start,
            end=None,
            tags={key: value for key, value in facts.own_tags.items() if key != Tag.TAGS}
            | self._store.identity_tags(self._run)
            | {Tag.NAME: facts.name}
            | tags,
        )

    def _keep_one(self) -> FoundRun | None:
        """Delete doubles before the last cursor, and return the run as it is now. Databases decide by run id.

        Raise ConflictError if another run is the target.
        """
        if self._store.database is not None or self._writer is None:
            return None
        mine = self._writer.found.run_id
        self._candidates = None
        candidates = self._look()
        target = candidates.target
        if target is not None:
            for extra in candidates.extras:
                self._store.runs.soft_delete(extra.run_id, {Tag.DUPLICATE_OF: target.run_id})
        if target is None or target.run_id != mine:
            raise ConflictError(f"MLflow run {mine} is no longer the target of {self._run.path}.", hint="Export again.")
        return target

    # Replacing a run

    def rebuild(self, deltas: Iterable[Delta]) -> Applied:
        """Fill a new run, and put it in the old one's place with what people did to the old one."""
        self._forget()
        try:
            done, target = self._rebuild(deltas)
        finally:
            self._forget()
        self._candidates = Candidates(target=target)
        return done

    def _rebuild(self, deltas: Iterable[Delta]) -> tuple[Applied, FoundRun]:
        home, candidates, runs = self._home(), self._look(), self._store.runs
        if home.deleted and candidates.target is None:
            raise deleted_experiment(home)
        if candidates.target is not None:
            home = self._store.experiment_by_id(candidates.target.experiment_id)
        old = candidates.target or candidates.deleted
        old = None if old is None else runs.run(old.run_id)

        def check_not_replaced() -> None:
            """Raise ConflictError if another rebuild has replaced `old` already."""
            if candidates.target is not None and runs.run(candidates.target.run_id).superseded:
                raise ConflictError(f"{self.where()} was rebuilt by another export.", hint="Export again.")

        replacement = self._create_replacement(home, old)
        writer = self._writer_of(runs.run(replacement), check_not_replaced)
        done = Applied()
        try:
            for delta in deltas:
                done += writer.write_delta(delta)
        except ConflictError:
            # Another export replaced the old run first. In a database both have filled the same run. Through a
            # server nobody else knows of this one.
            if self._store.database is None:
                why = {Tag.DUPLICATE_OF: old.run_id if old is not None else "nothing"}
                runs.soft_delete(replacement, why)
            raise
        done += Applied(notices=tuple(self._replace(old, writer)))
        for extra in candidates.extras:
            runs.soft_delete(extra.run_id, {Tag.DUPLICATE_OF: replacement})
        for unfinished in candidates.building:
            if unfinished.run_id != replacement:
                runs.delete_unfinished(unfinished.run_id)
        return done, writer.found

    def _create_replacement(self, experiment: Experiment, old: FoundRun | None) -> str:
        """Create an empty run that no export takes for the target yet. Return its id.

        In a database the id follows from that of `old`. A run that a stopped rebuild left under that id is skipped.
        """
        before = None if old is None else old.run_id
        tags = {Tag.BUILDING: before or "nothing"} | ({} if before is None else {Tag.REPLACES: before})
        for _ in range(_REPLACEMENT_ATTEMPTS):
            new = self._new_run(experiment, tags, before)
            try:
                return self._store.runs.create(new).run_id
            except ConflictError:
                before = new.run_id
        raise ConflictError(f"{_REPLACEMENT_ATTEMPTS} rebuilds of {self._run.path} were stopped.", hint="mlflow gc")

    def _replace(self, old: FoundRun | None, writer: DeltaWriter) -> list[Notice]:
        """Make the complete run of `writer` the target, and delete `old`.

        User edits, user tags and user files move over, and children of `old` become children of the new run. Return
        notices for files that stay behind.
        """
        new, runs, cursor = writer.found, self._store.runs, writer.found.tags.get(Tag.CURSOR)
        end = RunUpdate(expected_cursor=cursor, deleted_tags=[Tag.BUILDING])
        if old is None or old.deleted:
            runs.write(new.run_id, end)
            return []
        update = RunUpdate(expected_cursor=cursor, tags=self._carried_tags(old, new))
        update.deleted_tags = [key for key in edited_tags(old) if key not in old.tags]
        if "name" in user_edits(old, cursor_of(old)):
            update.row = replace(new.row, name=old.name)
        if self._store.reaches_files(writer.experiment):
            notices = self._copy_user_files(old.run_id, new.run_id)
        else:
            detail = f"those that people added stay with the deleted run {old.run_id}, since a server keeps them"
            notices = [Notice(NoticeKind.LEFT_OUT, "artifacts", detail)]
        runs.write(new.run_id, update)
        runs.write(new.run_id, end)  # only now, since from then on it is the target
        runs.soft_delete(old.run_id, {Tag.REPLACED_BY: new.run_id})
        for child in runs.runs_with_tag(Tag.PARENT, [old.run_id], [old.experiment_id]):
            if not child.deleted:
                runs.set_tags(child.run_id, {Tag.PARENT: new.run_id})
        return notices

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
        if Tag.PARENT in kept:
            with contextlib.suppress(ConflictError):  # a parent that is gone for good
                if Tag.SWEEP in self._store.runs.run(kept[Tag.PARENT]).tags:
                    del kept[Tag.PARENT]  # the bridge nested it, and would do so again if it still belonged there
        if "notes" in user_edits(old, cursor_of(old)):
            kept[Tag.NOTES] = old.tags.get(Tag.NOTES, "")
        return kept

    def _copy_user_files(self, old: str, new: str) -> list[Notice]:
        """Copy the artifacts of `old` that the bridge did not upload. Return notices for those that are refused."""
        api = self._store.api
        upload = ArtifactUpload(api=api, run_id=new)
        with tempfile.TemporaryDirectory(prefix="bridge-carry-") as folder:
            for path in api.all_files(old):
                if not is_own_file(path):
                    upload.add(path, api.download(old, path, Path(folder)).read_bytes())
        return upload.finish()

    # Reading back

    def read(self, *, only: Collection[str] | None = None) -> TargetContent:
        """Return the run as MLflow's API shows it, its points straight from a database that is known."""
        if self._reader is None:
            target = self._look().target
            if target is None:
                raise TargetRefusedError(f"{self._store.address.shown} does not hold {self._run.path}.")
            self._reader = RunReader(self._store, target.run_id, self._run, self._content)
        return self._reader.read(only=only)

    def where(self) -> str:
        """Return the run's page on a server, else the database and the run's id."""
        address = self._store.address
        found = self._candidates.target if self._candidates is not None else None
        if self._writer is not None:
            found = self._writer.found
        if found is None:
            return address.shown
        if address.is_server:
            return address.page(f"/{found.experiment_id}/runs/{found.run_id}?workflowType=machine_learning")
        return f"{address.shown} run {found.run_id}"


def _begins_at(cursor: Cursor, delta: Delta) -> bool:
    before = delta.before
    if before is None:
        return not cursor.rows and not cursor.media_lines
    here = (cursor.rows, cursor.media_lines, cursor.digest)
    return here == (before.rows, before.media_lines, before.digest)


def _is_past(cursor: Cursor, delta: Delta) -> bool:
    """Return True if all rows and media of `delta` are in the target that stands at `cursor`."""
    after = delta.after
    has_all = cursor.rows >= after.rows and cursor.media_lines >= after.media_lines
    return has_all and (cursor.rows > after.rows or cursor.digest == after.digest)


# ---------------------------------------------------------------------------------------------------------------------
# Writing deltas into one run


@dataclass(slots=True)
class _DeltaWork:
    """One delta on its way after `cursor`: the `update` of the run, and `sent` and `extra` of the new cursor.

    `keys` maps each metric to its key. These are the entries of `extra`, each of them absent if it has nothing to say:

    - `files`, `maps`, `checkpoints`: signatures of what was uploaded (`add_run_files`, `add_full_texts`,
      `add_checkpoints`).
    - `bests`: the keys of the metrics that `--best` added.
    - `odd_media`: true if some tags of media were changed, so MEDIA_FILE must be read.
    - `pending`: true if the artifact store failed, so the next export sends the files.
    """

    delta: Delta
    cursor: Cursor
    keys: Mapping[str, str]
    update: RunUpdate
    sent: dict[str, str]
    extra: dict[str, Any]
    notices: list[Notice] = field(default_factory=list)


@dataclass(slots=True)
class DeltaWriter:
    """Writes deltas into one MLflow run: files first, then points and facts, the cursor with the last.

    `found` is the run as it is now, in `experiment`. `before_last` is called before the last cursor of an export is
    written, and may return the run as it is then. With `is_new` the first write creates the run.
    """

    store: MlflowStore
    run: Run
    content: ContentOptions
    facts: RunFacts
    found: FoundRun
    experiment: Experiment
    before_last: Callable[[], FoundRun | None]
    is_new: bool = False

    def write_delta(self, delta: Delta) -> Applied:
        """Bring `delta` in. Raise TargetError; RebuildNeededError with nothing changed."""
        cursor = cursor_of(self.found) or Cursor(self.run.identity, str(self.run.path))
        self._check_leftovers(delta, cursor)
        keys = self._metric_keys(delta, cursor)
        update = RunUpdate(None, rows_of(delta.blocks, keys), keys.values(), delta.replace_from)
        work = _DeltaWork(delta, cursor, keys, update, dict(cursor.sent), dict(cursor.extra))
        work.notices += self._point_notices(delta, keys)
        self._add_bests(work)
        if not delta.more:
            work.notices += [*self.facts.notices, *self.store.naming.notices(self.run)]
            self._add_facts(work)
        if delta.remember is not None:
            remembered = delta.remember.with_(sent=cursor.sent, extra=cursor.extra)
            self._set_tags({Tag.CURSOR: remembered.to_json()})
        size = self._upload(work)
        now = None if delta.more else self.before_last()
        self._write(work, now)
        return Applied(points=delta.points, media=len(delta.media), bytes=size, notices=tuple(work.notices))

    def _metric_keys(self, delta: Delta, cursor: Cursor) -> dict[str, str]:
        """Return the key of each metric. A delta without new rows may not name the metrics, so ask MLflow's run."""
        if delta.metrics:
            return keys_of(delta.metrics, dict(self.content.rename), ignores_case=self.store.ignores_case)
        text: str | bytes | None = self.found.tags.get(Tag.NAMES)
        if text is None and cursor.extra.get("maps"):
            text = self._artifact(NAMES_FILE)
        renamed_keys: dict[str, str] = json.loads(text).get("metrics", {}) if text else {}
        taken = {*renamed_keys.values(), *cursor.extra.get("bests", ())}
        return {key: key for key in self.found.metrics if key not in taken} | renamed_keys

    def _check_leftovers(self, delta: Delta, cursor: Cursor) -> None:
        """Raise RebuildNeededError if a stopped export sent points or media that no longer count."""
        # Before media are sent, the run is marked with the number of lines of media.jsonl. If fewer events count by
        # now than there are such lines, some of the media that were sent do not count any more.
        are_sent = cursor.media_lines < int(self.found.tags.get(Tag.PENDING_MEDIA, 0))
        if are_sent and len(delta.media) < delta.after.media_lines - cursor.media_lines:
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

    def _add_bests(self, work: _DeltaWork) -> None:
        """Add the metrics `NAME.best` that `--best` asks for. The run's own metric of such a name wins.

        Those that are no longer asked for go. MLflow's API cannot delete them, so there they stay as they are.
        Raise RebuildNeededError if the run logs a metric of such a name by now, or the API cannot turn a direction.
        """
        update, can_delete = work.update, self.store.database is not None
        made = set(work.extra.pop("bests", ()))
        own = set(update.own_keys)
        if made & own:
            raise RebuildNeededError(f"the run logs {min(made & own)} itself by now")
        before = ContentOptions(best=tuple(work.cursor.content.get("best", ()))).bests
        for metric, sign in self.content.bests.items():
            key = work.keys.get(metric)
            if key is None:
                continue
            best_key = clean(f"{key}.best")
            if best_key in own:
                detail = f"the run logs a metric of that name, so --best {metric} is left out"
                work.notices.append(Notice(NoticeKind.LEFT_OUT, best_key, detail))
                continue
            update.bests[best_key] = (key, sign)
            if best_key in made and before.get(metric, sign) != sign:
                if not can_delete:
                    raise RebuildNeededError(f"--best {metric} has another direction, and MLflow cannot delete points")
                update.deleted_keys.append(best_key)
        if can_delete:
            update.deleted_keys += sorted(made - set(update.bests))
            made = set()
        if made | set(update.bests):
            work.extra["bests"] = sorted(made | set(update.bests))

    def _add_facts(self, work: _DeltaWork) -> None:
        """Add what differs between the run and its facts to the update. What people edited stays.

        Raise RebuildNeededError for a param that is gone, or changed where it cannot be replaced.
        """
        found, facts, update = self.found, self.facts, work.update
        in_place = self.store.database is not None
        update.params = self._changed_params(work.cursor, in_place=in_place)
        edited, edited_keys, before = user_edits(found, work.cursor), edited_tags(found), sent_tags(found)
        wanted = {
            key: value
            for key, value in facts.user_tags.items()
            # A tag is the user's own if it was edited, or set in MLflow before the run directory had one of that name.
            if key not in edited_keys and not (key not in before and key in found.tags and Tag.TAGS in found.tags)
        }
        wanted |= facts.own_tags
        names = names_map(work.keys, facts)
        text = json.dumps(names, ensure_ascii=False, separators=(",", ":"))
        if any(names.values()) and len(text) <= TAG_LIMIT:
            wanted[Tag.NAMES] = text
        if "notes" not in edited and (facts.notes or Tag.NOTES in found.tags):
            wanted[Tag.NOTES] = facts.notes
        update.tags = {key: value for key, value in wanted.items() if found.tags.get(key) != value}
        update.tags |= self._parent_tag()
        gone = {key for key in before if key not in facts.user_tags and key not in edited_keys and key in found.tags}
        gone |= {key for key in found.tags if is_obsolete(key, facts) or (key == Tag.NAMES and key not in wanted)}
        update.deleted_tags = sorted(gone)
        name = found.name if "name" in edited else facts.name
        start = facts.start if in_place or found.start is None else found.start
        row = RunRow(facts.status, name, start, facts.end)
        # An end time cannot be cleared through the API: a requeued run runs with its old end.
        if row != found.row and (in_place or row != replace(found.row, end=None)):
            update.row = row
        sent_start = work.sent.get("start")
        work.sent = facts.sent
        if sent_start is not None and not in_place:
            work.sent["start"] = sent_start  # MLflow's API cannot move it

    def _changed_params(self, cursor: Cursor, *, in_place: bool) -> dict[str, str]:
        held, params = self.found.params, self.facts.params
        left = {key for key in held if key not in params.values and not params.stays(key)}
        if left and "params" in cursor.sent:
            raise RebuildNeededError(f"the param {min(left)} is gone, and MLflow cannot delete a param")
        changed = {
            key: value
            for key, value in params.values.items()
            if key not in held or (held[key] != value and not params.stays(key))
        }
        if not in_place and (changed.keys() & held.keys()):
            key = min(changed.keys() & held.keys())
            raise RebuildNeededError(f"the param {key} changed, and MLflow cannot change a param")
        return changed

    def _parent_tag(self) -> dict[str, str]:
        """Return the tag that nests the run below its sweep's parent."""
        sweep = sweep_of(self.run.tags)
        if sweep is None or self.content.flat or Tag.PARENT in self.found.tags:
            return {}
        parent = Sweep(self.store, self.experiment.id, sweep).parent(start=self.facts.start)
        return {Tag.PARENT: parent} if parent is not None else {}

    # Files

    def _upload(self, work: _DeltaWork) -> int:
        """Upload the files of the delta and, with the last one, those of the run. Return the bytes sent.

        If the artifact store fails, points and facts go on without files. The cursor says that files are pending.
        """
        if work.delta.media:
            self._set_tags({Tag.PENDING_MEDIA: str(work.delta.after.media_lines)})
        error = self.store.artifact_failure
        if error is None:
            try:
                return self._send_files(work)
            except ConflictError:
                raise
            except TargetError as failure:
                error = self.store.artifact_failure = failure
        work.extra["pending"] = True
        detail = f"{error.message} The next export sends them. {error.hint or ''}".rstrip()
        work.notices.append(Notice(NoticeKind.REFUSED, "artifacts", detail))
        return 0

    def _send_files(self, work: _DeltaWork) -> int:
        """Send the files. Change `work` once they are all there."""
        delta, extra, tags = work.delta, dict(work.extra), dict[str, str]()
        extra.pop("pending", None)
        folder = self._folder()
        if self.is_new and folder is None:
            # An artifact store that is not a local path asks for the run.
            self._send(RunUpdate(None))
            self.found = self.store.runs.run(self.found.run_id)
        upload = ArtifactUpload(folder, api=self.store.api, run_id=self.found.run_id)
        media = add_media(upload, self.run.identity, delta.media)
        if media.in_grid and Tag.IMAGES not in self.found.tags:
            tags[Tag.IMAGES] = "True"
        if media.names:
            held = self._artifact(MEDIA_FILE)
            upload.add_json(MEDIA_FILE, (json.loads(held) if held else {}) | media.names)
            extra["odd_media"] = True
        if media.captions:
            add_captions(upload, media.captions, self._artifact(CAPTIONS_FILE))
            tags |= table_tag(self.found.tags)
        if not delta.more:
            files = add_run_files(upload, self.run, self.content, extra.get("files", {}))
            texts = add_full_texts(upload, work.keys, self.facts, extra.get("maps", ""))
            extra |= {key: value for key, value in (("files", files), ("maps", texts)) if value}
            if self.content.checkpoints:
                extra["checkpoints"] = add_checkpoints(upload, self.run, extra.get("checkpoints", {}))
        is_path = self.store.address.is_server and self.experiment.artifacts.startswith(("/", "file:"))
        work.notices += upload.finish(is_shared_path=is_path)
        work.extra = extra
        work.update.tags |= tags
        return upload.bytes

    def _folder(self) -> Path | None:
        """Return the local folder of the run's artifacts, None if they are stored elsewhere."""
        return self.store.artifact_folder(self.experiment, self.found.run_id)

    def _artifact(self, path: str) -> bytes | None:
        folder = self._folder()
        if folder is not None:
            file = folder / path
            return file.read_bytes() if file.is_file() else None
        with tempfile.TemporaryDirectory(prefix="bridge-fetch-") as into:
            found = self.store.api.find_artifact(self.found.run_id, path, Path(into))
            return None if found is None else found.read_bytes()

    # Writes

    def _set_tags(self, tags: dict[str, str]) -> None:
        """Set tags before the delta itself is written. Do nothing if they are set already."""
        if not tags.items() <= self.found.tags.items():
            self._send(RunUpdate(None, tags=tags))

    def _write(self, work: _DeltaWork, now: FoundRun | None) -> None:
        """Write points, facts and the new cursor. `now` is the run before, if it was just read."""
        update, options = work.update, self.content.differences()
        content = {key: value for key, value in work.delta.after.content.items() if key not in ADJUSTED_OPTIONS}
        content |= {key: options[key] for key in ADJUSTED_OPTIONS if key in options}
        after = work.delta.after.with_(sent=work.sent, extra=work.extra, content=content)
        if "pending" not in work.extra:
            update.deleted_tags.append(Tag.PENDING_MEDIA)
        elif work.delta.media:
            # The cursor does not cover the media that could not be stored, so the next export reads them again.
            kept = {name: getattr(work.cursor, name) for name in ("media_lines", "media_offset", "media_digest")}
            after = after.with_(stat=None, **kept)
        if update.replace_from is not None:
            interim = cursor_of(self.found) or work.cursor
            update.interim_cursor = interim.with_(replacing=update.replace_from).to_json()
        identity = self.store.identity_tags(self.run).items() - self.found.tags.items()
        update.tags |= {**dict(identity), Tag.CURSOR: after.to_json()}
        self._send(update, now)

    def _send(self, update: RunUpdate, now: FoundRun | None = None) -> None:
        """Write `update`, and remember the run as it is then. The first write creates a new run."""
        found = self.found
        if self.is_new:
            update.create = found
        else:
            update.expected_cursor = found.tags.get(Tag.CURSOR)
        self.store.runs.write(found.run_id, update, now)
        self.is_new = False
        gone = {*update.deleted_tags, *((Tag.PENDING,) if Tag.CURSOR in update.tags else ())}
        tags = {key: value for key, value in found.tags.items() if key not in gone} | update.tags
        self.found = replace(found, tags=tags, params={**found.params, **update.params})
        if update.row is not None:
            row = update.row
            tags[Tag.NAME] = row.name
            self.found = replace(self.found, status=row.status, start=row.start, end=row.end)

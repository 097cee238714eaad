"""One MLflow run as the target of one run directory: find or create it, apply deltas, replace it, read it back."""

from __future__ import annotations

import contextlib
import tempfile
import zlib
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.errors import BridgeError, ConflictError, TargetRefusedError
from bridge.exporters.contract import Applied
from bridge.exporters.mlflow.delta_writer import DeltaWriter
from bridge.exporters.mlflow.errors import RunGoneError, conflict
from bridge.exporters.mlflow.facts import Tag, facts_of
from bridge.exporters.mlflow.media import ArtifactUpload, is_own_file
from bridge.exporters.mlflow.readback import RunReader
from bridge.exporters.mlflow.runs import FoundRun, RunUpdate, new_run_id
from bridge.exporters.mlflow.store import Candidates, deleted_experiment, edited_tags, sent_tags, user_edits
from bridge.locks import machine_lock
from bridge.model import Cursor, Delta, Notice, NoticeKind, RunFile

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from bridge.exporters.contract import TargetContent
    from bridge.exporters.mlflow.facts import RunFacts
    from bridge.exporters.mlflow.runs import Experiment
    from bridge.exporters.mlflow.store import MlflowStore
    from bridge.model import Run
    from bridge.options import ContentOptions

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
        """Write `delta`. Raise ConflictError if another export has written to the run, unless it wrote the same."""
        self._reader = None
        try:
            if self._writer is None:
                self._writer = self._open(delta)
            cursor = self._writer.found.read_cursor()
            if cursor is not None and not _begins_at(cursor, delta):
                has_files = not cursor.extra.get("pending")
                has_facts = delta.more or self._facts.sent.items() <= cursor.sent.items()
                if _is_past(cursor, delta) and has_files and has_facts:
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

        In a database its id follows from the run's identity and from `replaces`, the run whose place it takes. So two
        exports at once cannot create two runs. The list of user tags is missing, since user tags are sent later.
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
        """Delete duplicates of the run before the last cursor is written, and return the run as MLflow holds it now.

        Do nothing in a database, where run ids keep duplicates from being created. Raise ConflictError if another run
        is the target.
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
            raise conflict(mine, f"is no longer the target of {self._run.path}")
        return target

    # Replacing a run

    def rebuild(self, deltas: Iterable[Delta]) -> Applied:
        """Fill a new run, then replace the old one by it. What people edited in the old run is kept."""
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
        if "name" in user_edits(old, old.read_cursor()):
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
        if "notes" in user_edits(old, old.read_cursor()):
            kept[Tag.NOTES] = old.tags.get(Tag.NOTES, "")
        return kept

    def _copy_user_files(self, old: str, new: str) -> list[Notice]:
        """Copy the artifacts of `old` that the bridge did not upload. Return notices for those that are refused."""
        api = self._store.api
        upload = ArtifactUpload(api=api, run_id=new)
        with tempfile.TemporaryDirectory(prefix="bridge-carry-") as folder:
            for path in api.all_files(old):
                if not is_own_file(path):
                    found = api.download(old, path, Path(folder)).resolve()
                    upload.add_file(path, RunFile(found, found.stat().st_size, 0))  # people may add models of gigabytes
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

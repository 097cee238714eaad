"""Write deltas into one MLflow run: files first, then points and facts, and the cursor last."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import ConflictError, RebuildNeededError, TargetError, TargetRefusedError
from bridge.exporters.contract import Applied
from bridge.exporters.mlflow.errors import RETRY_PAUSES_S, conflict
from bridge.exporters.mlflow.facts import (
    Tag,
    is_obsolete,
    key_of_best,
    keys_of,
    names_tags,
    read_names_tags,
    renamed,
    sweep_of,
)
from bridge.exporters.mlflow.media import (
    CAPTIONS_FILE,
    MEDIA_FILE,
    ArtifactUpload,
    add_captions,
    add_checkpoints,
    add_media,
    add_run_files,
    has_captions,
    table_tag,
)
from bridge.exporters.mlflow.rows import rows_of
from bridge.exporters.mlflow.runs import FoundRun, RunRow, RunUpdate
from bridge.exporters.mlflow.store import edited_tags, sent_tags, user_edits
from bridge.exporters.mlflow.sweeps import Sweep
from bridge.model import Cursor, Delta, Notice, NoticeKind
from bridge.options import ContentOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bridge.exporters.mlflow.facts import RunFacts
    from bridge.exporters.mlflow.runs import Experiment
    from bridge.exporters.mlflow.store import MlflowStore
    from bridge.model import Run

ADJUSTED_OPTIONS = ("best", "checkpoints")
"""The content options that an existing run takes without a rebuild."""


@dataclass(slots=True)
class _DeltaWork:
    """The write of one delta past `cursor`: the `update` of the run, and `sent` and `extra` of the new cursor.

    `keys` maps each metric to its key. `extra` may have these entries:

    - `files`, `checkpoints`: signatures of what was uploaded (`add_run_files`, `add_checkpoints`).
    - `bests`: the keys of the metrics that `--best` added.
    - `odd_media`: true if some tags of media were renamed; MEDIA_FILE maps them back.
    - `pending`: true if the artifact store failed; a number if two exports wrote files at the same time
      (`RunUpdate.reopened`). The next export sends the files.
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
    """Writes deltas into one MLflow run: files first, then points and facts, and the cursor last.

    `found` is the run as MLflow holds it now, in `experiment`. `before_last` is called before the last delta of an
    export is written; it may return the run as MLflow holds it then. With `is_new` the first write creates the run.
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
        """Write `delta` and its cursor. Raise TargetError, or RebuildNeededError if only a new run can hold `delta`."""
        cursor = self.found.read_cursor() or Cursor(self.run.identity, str(self.run.path))
        self._check_leftovers(delta, cursor)
        keys = self._metric_keys(delta, cursor)
        update = RunUpdate(rows=rows_of(delta.blocks, keys), own_keys=keys.values(), replace_from=delta.replace_from)
        work = _DeltaWork(delta, cursor, keys, update, sent=dict(cursor.sent), extra=dict(cursor.extra))
        work.notices += self._point_notices(delta, keys)
        self._add_bests(work)
        if not delta.more:
            work.notices += [*self.facts.notices, *self.store.naming.notices(self.run)]
            self._add_facts(work)
        if delta.remember is not None:
            remembered = delta.remember.with_(sent=cursor.sent, extra=cursor.extra)
            self._set_tags({Tag.CURSOR: remembered.to_json()})
        size = self._upload(work)
        try:
            now = None if delta.more else self.before_last()
            self._write(work, now)
        except ConflictError:
            self.store.runs.reopen(self.found.run_id, update)
            raise
        return Applied(points=delta.points, media=len(delta.media), bytes=size, notices=tuple(work.notices))

    def _metric_keys(self, delta: Delta, cursor: Cursor) -> dict[str, str]:
        """Return the key of each metric. A delta without new rows may name no metrics; then MLflow's run names them."""
        if delta.metrics:
            return keys_of(delta.metrics, dict(self.content.rename), ignores_case=self.store.ignores_case)
        try:
            renamed_keys = read_names_tags(self.found.tags).get("metrics", {})
        except TargetRefusedError as error:
            raise RebuildNeededError("the names of its metrics cannot be read") from error
        taken = {*renamed_keys.values(), *cursor.extra.get("bests", ())}
        return {key: key for key in self.found.metrics if key not in taken} | renamed_keys

    def _check_leftovers(self, delta: Delta, cursor: Cursor) -> None:
        """Raise RebuildNeededError if a stopped export sent points or media that no longer count."""
        # Before media are sent, the run is marked with the number of lines of media.jsonl. If fewer events count now
        # than lines were sent, some of the media already sent no longer count.
        are_sent = cursor.media_lines < int(self.found.tags.get(Tag.PENDING_MEDIA, 0))
        if are_sent and len(delta.media) < delta.after.media_lines - cursor.media_lines:
            raise RebuildNeededError("media that no longer count were sent by an export that was stopped")

    def _point_notices(self, delta: Delta, keys: Mapping[str, str]) -> list[Notice]:
        """Return notices for metrics that were renamed, unless `--rename` asked for it, and for infinite values."""
        rename = dict(self.content.rename)
        fresh = {name for block in delta.blocks for name in block.names}
        notices = [
            Notice(NoticeKind.RENAMED, name, f"as {key}; the tags {Tag.NAMES}* map it back")
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

        Best values that are no longer asked for are deleted from a database. MLflow's API cannot delete them.
        Raise RebuildNeededError if the run itself now logs a metric of such a name, or if max and min were exchanged
        and MLflow's API cannot delete the old best value.
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
            best_key = key_of_best(key)
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
        """Add the facts that differ from those of MLflow's run to the update. Edits of people stay.

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
        wanted |= names_tags({"metrics": renamed(work.keys), "params": renamed(facts.params.keys)})
        if "notes" not in edited and (facts.notes or Tag.NOTES in found.tags):
            wanted[Tag.NOTES] = facts.notes
        update.tags = {key: value for key, value in wanted.items() if found.tags.get(key) != value}
        update.tags |= self._parent_tag()
        gone = {key for key in before if key not in facts.user_tags and key not in edited_keys and key in found.tags}
        gone |= {
            key for key in found.tags if is_obsolete(key, facts) or (key.startswith(Tag.NAMES) and key not in wanted)
        }
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
        work.update.files_past = work.cursor  # some may have been stored
        detail = f"{error.message} The next export sends them. {error.hint or ''}".rstrip()
        work.notices.append(Notice(NoticeKind.REFUSED, "artifacts", detail))
        return 0

    def _send_files(self, work: _DeltaWork) -> int:
        """Send the files. Change `work` once they are all there."""
        delta, extra, tags = work.delta, dict(work.extra), dict[str, str]()
        extra.pop("pending", None)
        folder = self.store.artifact_folder(self.experiment, self.found.run_id)
        if self.is_new and folder is None:
            # An artifact store that is not a local path asks for the run.
            self._send(RunUpdate())
            self.found = self.store.runs.run(self.found.run_id)
        upload = ArtifactUpload(folder, api=self.store.api, run_id=self.found.run_id)
        media = add_media(upload, self.run.identity, delta.media)
        if media.in_grid and Tag.IMAGES not in self.found.tags:
            tags[Tag.IMAGES] = "True"
        if media.names:
            held = self._held(MEDIA_FILE, work, is_known=bool(extra.get("odd_media")))
            upload.add_json(MEDIA_FILE, held | media.names)
            extra["odd_media"] = True
        if media.captions:
            held = self._held(CAPTIONS_FILE, work, is_known=has_captions(self.found.tags))
            add_captions(upload, media.captions, held)
            tags |= table_tag(self.found.tags)
        if not delta.more:
            files = add_run_files(upload, self.run, self.content, extra.get("files", {}))
            if files:
                extra["files"] = files
            if self.content.checkpoints:
                extra["checkpoints"] = add_checkpoints(upload, self.run, extra.get("checkpoints", {}))
        is_path = self.store.address.is_server and self.experiment.artifacts.startswith(("/", "file:"))
        work.notices += upload.finish(is_shared_path=is_path)
        work.extra = extra
        work.update.tags |= tags
        if upload.paths:
            work.update.files_past = work.cursor
        return upload.bytes

    def _held(self, path: str, work: _DeltaWork, *, is_known: bool) -> dict[str, Any]:
        """Return the JSON object that MLflow holds at `path`; an empty one if there is none.

        If it is known to exist and cannot be read, all media must be sent again. Then raise ConflictError.
        """
        for pause in (*RETRY_PAUSES_S, None):
            data = self._artifact(path)
            if data is None:
                break
            with contextlib.suppress(ValueError):
                found = json.loads(data)
                if isinstance(found, dict):
                    return found
            if pause is not None:
                time.sleep(pause)  # a server may just be storing it for another export
        if is_known and work.cursor.media_lines:
            nothing = Cursor(self.run.identity, str(self.run.path))
            self.store.runs.reopen(self.found.run_id, RunUpdate(files_past=nothing))
            raise conflict(self.found.run_id, f"has lost its {path}")
        return {}

    def _artifact(self, path: str) -> bytes | None:
        folder = self.store.artifact_folder(self.experiment, self.found.run_id)
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
            self._send(RunUpdate(tags=tags))

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
            after = after.with_media_of(work.cursor).with_(stat=None)
        if update.replace_from is not None:
            interim = self.found.read_cursor() or work.cursor
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

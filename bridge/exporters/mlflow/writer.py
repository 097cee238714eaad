"""The two ways to write a run: a database in one transaction, or the API in an order that a stop cannot harm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from bridge.errors import ConflictError, TargetRefusedError
from bridge.exporters.mlflow.api import batches
from bridge.exporters.mlflow.people import LIST_TAGS
from bridge.exporters.mlflow.points import batches_of, without_held
from bridge.exporters.mlflow.rows import rows_of_blocks
from bridge.exporters.mlflow.tags import Tag

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow.entities import Run as MlflowRun

    from bridge.exporters.mlflow.api import Api
    from bridge.exporters.mlflow.database import Change
    from bridge.exporters.mlflow.run_rows import RunFacts

__all__ = ["ApiWriter", "Writer"]


_A_REQUEST = 100
"""Tags in one request."""


class Writer(Protocol):
    """Writes one change of one run: data first, the cursor with it or after it."""

    def write(self, run_uuid: str, change: Change) -> int:
        """Bring `change` into the run, durably; how many points were new. Raises TargetError, ConflictError."""
        ...


@dataclass(frozen=True, slots=True)
class ApiWriter:
    """Writes through MlflowClient.

    A change whose points take several requests sets the tag `bridge.pending` first and takes it away at the end:
    a run that has it holds points past its cursor, and they are not sent a second time.
    """

    api: Api

    def write(self, run_uuid: str, change: Change) -> int:
        """Bring `change` into the run: points, params, the run's own row, tags, and the cursor as the last of all."""
        now = self.api.get(run_uuid)
        self._check_cursor(now, change)
        sent, pending = self._send_points(now, change)
        self._send_params(run_uuid, change.params)
        if change.facts is not None:
            self._set_facts(now, change.facts)
        gone = sorted({key for key in change.deleted_tags if key in now.data.tags})
        for key in gone:
            if key not in LIST_TAGS:
                self._delete_tag(run_uuid, key)
        self._send_tags(run_uuid, change.tags)
        for key in gone:
            if key in LIST_TAGS:  # behind the end of the list that was just sent; before that it was a part of it
                self._delete_tag(run_uuid, key)
        if pending and Tag.CURSOR in change.tags:  # only now: a stop before the cursor must find it
            self._delete_tag(run_uuid, Tag.PENDING)
        return sent

    def _delete_tag(self, run_uuid: str, key: str) -> None:
        try:
            self.api.call("delete_tag", run_uuid, key)
        except TargetRefusedError:
            # Another export was faster, or the answer to our own first try was lost.
            if key in self.api.get(run_uuid).data.tags:
                raise

    def _check_cursor(self, now: MlflowRun, change: Change) -> None:
        cursor = now.data.tags.get(Tag.CURSOR)
        if now.info.lifecycle_stage == "deleted":
            raise ConflictError(f"MLflow run {now.info.run_id} was deleted in the meantime.", hint="Export again.")
        if cursor not in (change.expected_cursor, change.tags.get(Tag.CURSOR)):
            raise ConflictError(
                f"MLflow run {now.info.run_id} was changed by another export at the same time.", hint="Export again."
            )

    def _send_points(self, now: MlflowRun, change: Change) -> tuple[int, bool]:
        """Send the points; how many, and whether the run now has the tag that says that they may be half there."""
        run_id, pending = now.info.run_id, Tag.PENDING in now.data.tags
        rows = [part.distinct() for part in rows_of_blocks(change.blocks, change.names)]
        if pending:
            rows = without_held(rows, {part.key: self.api.history(run_id, part.key) for part in rows})
        pieces = list(batches_of(rows))
        if len(pieces) > 1 and not pending:
            self.api.set_tags(run_id, {Tag.PENDING: "true"})
            pending = True
        for piece in pieces:
            self.api.send_points(run_id, piece)
        return sum(len(part) for part in rows), pending

    def _send_params(self, run_id: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        for piece in batches(params):
            entities = [Param(key, value) for key, value in piece.items()]
            self.api.call("log_batch", run_id, params=entities)

    def _set_facts(self, now: MlflowRun, facts: RunFacts) -> None:
        run_id, info = now.info.run_id, now.info
        if facts.end_ms is not None and (info.end_time != facts.end_ms or info.status != facts.status):
            self.api.call("set_terminated", run_id, facts.status, facts.end_ms)
        changed = {
            "status": facts.status if facts.end_ms is None and info.status != facts.status else None,
            "name": facts.name if info.run_name != facts.name else None,
        }
        if any(changed.values()):
            self.api.call("update_run", run_id, **changed)

    def _send_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set the tags; the list of people's, which makes sense as a whole only, travels with the cursor, as the last."""
        last = {key: tags[key] for key in (*LIST_TAGS, Tag.CURSOR) if key in tags}
        for piece in batches({key: value for key, value in tags.items() if key not in last}, _A_REQUEST):
            if len(piece) + len(last) <= _A_REQUEST:
                last = piece | last
            else:
                self.api.set_tags(run_id, piece)
        if last:
            self.api.set_tags(run_id, last)

"""Write runs through MLflow's client, in an order from which the next export recovers after a stop at any point.

`MlflowClient` cannot delete points, clear an end time or replace a param. So the data goes first and the cursor last.
"""

from __future__ import annotations

import contextlib
import json
import time
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from bridge.errors import RebuildNeededError, TargetRefusedError
from bridge.exporters.mlflow.client import MlflowApi
from bridge.exporters.mlflow.errors import RETRY_PAUSES_S, RunGoneError, SentTwiceError, conflict
from bridge.exporters.mlflow.facts import Tag
from bridge.exporters.mlflow.rows import KeyRows, batches_of_rows, best_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlflow.entities import Metric

    from bridge.exporters.mlflow.runs import FoundRun, RunRow, RunUpdate

Fields: TypeAlias = "tuple[dict[str, str], dict[str, str]]"
"""The params and the tags of one request."""

NO_FIELDS: Fields = ({}, {})

POINTS_A_REQUEST = 1000
"""The most points that MLflow accepts in one request, and the most points, params and tags together."""

BYTES_A_REQUEST = 900_000
"""The most bytes sent in one request. MLflow accepts 1,000,000."""

_POINTS_A_REPEATED_REQUEST = 100
"""The points in one request that every server accepts, also if it holds some of them."""

_BYTES_A_POINT = 120
"""The most bytes of a point in a request beside its key: field names, value, time and step."""

_ENTITIES_A_REQUEST = 100
"""The most params that MLflow accepts in one request, and the most tags."""


class ApiRuns(MlflowApi):
    """The runs behind MLflow's client.

    If the points of an update take several requests, the first ones are in the run before its cursor covers them. So
    the tag `mlflow.bridge.pending` is set first and deleted at the end, unless the cursor covers nothing yet. Points
    past the cursor are not sent a second time.
    """

    def write(self, run_id: str, update: RunUpdate, now: FoundRun | None = None) -> None:
        """Bring `update` into the run: points, name, params, tags, the cursor, and last a status that ends the run.

        `now` is the run if it was read a moment ago. The last points go with the cursor, so a stop leaves none that it
        does not cover. Raise TargetError; RebuildNeededError for a best that cannot be corrected.
        """
        now = now or self.run(run_id)
        _check_cursor(now, update)
        logged = [part.distinct() for part in update.rows]
        is_pending, is_empty = Tag.PENDING in now.tags, _covers_nothing(now)
        bests = [
            best
            for best_key, (key, sign) in sorted(update.bests.items())
            if (best := self._best(now, best_key, key, sign, next((part for part in logged if part.key == key), None)))
        ]
        *fields, last = fields_for_requests(update.params, update.tags)
        rows = self._missing(run_id, logged) if is_pending or (is_empty and now.metrics) else logged
        *batches, last_rows = list(batches_for_requests(rows, last, bests)) or [[]]
        if batches and not is_pending and not is_empty:
            self.set_tags(run_id, {Tag.PENDING: "true"})
            is_pending = True
        for batch in batches:
            self._log(run_id, batch, NO_FIELDS)
        row = update.row
        if row is not None:
            self._set_row(now, row)
        for key in sorted(set(update.deleted_tags) & set(now.tags)):
            self._delete_tag(run_id, key)
        for some in fields:
            self._log(run_id, (), some)
        if last_rows or bests or any(last):
            self._log(run_id, [*last_rows, *bests], last)
        if row is not None and row.end is not None and (now.end, now.status) != (row.end, row.status):
            self.call("set_terminated", run_id, row.status, row.end)
        if is_pending and Tag.CURSOR in update.tags:  # not earlier: after a stop before the cursor it must be there
            self._delete_tag(run_id, Tag.PENDING)

    def reopen(self, run_id: str, update: RunUpdate) -> None:
        """Make the next export store the run's files again after `update` met ConflictError (`RunUpdate.reopened`)."""
        with contextlib.suppress(RunGoneError):
            tags = update.reopened(self.run(run_id).tags)
            if tags:
                self.set_tags(run_id, tags)

    def _missing(self, run_id: str, logged: Sequence[KeyRows]) -> list[KeyRows]:
        """Return the rows that the run lacks. Raise RebuildNeededError if it holds others at their steps."""
        left: list[KeyRows] = []
        for part in logged:
            held = self.history(run_id, part.key)
            wanted, steps = set(part.points()), set(part.step.tolist())
            if any(point[1] in steps and point not in wanted for point in held.points()):
                raise RebuildNeededError("points that no longer count were sent by an export that was stopped")
            left += part.without(held)
        return left

    def _log(self, run_id: str, rows: Sequence[KeyRows], fields: Fields) -> None:
        """Send the points and fields of one request, even if the server holds some of the points already.

        Servers up to 3.8 refuse a request for several metrics of which they hold some points, however often it is sent.
        They accept the missing points of one metric, at most 100 at a time.
        """
        try:
            self._log_batch(run_id, rows, fields)
        except SentTwiceError:
            for part in rows:
                for pause in (*RETRY_PAUSES_S, None):
                    left = part.without(self.history(run_id, part.key))
                    try:
                        for batch in batches_of_rows(left, _POINTS_A_REPEATED_REQUEST):
                            self._log_batch(run_id, batch, NO_FIELDS)
                        break
                    except SentTwiceError:  # the first request is still being carried out
                        if pause is None:
                            raise
                        time.sleep(pause)
            if any(fields):
                self._log_batch(run_id, (), fields)

    def _log_batch(self, run_id: str, rows: Sequence[KeyRows], fields: Fields) -> None:
        """Log points, params and tags in one request. MLflow stores params first, then points, then tags.

        Over HTTP, write the body of the request here: MLflow's client makes five objects of each point, and takes eight
        times as long to send the same body to the same documented endpoint. Use the client for all other stores.
        """
        if self.address.uri.startswith(("http://", "https://")):
            headers = {"Content-Type": "application/json"}
            self.request("POST", "runs/log-batch", data=body_of(run_id, rows, fields), extra_headers=headers)
        else:
            self.call("log_batch", run_id, **entities_of(rows, fields))

    def _best(self, now: FoundRun, best_key: str, key: str, sign: int, logged: KeyRows | None) -> KeyRows | None:
        """Return the best value of `key` so far as a row of `best_key`, None if that is its latest value already.

        Raise RebuildNeededError if the best stands before the latest point of `best_key`, which cannot be deleted.
        """
        held = self.history(now.run_id, best_key).latest()[0] if best_key in now.metrics else None
        known = held
        if held is None and key in now.metrics:
            known = self.history(now.run_id, key).best(sign)
        new = best_of(sign, known, logged.best(sign) if logged is not None else None)
        if new is None or new == held:
            return None
        if held is not None and new < held:
            raise RebuildNeededError(f"the best value of {key} moved to an earlier step")
        return KeyRows.of(best_key, [new.timestamp], [new.step], [new.value])

    def _set_row(self, now: FoundRun, row: RunRow) -> None:
        """Set what changed of the name, and of a status that does not end the run."""
        changed = {
            "status": row.status if row.end is None and now.status != row.status else None,
            "name": row.name if now.name != row.name else None,
        }
        if any(changed.values()):
            self.call("update_run", now.run_id, **changed)

    def _delete_tag(self, run_id: str, key: str) -> None:
        try:
            self.call("delete_tag", run_id, key)
        except TargetRefusedError:
            # Another export was faster, or the answer to our first try was lost.
            if key in self.run(run_id).tags:
                raise


def _covers_nothing(now: FoundRun) -> bool:
    """Return True if all points of the run are past its cursor. The parent of a sweep has no cursor."""
    cursor = now.read_cursor()
    return cursor is not None and not cursor.rows


def _check_cursor(now: FoundRun, update: RunUpdate) -> None:
    if now.deleted:
        raise conflict(now.run_id, "was deleted in the meantime")
    if now.tags.get(Tag.CURSOR) not in (update.expected_cursor, update.tags.get(Tag.CURSOR)):
        raise conflict(now.run_id, "was changed by another export at the same time")


# ---------------------------------------------------------------------------------------------------------------------
# Requests


def fields_for_requests(params: Mapping[str, str], tags: Mapping[str, str]) -> list[Fields]:
    """Return params and tags as one request takes them, with room for points. The cursor is in the last request.

    The list of user tags belongs to the cursor.
    """
    last = {key: tags[key] for key in (Tag.TAGS, Tag.CURSOR) if key in tags}
    others = {key: value for key, value in tags.items() if key not in last}
    requests = list(zip_longest(_pieces(params), _pieces(others), fillvalue=dict[str, str]()))
    if not requests or len(requests[-1][1]) + len(last) > _ENTITIES_A_REQUEST:
        requests.append(({}, {}))
    return [*requests[:-1], (requests[-1][0], requests[-1][1] | last)]


def _pieces(pairs: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Yield `pairs` in pieces of which a request takes one of params and one of tags, and leave it room for points."""
    piece: dict[str, str] = {}
    size = 0
    for key, value in pairs.items():
        more = len(json.dumps({"key": key, "value": value})) + 2
        if piece and (len(piece) == _ENTITIES_A_REQUEST or size + more > BYTES_A_REQUEST // 3):
            yield piece
            piece, size = {}, 0
        piece[key] = value
        size += more
    if piece:
        yield piece


def batches_for_requests(
    rows: Sequence[KeyRows], fields: Fields, bests: Sequence[KeyRows] = ()
) -> Iterator[list[KeyRows]]:
    """Yield `rows` in order, as many at a time as one request takes beside `fields` and `bests`."""
    longest = max((len(_json(part.key).encode()) for part in rows), default=0)
    most = POINTS_A_REQUEST - sum(map(len, fields)) - len(bests)
    room = BYTES_A_REQUEST - len(body_of("", bests, fields))
    return batches_of_rows(rows, min(most, room // (longest + _BYTES_A_POINT)))


def body_of(run_id: str, rows: Sequence[KeyRows], fields: Fields) -> bytes:
    """Return the body of a request to `runs/log-batch`, with the points written as text from the columns."""
    points: list[str] = []
    for part in rows:
        head = f'{{"key":{_json(part.key)},"value":'
        values = [repr(value) for value in part.value.tolist()]
        for at in np.flatnonzero(part.is_nan).tolist():
            values[at] = '"NaN"'
        columns = zip(values, part.timestamp.tolist(), part.step.tolist(), strict=True)
        points += [f'{head}{value},"timestamp":{timestamp},"step":{step}}}' for value, timestamp, step in columns]
    pairs = {
        name: [{"key": key, "value": value} for key, value in some.items()]
        for name, some in zip(("params", "tags"), fields, strict=True)
    }
    body = f'{{"run_id":{_json(run_id)},"metrics":[{",".join(points)}],{json.dumps(pairs)[1:]}'
    return body.encode()


def entities_of(rows: Sequence[KeyRows], fields: Fields) -> dict[str, list[Any]]:
    """Return points, params and tags as arguments of MLflow's client, for stores that are not reached over HTTP."""
    from mlflow.entities import Metric, Param, RunTag

    metrics: list[Metric] = []
    for part in rows:
        columns = zip(part.shown.tolist(), part.timestamp.tolist(), part.step.tolist(), strict=True)
        metrics += [Metric(part.key, value, timestamp, step) for value, timestamp, step in columns]
    return {
        "metrics": metrics,
        "params": [Param(*pair) for pair in fields[0].items()],
        "tags": [RunTag(*pair) for pair in fields[1].items()],
    }


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)

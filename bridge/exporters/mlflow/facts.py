"""Everything that a run directory says of its run beside points and files, in MLflow's words."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.cursor import sent_facts
from bridge.exporters.mlflow.names import KEY_LIMIT, storable
from bridge.exporters.mlflow.notes import description
from bridge.exporters.mlflow.params import Params, params_of, volatile_tag
from bridge.exporters.mlflow.status import STATUSES, end_of, start_of
from bridge.exporters.mlflow.tags import Tag, cut_tag, own_tags, people_tags, tells_of_sessions
from bridge.model import Loss, LossKind
from bridge.redaction import MASK, Redaction

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bridge.cursor import Shape
    from bridge.model import Run

__all__ = ["MOST_TAGS", "Facts", "digest", "facts_of"]

MOST_TAGS = 1000
"""Tags of one run that are sent; a run with more of them is a mistake that must not cost hours."""


@dataclass(frozen=True, slots=True)
class Facts:
    """A run's facts as they are to stand in MLflow.

    `people` are the tags made of the sidecar's, `own` the bridge's and MLflow's natural ones. `start` and `end` are
    milliseconds since the epoch; `end` is None while the run is running. `sent` is what a cursor keeps of all this.
    `whole_notes` are the notes where `notes` had to be cut.
    """

    name: str
    notes: str
    people: Mapping[str, str]
    own: Mapping[str, str]
    params: Params
    status: str
    start: int
    end: int | None
    sent: Mapping[str, str]
    losses: tuple[Loss, ...]
    whole_notes: str | None = None


def facts_of(run: Run, shape: Shape) -> Facts:
    """The facts of `run` for a target of `shape`."""
    redaction = Redaction(shape.redact)
    params = params_of(run, shape, redaction)
    losses = list(params.losses)
    notes, notes_loss = description(storable(run.notes))
    losses += [notes_loss] if notes_loss else []
    people = _people(run, redaction, losses)
    newest = {volatile_tag(key): params.values[key] for key in sorted(params.volatile)}
    own = {key: _kept(key, value, losses) for key, value in (own_tags(run, redaction) | newest).items()}
    masked = [key for key, value in own.items() if MASK in value and tells_of_sessions(key)]
    losses += [Loss(LossKind.REDACTED, f"tag {key}") for key in masked]
    name = storable(run.name or run.run_id or "run")[:KEY_LIMIT]
    lasting = {key: value for key, value in params.values.items() if key not in params.volatile}
    sent = sent_facts(run) | {
        "name": digest(name),
        "notes": digest(notes),
        "tags": digest(json.dumps([sorted(people.items()), own[Tag.TAGS]])),
        "own": digest(json.dumps([sorted(own.items()), run.notes if notes_loss else ""])),
        "params": digest(json.dumps([sorted(lasting.items()), sorted(params.whole.items())])),
    }
    return Facts(
        name=name,
        notes=notes,
        people=people,
        own=own,
        params=params,
        status=STATUSES[run.status],
        start=start_of(run),
        end=end_of(run),
        sent=sent,
        losses=tuple(losses),
        whole_notes=run.notes if notes_loss else None,
    )


def digest(text: str) -> str:
    """A short digest of `text` for `Cursor.sent`."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _people(run: Run, redaction: Redaction, losses: list[Loss]) -> dict[str, str]:
    """The tags that the sidecar's become; what of them is masked, cut or too much is added to `losses`."""
    masked = [redaction.tag(tag) for tag in run.tags]
    losses += [
        Loss(LossKind.REDACTED, f"tag {re.split('[:=]', tag)[0]:.40}")
        for tag, shown in zip(run.tags, masked, strict=True)
        if tag != shown
    ]
    people = people_tags(storable(tag) for tag in masked)
    if len(people) > MOST_TAGS:
        detail = f"of {len(people)} tags the first {MOST_TAGS} are kept; all are in sidecar.json"
        losses.append(Loss(LossKind.LEFT_OUT, "tags", detail, count=len(people) - MOST_TAGS))
        people = dict(list(people.items())[:MOST_TAGS])
    return {key: _kept(key, value, losses) for key, value in people.items()}


def _kept(key: str, value: str, losses: list[Loss]) -> str:
    value, loss = cut_tag(key, value)
    if loss is not None:
        losses.append(loss)
    return value

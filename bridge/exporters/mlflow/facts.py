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
from bridge.exporters.mlflow.people import listed, people_losses, people_tags
from bridge.exporters.mlflow.status import STATUSES, end_of, start_of
from bridge.exporters.mlflow.tags import cut_tag, own_tags, slurm_keys, tells_of_sessions
from bridge.model import Notice, NoticeKind
from bridge.secrets import MASK, Redaction

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bridge.cursor import ContentOptions
    from bridge.model import Run

__all__ = ["Facts", "digest", "facts_of"]


@dataclass(frozen=True, slots=True)
class Facts:
    """A run's facts as they are to stand in MLflow.

    `people` are the tags made of the sidecar's, `own` the bridge's and MLflow's natural ones. `start` and `end` are
    milliseconds since the epoch; `end` is None while the run is running. `sent` is what a cursor keeps of all this.
    `whole_notes` are the notes where `notes` had to be cut. `lists_all`: whether the list among `own` has all tags.
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
    notices: tuple[Notice, ...]
    whole_notes: str | None = None
    lists_all: bool = True


def facts_of(run: Run, content: ContentOptions) -> Facts:
    """The facts of `run` for a target of `shape`."""
    redaction = Redaction(content.redact)
    params = params_of(run, content, redaction)
    notices = list(params.notices)
    notes, notes_loss = description(storable(run.notes))
    notices += [notes_loss] if notes_loss else []
    tags = _masked(run, redaction, notices)
    kept, pages = listed(tags)
    people = people_tags(kept)
    notices += people_losses(tags, people, kept)
    values = {key: _kept(key, value, notices) for key, value in people.values.items()}
    newest = {volatile_tag(key): params.values[key] for key in sorted(params.volatile)}
    own = pages | {key: _kept(key, value, notices) for key, value in (own_tags(run, redaction) | newest).items()}
    masked = [key for key, value in own.items() if MASK in value and tells_of_sessions(key)]
    notices += [Notice(NoticeKind.REDACTED, f"tag {key}") for key in masked]
    notices += _odd_losses(run)
    name = storable(run.name or run.run_id or "run")[:KEY_LIMIT]
    lasting = {key: value for key, value in params.values.items() if key not in params.volatile}
    sent = sent_facts(run) | {
        "name": digest(name),
        "notes": digest(notes),
        "tags": digest(json.dumps([sorted(values.items()), *pages.values()])),
        "bridge tags": digest(json.dumps([sorted(own.items()), run.notes if notes_loss else ""])),
        "params": digest(json.dumps([sorted(lasting.items()), sorted(params.whole.items())])),
    }
    return Facts(
        name=name,
        notes=notes,
        people=values,
        own=own,
        params=params,
        status=STATUSES[run.status],
        start=start_of(run),
        end=end_of(run),
        sent=sent,
        notices=tuple(notices),
        whole_notes=run.notes if notes_loss else None,
        lists_all=len(kept) == len(tags),
    )


def digest(text: str) -> str:
    """A short digest of `text` for `Cursor.sent`."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _masked(run: Run, redaction: Redaction, notices: list[Notice]) -> list[str]:
    """The run's tags without what is secret in them, which is added to `notices`."""
    masked = [redaction.tag(tag) for tag in run.tags]
    notices += [
        Notice(NoticeKind.REDACTED, f"tag {re.split('[:=]', tag)[0]:.40}")
        for tag, shown in zip(run.tags, masked, strict=True)
        if tag != shown
    ]
    return [storable(tag) for tag in masked]


def _odd_losses(run: Run) -> list[Notice]:
    """What of the other facts MLflow cannot hold as it is."""
    nul = "NUL characters cannot be stored"
    notices = [Notice(NoticeKind.CUT, "notes", nul)] if "\0" in run.notes else []
    notices += [Notice(NoticeKind.CUT, "name", nul)] if "\0" in run.name else []
    notices += [Notice(NoticeKind.CUT, "tags", nul)] if any("\0" in tag for tag in run.tags) else []
    if len(run.name) > KEY_LIMIT:
        detail = f"of {len(run.name)} characters the first {KEY_LIMIT} are kept; in full in sidecar.json"
        notices.append(Notice(NoticeKind.CUT, "name", detail))
    notices += [
        Notice(NoticeKind.RENAMED, f"tag bridge.{name}", f"as {key}; in sidecar.json as it is")
        for name, key in slurm_keys(run.sessions).items()
        if key != f"bridge.{name}"
    ]
    return notices


def _kept(key: str, value: str, notices: list[Notice]) -> str:
    value, notice = cut_tag(key, value)
    if notice is not None:
        notices.append(notice)
    return value

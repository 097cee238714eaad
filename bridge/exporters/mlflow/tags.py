"""A run's tags as MLflow's: people's own by a rule that can be done backwards, the bridge's under `bridge.`."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

from bridge.exporters.mlflow.checkpoints import checkpoint_tags
from bridge.exporters.mlflow.names import clean, storable
from bridge.model import Loss, LossKind, Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bridge.model import Run, Session
    from bridge.redaction import Redaction

__all__ = [
    "TAG_LIMIT",
    "Tag",
    "cut_tag",
    "listed",
    "own_tags",
    "people_tags",
    "sweep_of",
    "tag_key",
    "tells_of_sessions",
]

TAG_LIMIT = 5000
"""Characters in a tag's value that every server takes whole (newer ones take 8000); longer ones are cut by us."""

_KEY_VALUE = re.compile(r"([A-Za-z0-9_.\-]+):(.*)", re.DOTALL)
_OURS = ("mlflow.", "bridge.")


class Tag:
    """The keys of the tags that the bridge reads back."""

    UID = "bridge.uid"
    RUN_ID = "bridge.run_id"
    SOURCE = "bridge.source"
    CURSOR = "bridge.cursor"
    TAGS = "bridge.tags"
    STATUS = "bridge.status"
    TIME = "bridge.time"
    NAMES = "bridge.names"
    SWEEP = "bridge.sweep"
    EXPERIMENT = "bridge.experiment"
    BUILDING = "bridge.building"
    PENDING = "bridge.pending"
    REPLACES = "bridge.replaces"
    REPLACED_BY = "bridge.replaced_by"
    DUPLICATE_OF = "bridge.duplicate_of"
    NAME = "mlflow.runName"
    NOTES = "mlflow.note.content"
    PARENT = "mlflow.parentRunId"
    IMAGES = "mlflow.loggedImages"
    ARTIFACTS = "mlflow.loggedArtifacts"


def people_tags(tags: Iterable[str]) -> dict[str, str]:
    """The sidecar's tags as MLflow's.

    `key:value` becomes key = value, several of one key are joined by `, `; any other text is a bare word, `word` =
    `true` unless that key is taken. Keys that MLflow or the bridge uses get the prefix `tag.`.
    """
    values: dict[str, list[str]] = {}
    words: list[str] = []
    for tag in tags:
        found = _KEY_VALUE.fullmatch(tag)
        if found:
            values.setdefault(_key(found[1]), []).append(found[2])
        else:
            words.append(tag)
    joined = {key: ", ".join(parts) for key, parts in values.items()}
    return joined | {key: "true" for key in map(_key, words) if key not in joined}


def tag_key(tag: str) -> str:
    """The key of the tag in MLflow that a sidecar's tag becomes, or becomes a part of."""
    found = _KEY_VALUE.fullmatch(tag)
    return _key(found[1] if found else tag)


def listed(tags: Sequence[str]) -> str:
    """All tags as they are, as a JSON list of at most TAG_LIMIT characters: as many of the first as fit."""
    tags = tags[:TAG_LIMIT]
    text = json.dumps(tags, ensure_ascii=False)
    while len(text) > TAG_LIMIT:
        tags = tags[: min(len(tags) - 1, len(tags) * TAG_LIMIT // len(text))]
        text = json.dumps(tags, ensure_ascii=False)
    return text


def own_tags(run: Run, redaction: Redaction) -> dict[str, str]:
    """What the run directory says beside people's tags: whose it is, where from, how it went."""
    tags: dict[str, str | None] = {
        Tag.RUN_ID: run.run_id,
        Tag.SOURCE: os.fsencode(run.path).decode(errors="replace"),
        Tag.STATUS: run.status_word or run.status.value if run.status is Status.UNKNOWN else run.status.value,
        Tag.TAGS: listed([storable(redaction.tag(tag)) for tag in run.tags]),
        **checkpoint_tags(run),
        "bridge.sessions": str(len(run.sessions)) if run.sessions else None,
        "bridge.restarts": _restarts(run.sessions),
        "bridge.first_nan_step": _first_nan(run.summary_stats),
        Tag.TIME: None if run.time_column else "estimated",
        "bridge.archived": "true" if run.archived else None,
    }
    tags |= _natural(run.sessions, redaction)
    return {key: storable(value) for key, value in tags.items() if value is not None}


def tells_of_sessions(key: str) -> bool:
    """Whether the tag `key` is made of what the sidecar's sessions say freely."""
    return key == "mlflow.source.name" or key.startswith("bridge.slurm.")


def sweep_of(run: Run) -> str | None:
    """The sweep that the run belongs to: its tag `sweep:<id>`."""
    return next((tag.partition(":")[2] for tag in run.tags if re.match(r"sweep:.", tag)), None)


def cut_tag(key: str, value: str) -> tuple[str, Loss | None]:
    """A tag's value within the limit, and the loss where it was cut."""
    if len(value) <= TAG_LIMIT:
        return value, None
    detail = f"tag of {len(value)} characters, the first {TAG_LIMIT} are kept; in full in sidecar.json"
    return value[:TAG_LIMIT], Loss(LossKind.CUT, f"tag {key}", detail)


def _key(key: str) -> str:
    return clean(f"tag.{key}" if key.startswith(_OURS) else key)


def _restarts(sessions: Sequence[Session]) -> str | None:
    """How often the run was started again, if ever: what SLURM counted, else the sessions after the first."""
    counted = [session.restart_count for session in sessions if session.restart_count is not None]
    restarts = max([len(sessions) - 1, *counted])
    return str(restarts) if restarts > 0 else None


def _first_nan(stats: Mapping[str, Mapping[str, Any]]) -> str | None:
    steps = [one["first_nan_step"] for one in stats.values() if isinstance(one.get("first_nan_step"), int)]
    return str(min(steps)) if steps else None


def _natural(sessions: Sequence[Session], redaction: Redaction) -> dict[str, str | None]:
    """MLflow's own tags about the code and its user, of the newest session that knows each."""

    def newest(name: str) -> Any:
        return next((getattr(one, name) for one in reversed(sessions) if getattr(one, name) is not None), None)

    command = newest("command")
    slurm = next((one.slurm for one in reversed(sessions) if one.slurm), {})
    return {
        "mlflow.user": newest("user"),
        "mlflow.source.name": None if command is None else redaction.command(command),
        "mlflow.source.type": None if command is None else "LOCAL",
        "mlflow.source.git.commit": newest("git_commit"),
        "bridge.host": newest("host"),
        **{clean(f"bridge.slurm.{key}"): str(redaction.value(key, value)) for key, value in slurm.items()},
    }

"""The tags that the bridge makes of a run: its own under `bridge.`, and MLflow's about the code and its user."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from bridge.exporters.mlflow.checkpoints import checkpoint_tags
from bridge.exporters.mlflow.names import keys_of, storable
from bridge.files import shortened
from bridge.model import Notice, NoticeKind, Status

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bridge.model import Run
    from bridge.secrets import Redaction
    from logger.sidecar import SessionEntry

__all__ = [
    "TAG_LIMIT",
    "Tag",
    "cut_tag",
    "own_tags",
    "slurm_keys",
    "sweep_of",
    "tells_of_sessions",
]

TAG_LIMIT = 5000
"""Characters in a tag's value that every server takes whole (newer ones take 8000); longer ones are cut by us."""


class Tag:
    """The keys of the tags that the bridge reads back."""

    UID = "bridge.uid"
    RUN_ID = "bridge.run_id"
    SOURCE = "bridge.rundir"
    CURSOR = "bridge.cursor"
    TAGS = "bridge.tags"
    STATUS = "bridge.status"
    TIME = "bridge.time"
    NAMES = "bridge.names"
    SWEEP = "bridge.sweep"
    EXPERIMENT = "bridge.experiment"
    BUILDING = "bridge.building"
    PENDING = "bridge.pending"
    PENDING_MEDIA = "bridge.pending_media"
    REPLACES = "bridge.replaces"
    REPLACED_BY = "bridge.replaced_by"
    DUPLICATE_OF = "bridge.duplicate_of"
    NAME = "mlflow.runName"
    NOTES = "mlflow.note.content"
    PARENT = "mlflow.parentRunId"
    IMAGES = "mlflow.loggedImages"
    ARTIFACTS = "mlflow.loggedArtifacts"


def own_tags(run: Run, redaction: Redaction) -> dict[str, str]:
    """What the run directory says beside people's tags and their list: whose it is, where from, how it went."""
    tags: dict[str, str | None] = {
        Tag.RUN_ID: run.run_id,
        Tag.SOURCE: os.fsencode(run.path).decode(errors="replace"),
        Tag.STATUS: run.status_word or run.status.value if run.status is Status.UNKNOWN else run.status.value,
        **checkpoint_tags(run),
        "bridge.sessions": str(len(run.sessions)) if run.sessions else None,
        "bridge.restarts": _restarts(run.sessions),
        "bridge.first_nan_step": _first_nan(run.summary_stats),
        Tag.TIME: None if run.time_column else "estimated",
        "bridge.archived": "true" if run.archived else None,
    }
    tags |= _natural(run.sessions, redaction)
    return {key: storable(value) for key, value in tags.items() if value is not None}


def slurm_keys(sessions: Sequence[SessionEntry]) -> dict[str, str]:
    """The tags' keys for what the newest session that knows of SLURM says of it, by `slurm.NAME`."""
    names = [f"slurm.{name}" for name in _slurm(sessions)]
    return keys_of(names, {name: f"bridge.{name}" for name in names})


def tells_of_sessions(key: str) -> bool:
    """Whether the tag `key` is made of what the sidecar's sessions say freely."""
    return key == "mlflow.source.name" or key.startswith("bridge.slurm.")


def sweep_of(run: Run) -> str | None:
    """The sweep that the run belongs to: its tag `sweep:<id>`, as it can be looked for."""
    found = next((tag.partition(":")[2] for tag in run.tags if re.match(r"sweep:.", tag)), None)
    return None if found is None else shortened(storable(found))


def cut_tag(key: str, value: str) -> tuple[str, Notice | None]:
    """A tag's value within the limit, and the notice where it was cut."""
    if len(value) <= TAG_LIMIT:
        return value, None
    detail = f"tag of {len(value)} characters, the first {TAG_LIMIT} are kept; in full in sidecar.json"
    return value[:TAG_LIMIT], Notice(NoticeKind.CUT, f"tag {key}", detail)


def _restarts(sessions: Sequence[SessionEntry]) -> str | None:
    """How often the run was started again, if ever: what SLURM counted, else the sessions after the first."""
    counted = [session.restart_count for session in sessions if session.restart_count is not None]
    restarts = max([len(sessions) - 1, *counted])
    return str(restarts) if restarts > 0 else None


def _first_nan(stats: Mapping[str, Mapping[str, Any]]) -> str | None:
    steps = [one["first_nan_step"] for one in stats.values() if isinstance(one.get("first_nan_step"), int)]
    return str(min(steps)) if steps else None


def _natural(sessions: Sequence[SessionEntry], redaction: Redaction) -> dict[str, str | None]:
    """MLflow's own tags about the code and its user, of the newest session that knows each."""

    def newest(name: str) -> Any:
        return next((getattr(one, name) for one in reversed(sessions) if getattr(one, name) is not None), None)

    command = newest("command")
    slurm, keys = _slurm(sessions), slurm_keys(sessions)
    return {
        "mlflow.user": newest("user"),
        "mlflow.source.name": None if command is None else redaction.command(command),
        "mlflow.source.type": None if command is None else "LOCAL",
        "mlflow.source.git.commit": newest("git_commit"),
        "bridge.host": newest("host"),
        **{keys[f"slurm.{name}"]: str(redaction.value(name, value)) for name, value in slurm.items()},
    }


def _slurm(sessions: Sequence[SessionEntry]) -> Mapping[str, str]:
    return next((one.slurm for one in reversed(sessions) if one.slurm), {})

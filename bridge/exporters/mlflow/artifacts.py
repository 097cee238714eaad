"""Which files of a run directory are due as artifacts, and their copies without secrets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bridge.exporters.mlflow.checkpoints import CHECKPOINTS_FILE, checkpoint_files, plain_path, refused_files
from bridge.exporters.mlflow.facts import digest
from bridge.exporters.mlflow.names import renamed
from bridge.exporters.mlflow.notes import NOTES_FILE
from bridge.exporters.mlflow.stage import read_safely
from bridge.model import Notice, NoticeKind
from bridge.secrets import Redaction

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bridge.cursor import ContentOptions
    from bridge.exporters.mlflow.facts import Facts
    from bridge.exporters.mlflow.stage import Stage
    from bridge.model import Run, RunFile

__all__ = [
    "MARK",
    "NAMES_FILE",
    "PARAMS_FILE",
    "checkpoint_signatures",
    "due_files",
    "names_map",
    "signature",
    "stage_checkpoints",
    "stage_files",
    "stage_maps",
]

MARK = ".bridge-target"
"""The empty file beside copies of source files that keeps them from being taken for a run directory."""

NAMES_FILE = "bridge/names.json"
PARAMS_FILE = "bridge/params.json"

_ALWAYS = ("hparams.yaml", "sidecar.json")
_AT_THE_END = ("metrics.csv", "media.jsonl", "summary.json")
_MASKED = (*_ALWAYS, "summary.json")
_CHECKPOINTS_TOLD = 12
"""With more of them a cursor would grow too long."""

_MASKED_LIMIT = 64 << 20
"""A file that may hold secrets is read whole; a larger one is not sent."""


def due_files(run: Run, content: ContentOptions) -> dict[str, RunFile]:
    """The files of `run` that belong beside its target by now."""
    if content.artifacts == "none":
        return {}
    names = (*_ALWAYS, *_AT_THE_END) if not run.running or content.artifacts == "now" else _ALWAYS
    return {name: run.files[name] for name in names if name in run.files}


def signature(file: RunFile) -> str:
    """What tells that a file was sent as it is now."""
    return f"{file.size}:{file.mtime_ns}"


def stage_files(
    stage: Stage, run: Run, content: ContentOptions, sent: Mapping[str, str]
) -> tuple[dict[str, str], list[Notice]]:
    """Stage the files that are due and not as in `sent`; what is sent after that, and the notices."""
    redaction = Redaction(content.redact)
    now, notices = dict(sent), []
    for name, file in due_files(run, content).items():
        if sent.get(name) == signature(file):
            continue
        notice = _stage_one(stage, name, file, redaction)
        if notice is not None:
            notices.append(notice)
        now[name] = signature(file)
    if now and not sent:
        stage.add(MARK, b"")
    return now, notices


def stage_maps(stage: Stage, keys: Mapping[str, str], facts: Facts, sent: str) -> str:
    """Stage what does not fit elsewhere (renamed keys, params that were cut, long notes) unless `sent` already.

    The digest of what stands there now; "" where there is nothing of the kind.
    """
    names = names_map(keys, facts)
    files: dict[str, bytes] = {}
    if any(names.values()):
        files[NAMES_FILE] = _json(names)
    if facts.params.whole:
        files[PARAMS_FILE] = _json(facts.params.whole)
    if facts.whole_notes is not None:
        files[NOTES_FILE] = facts.whole_notes.encode("utf-8", "replace")
    if not files:
        return ""
    now = digest("".join(f"{path}{data!r}" for path, data in files.items()))
    if now != sent:
        for path, data in files.items():
            stage.add(path, data)
    return now


def names_map(keys: Mapping[str, str], facts: Facts) -> dict[str, dict[str, str]]:
    """What was renamed, by kind: from its own name to what it is called in MLflow."""
    return {"metrics": renamed(keys), "params": renamed(facts.params.keys)}


def stage_checkpoints(
    stage: Stage, run: Run, sent: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str], list[Notice]]:
    """Stage the checkpoints that are not as in `sent`; what is sent after that, the names of which were made, notices.

    The names are those of staged files that had to be renamed: from what they are called now to their own.
    """
    now = checkpoint_signatures(run)
    names: dict[str, str] = {}
    notices: list[Notice] = []
    if now and now == sent:
        return now, names, notices
    files = checkpoint_files(run)
    for path, file in files.items():
        if path not in now or sent.get(path) != now[path]:
            plain = plain_path(path)
            notice = stage.add_file(plain, file)
            if plain != path:
                names[plain] = path
                notice = notice or Notice(NoticeKind.RENAMED, path, f"as {plain}; the map is in {CHECKPOINTS_FILE}")
            notices += [notice] if notice is not None else []
    detail = "not sent: no plain file inside the run directory"
    notices += [Notice(NoticeKind.REFUSED_PATH, path, detail) for path in refused_files(run, files)]
    return now, names, notices


def checkpoint_signatures(run: Run) -> dict[str, str]:
    """What a cursor keeps of the checkpoints that were sent: a few characters for each, or for all where they are many."""
    each = {path: digest(signature(file))[:8] for path, file in checkpoint_files(run).items()}
    return each if len(each) <= _CHECKPOINTS_TOLD else {"*": digest(json.dumps(sorted(each.items())))}


def _stage_one(stage: Stage, name: str, file: RunFile, redaction: Redaction) -> Notice | None:
    if name not in _MASKED:
        return stage.add_file(name, file)
    data = read_safely(file, limit=_MASKED_LIMIT)
    if data is None:
        return Notice(NoticeKind.MISSING_FILE, name, "gone, too large or not a plain file")
    masked = redaction.yaml_file(data) if name.endswith(".yaml") else redaction.json_file(data)
    if not masked and data:
        return Notice(NoticeKind.LEFT_OUT, name, "it cannot be read, so secrets in it cannot be masked")
    stage.add(name, masked)
    return None


def _json(data: object) -> bytes:
    return json.dumps(data, indent=1, ensure_ascii=False).encode("utf-8", "replace")

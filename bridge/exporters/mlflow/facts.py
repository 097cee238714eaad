"""Compute what MLflow shows of a run beside points and files: name, status, times, params, tags and notes.

`facts_of` turns a run directory's facts into MLflow's words, within MLflow's limits. `delta_writer` compares them with
what the run in MLflow holds.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shlex
import zlib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.errors import TargetRefusedError
from bridge.files import Refused, inside, shortened
from bridge.model import Notice, NoticeKind, Status, digest, sent_facts
from bridge.secrets import MASK, Redaction

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bridge.model import Run, RunFile, Scalar
    from bridge.options import ContentOptions
    from logger.sidecar import SessionEntry

KEY_LIMIT = 250
"""Characters in the key of a metric, param or tag, and in a run's name."""

PARAM_LIMIT = 6000
"""Characters in a param's value."""

TAG_LIMIT = 5000
"""Characters in a tag's value that every server stores whole. Newer servers store 8000."""

NOTES_LIMIT = 8000
"""Characters in a description. MLflow truncates longer ones without an error."""

NOTES_ENDING = "\n\n*The notes go on in sidecar.json.*"
"""The end of a description that was truncated."""

STATUSES = {
    Status.RUNNING: "RUNNING",
    Status.COMPLETED: "FINISHED",
    Status.FAILED: "FAILED",
    Status.INTERRUPTED: "KILLED",
    Status.KILLED: "KILLED",
    Status.UNKNOWN: "FINISHED",
}
"""MLflow's word for each status."""

STATUS_OF_WORD = {"RUNNING": "running", "FINISHED": "completed", "FAILED": "failed", "KILLED": "killed"}
"""The bridge's word for each of MLflow's, if the tag `bridge.status` does not say more."""


class Tag:
    """Keys of the tags that the bridge reads back. MLflow's pages hide every key that begins with `mlflow.`."""

    UID = "mlflow.bridge.uid"  # the identity: it makes an MLflow run the target of a run directory
    RUN_ID = "mlflow.bridge.run_id"
    SOURCE = "mlflow.bridge.source"  # the path of the run directory
    CURSOR = "mlflow.bridge.cursor"
    TAGS = "mlflow.bridge.tags"  # the user tags that the bridge set, as a JSON list
    NAMES = "mlflow.bridge.names."  # with numbers: renamed metrics and params (`names_tags`)
    SWEEP = "mlflow.bridge.sweep"  # on the parent run of a sweep
    EXPERIMENT = "mlflow.bridge.experiment"  # on an experiment its first name, on a run the template of its name
    # While an export writes. Each says what a stopped export may have left.
    BUILDING = "mlflow.bridge.building"  # the run is a replacement, not complete yet, of the run with this id
    PENDING = "mlflow.bridge.pending"  # the run may hold points past its cursor
    PENDING_MEDIA = "mlflow.bridge.pending_media"  # the artifacts may hold media up to this number of lines
    # Between runs, by id.
    REPLACES = "mlflow.bridge.replaces"
    REPLACED_BY = "mlflow.bridge.replaced_by"
    DUPLICATE_OF = "mlflow.bridge.duplicate_of"
    # Visible on MLflow's pages.
    STATUS = "bridge.status"  # a status for which MLflow has no word
    TIME = "bridge.time"  # `estimated` if the run directory holds no times
    # MLflow's own.
    NAME = "mlflow.runName"
    NOTES = "mlflow.note.content"
    PARENT = "mlflow.parentRunId"
    USER = "mlflow.user"
    IMAGES = "mlflow.loggedImages"  # makes the page show the grid of step images
    ARTIFACTS = "mlflow.loggedArtifacts"  # the tables that the page shows


EXPERIMENT_KIND: Mapping[str, str] = {"mlflow.experimentKind": "custom_model_development"}
"""The tag of an experiment of trainings. Without it MLflow's page guesses, asks, and opens no saved view meanwhile."""

_NEWEST = "mlflow.bridge.newest."
_VISIBLE = {f"bridge.{name}" for name in ("checkpoint", "command", "host", "restarts", "slurm", "status", "time")}

# ---------------------------------------------------------------------------------------------------------------------
# Names within MLflow's rules

# MLflow's own rule is [/\w.\- :]. Its `$` also accepts a newline at the end, which a URL does not.
_REFUSED = re.compile(r"[^/\w.\- :]")


@lru_cache(1 << 16)  # thousands of runs have the same names
def key_of(name: str) -> str:
    """Return `name` as a key that MLflow accepts: refused characters become `_`, and it is a plain relative path.

    An acceptable name comes back unchanged. A longer one than KEY_LIMIT is cut and ends in a digest of the whole.
    """
    parts = _REFUSED.sub("_", name).split("/")
    text = "/".join("_" if part in ("", ".", "..") else part for part in parts)
    if text.startswith(".."):  # MLflow takes that for a path upwards, whatever follows
        text = f"_{text[2:]}"
    if len(text) <= KEY_LIMIT:
        return text
    return f"{text[: KEY_LIMIT - 9]}-{digest(name, 8)}"


def key_of_best(name: str) -> str:
    """Return the key under which `--best` adds the best value of the metric `name`, or of the metric of that key."""
    return key_of(f"{key_of(name)}.best")


def keys_of(
    names: Iterable[str], rename: Mapping[str, str] | None = None, *, ignores_case: bool = False
) -> dict[str, str]:
    """Return the key of each name. Of two that would share a key the first keeps it, the next get `_2`, `_3`.

    Later names never change the key of an earlier one. `rename` maps a name to the one that users want instead. With
    `ignores_case` keys that differ in case alone are one key, as they are in MySQL.
    """
    rename = rename or {}
    keys: dict[str, str] = {}
    taken: set[str] = set()
    last: dict[str, int] = {}  # the newest number of each clean key, so that thousands of equal ones stay fast
    for name in names:
        if name in keys:
            continue
        plain = key = key_of(rename.get(name, name))
        while (key.casefold() if ignores_case else key) in taken:
            last[plain] = last.get(plain, 1) + 1
            ending = f"_{last[plain]}"
            key = plain[: KEY_LIMIT - len(ending)] + ending
        keys[name] = key
        taken.add(key.casefold() if ignores_case else key)
    return keys


def renamed(keys: Mapping[str, str]) -> dict[str, str]:
    """Return the entries of `keys` whose key differs from the name."""
    return {name: key for name, key in keys.items() if name != key}


def names_tags(names: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return `names` (by kind, from a name to its key) as tags: deflated JSON, in as many tags as that takes."""
    if not any(names.values()):
        return {}
    text = json.dumps(names, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    packed = base64.b64encode(zlib.compress(text, 9)).decode()
    return {f"{Tag.NAMES}{at // TAG_LIMIT:04}": packed[at : at + TAG_LIMIT] for at in range(0, len(packed), TAG_LIMIT)}


def read_names_tags(tags: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the names that `names_tags` wrote among `tags`. Raise TargetRefusedError if they cannot be read."""
    packed = "".join(tags[key] for key in sorted(tags) if key.startswith(Tag.NAMES))
    try:
        names: dict[str, dict[str, str]] = json.loads(zlib.decompress(base64.b64decode(packed))) if packed else {}
    except (ValueError, zlib.error) as error:
        raise TargetRefusedError(f"The tags {Tag.NAMES}* cannot be read.", hint="bridge export --rebuild") from error
    return names


def storable(text: str) -> str:
    """Return `text` without NUL characters, which PostgreSQL cannot store."""
    return text.replace("\0", "\ufffd") if "\0" in text else text


def milliseconds(seconds: float) -> int:
    """Return seconds since the epoch as MLflow's whole milliseconds. Halves go to the even number, as in numpy."""
    return round(seconds * 1000.0)


# ---------------------------------------------------------------------------------------------------------------------
# All facts of a run


@dataclass(frozen=True, slots=True)
class RunFacts:
    """The facts of a run as MLflow is to show them.

    `user_tags` come from the sidecar's tags, `own_tags` are the bridge's and MLflow's natural ones. `start` and `end`
    are milliseconds since the epoch; `end` is None while the run is running. `plain_sent` is `sent_facts` of the run.
    `notes` has NOTES_ENDING if it had to be truncated. `unsupported` names what MLflow cannot hold as it is.
    """

    name: str
    notes: str
    user_tags: Mapping[str, str]
    own_tags: Mapping[str, str]
    params: Params
    status: str
    start: int
    end: int | None
    plain_sent: Mapping[str, str]
    notices: tuple[Notice, ...]
    unsupported: frozenset[str]

    @property
    def sent(self) -> dict[str, str]:
        """Return the entries of `Cursor.sent`: digests of these facts, and status, start and end as plain text."""
        params = self.params
        lasting = {key: value for key, value in params.values.items() if key not in params.volatile}
        return {
            **self.plain_sent,
            "name": digest(self.name),
            "notes": digest(self.notes),
            "tags": digest(json.dumps([sorted(self.user_tags.items()), self.own_tags[Tag.TAGS]])),
            "bridge tags": digest(json.dumps(sorted(self.own_tags.items()))),
            "params": digest(json.dumps(sorted(lasting.items()))),
        }


def facts_of(run: Run, content: ContentOptions, *, ignores_case: bool = False) -> RunFacts:
    """Return the facts of `run` as MLflow is to show them.

    `ignores_case` is true for a database that takes `Loss` and `loss` for one key.
    """
    redaction = Redaction(content.redact)
    unsupported = _with_nul(run)
    notices = [
        Notice(NoticeKind.CUT, what.replace("params.", "param ", 1), "NUL characters cannot be stored")
        for what in unsupported
    ]
    params = _params(run, content, redaction, notices, ignores_case=ignores_case)
    notes = _description(run, content, notices)
    tags, listed, lists_all = user_tags(run.tags, redaction, notices)
    newest = {newest_tag(key): params.values[key] for key in sorted(params.volatile)}
    own = {
        key: _truncated_tag(key, value, notices) for key, value in (_own_tags(run, redaction, notices) | newest).items()
    }
    own[Tag.TAGS] = listed
    name = _name(run, notices)
    return RunFacts(
        name=name,
        notes=notes,
        user_tags=tags,
        own_tags=own,
        params=params,
        status=STATUSES[run.status],
        start=milliseconds(run.start),
        end=None if run.end is None else milliseconds(run.end),
        plain_sent=sent_facts(run),
        notices=tuple(notices),
        unsupported=frozenset(unsupported) | (frozenset() if lists_all else {"tags"}),
    )


def _with_nul(run: Run) -> list[str]:
    """Return the names of texts that hold NUL characters, which PostgreSQL cannot store."""
    texts = {"name": run.name, "notes": run.notes, "tags": "".join(run.tags)}
    names = [name for name, text in texts.items() if "\0" in text]
    return names + [f"params.{name}" for name, value in run.params.items() if isinstance(value, str) and "\0" in value]


def _name(run: Run, notices: list[Notice]) -> str:
    if len(run.name) > KEY_LIMIT:
        detail = f"the first {KEY_LIMIT} of {len(run.name)} characters are kept; sidecar.json has all"
        notices.append(Notice(NoticeKind.CUT, "name", detail))
    return shown_name(run.name, run.run_id)


def shown_name(name: str, run_id: str) -> str:
    """Return a run's name as MLflow shows it."""
    return storable(name or run_id or "run")[:KEY_LIMIT]


def _description(run: Run, content: ContentOptions, notices: list[Notice]) -> str:
    """Return the notes as MLflow's description, truncated with a pointer to the file that has them in full."""
    notes = storable(run.notes)
    if len(notes) <= NOTES_LIMIT:
        return notes
    detail = f"{len(notes)} characters; {_whole_in(['sidecar.json'], content)} has all"
    notices.append(Notice(NoticeKind.CUT, "notes", detail))
    return notes[: NOTES_LIMIT - len(NOTES_ENDING)] + NOTES_ENDING


def _whole_in(files: Sequence[str], content: ContentOptions) -> str:
    """Return words for the place that has a truncated text in full: one of `files`, else the event files."""
    if not files:
        return "an event file in the run directory"
    found = " or ".join(files)
    return f"{found} in the run directory" if content.artifacts == "none" else f"the artifact {found}"


def _truncated_tag(key: str, value: str, notices: list[Notice]) -> str:
    if len(value) <= TAG_LIMIT:
        return value
    detail = f"the first {TAG_LIMIT} of {len(value)} characters are kept; sidecar.json has all"
    notices.append(Notice(NoticeKind.CUT, f"tag {key}", detail))
    return value[:TAG_LIMIT]


# ---------------------------------------------------------------------------------------------------------------------
# Params


@dataclass(frozen=True, slots=True)
class Params:
    """The params of a run by MLflow's key.

    `values` are as MLflow holds them, those of `truncated` from their beginning; `keys` maps the hparams' own names.
    `volatile` are keys whose first value stays, `globs` recognise such keys.
    """

    values: Mapping[str, str]
    truncated: frozenset[str]
    keys: Mapping[str, str]
    volatile: frozenset[str]
    globs: tuple[str, ...] = ()

    def stays(self, key: str) -> bool:
        """Return True if MLflow keeps its value of `key` whatever becomes of the param."""
        return key in self.volatile or (key not in self.values and _matches(key, self.globs))


def newest_tag(key: str) -> str:
    """Return the key of the tag that holds the newest value of a volatile param."""
    return key_of(f"{_NEWEST}{key}")


def _params(
    run: Run, content: ContentOptions, redaction: Redaction, notices: list[Notice], *, ignores_case: bool
) -> Params:
    """Return the params of `run`: renamed, masked and truncated as MLflow's rules and `content` ask."""
    keys = keys_of(run.params, ignores_case=ignores_case)
    values: dict[str, str] = {}
    truncated: set[str] = set()
    files = [name for name in ("hparams.yaml", "sidecar.json") if name in run.files]
    notices += [
        Notice(NoticeKind.RENAMED, f"param {name}", f"as {key}; the tags {Tag.NAMES}* map it back")
        for name, key in renamed(keys).items()
    ]
    for name, value in run.params.items():
        key, shown = keys[name], param_text(name, value, redaction)
        if shown != storable(str(value)):
            notices.append(Notice(NoticeKind.REDACTED, f"param {name}", f"the secret in it is {MASK}"))
        if len(shown) > PARAM_LIMIT:
            truncated.add(key)
            detail = f"{len(shown)} characters; {_whole_in(files, content)} has all"
            notices.append(Notice(NoticeKind.CUT, f"param {name}", detail))
        values[key] = shown[:PARAM_LIMIT]
    volatile = frozenset(keys[name] for name in run.params if _matches(name, content.volatile))
    return Params(values, frozenset(truncated), keys, volatile, content.volatile)


def param_text(name: str, value: Scalar, redaction: Redaction) -> str:
    """Return a param's value as text, the secrets in it masked."""
    return str(redaction.value(name, storable(str(value))))


@lru_cache(1 << 16)
def _matches(name: str, globs: tuple[str, ...]) -> bool:
    low = name.lower()
    return any(fnmatchcase(low, glob.lower()) for glob in globs)


# ---------------------------------------------------------------------------------------------------------------------
# User tags: those of the sidecar

_KEY_VALUE = re.compile(r"([A-Za-z0-9_.\-]+):(.*)", re.DOTALL)
RESERVED = ("mlflow.", "bridge.")


@dataclass(frozen=True, slots=True)
class UserTags:
    """A run's tags as MLflow's: `values` by MLflow's key, `keys` from a tag's name to its key.

    `key:value` becomes key = value, and several of one key are joined by `, `. Any other text is a bare word, `word` =
    `true`, unless a key of that name exists. Keys that MLflow or the bridge use get the prefix `tag.`. Keys that
    differ in case alone, which are one key in MySQL, get numbers in every target.
    """

    values: Mapping[str, str]
    keys: Mapping[str, str]

    @classmethod
    def of(cls, tags: Iterable[str]) -> UserTags:
        """Return the tags of a run by the rule above."""
        joined: dict[str, list[str]] = {}
        words: dict[str, None] = {}
        for tag in tags:
            found = _KEY_VALUE.fullmatch(tag)
            if found:
                joined.setdefault(found[1], []).append(found[2])
            else:
                words[tag] = None
        names = [*joined, *(word for word in words if word not in joined)]
        reserved = {name: f"tag.{name}" for name in names if name.startswith(RESERVED)}
        keys = keys_of(names, reserved, ignores_case=True)
        values = {keys[name]: ", ".join(joined[name]) if name in joined else "true" for name in names}
        return cls(values, keys)

    def key(self, tag: str) -> str:
        """Return the MLflow key that `tag` became, or became a part of."""
        return self.keys[_tag_name(tag)]

    def notices(self, tags: Sequence[str]) -> list[Notice]:
        """Return a notice for each of `tags` that MLflow does not show as it is."""
        notices = [
            Notice(NoticeKind.RENAMED, f"tag {_short(name)}", f"as {key}; sidecar.json has it unchanged")
            for name, key in renamed(self.keys).items()
        ]
        named = {_tag_name(tag) for tag in tags if _KEY_VALUE.fullmatch(tag)}
        notices += [
            Notice(NoticeKind.LEFT_OUT, f"tag {_short(tag)}", "a tag with a value has that name")
            for tag in dict.fromkeys(tags)
            if tag in named
        ]
        return notices


def read_list_tag(tags: Mapping[str, str]) -> list[str]:
    """Return the user tags as they were last sent, from the tags of a run. Return none if they cannot be read."""
    try:
        found = json.loads(tags.get(Tag.TAGS, "[]"))
    except (ValueError, RecursionError):
        return []
    return [tag for tag in found if isinstance(tag, str)] if isinstance(found, list) else []


def user_tags(tags: Sequence[str], redaction: Redaction, notices: list[Notice]) -> tuple[dict[str, str], str, bool]:
    """Return a run's tags as MLflow shows them, by key, their JSON list for `Tag.TAGS`, and whether it lists all.

    They are masked, and as many of the first as one list holds.

    The list tells a later export which tags the bridge set, so a tag that does not fit is not sent at all.
    """
    masked = [storable(redaction.tag(tag)) for tag in tags]
    notices += [
        Notice(NoticeKind.REDACTED, f"tag {re.split('[:=]', tag)[0]:.40}")
        for tag, shown in zip(tags, masked, strict=True)
        if storable(tag) != shown
    ]
    kept = masked[:TAG_LIMIT]
    listed = json.dumps(kept, ensure_ascii=False)
    while len(listed) > TAG_LIMIT:
        kept = kept[: min(len(kept) - 1, len(kept) * TAG_LIMIT // len(listed))]
        listed = json.dumps(kept, ensure_ascii=False)
    if len(kept) < len(tags):
        detail = f"the first {len(kept)} of {len(tags)} tags are sent; sidecar.json has all"
        notices.append(Notice(NoticeKind.LEFT_OUT, "tags", detail, count=len(tags) - len(kept)))
    found = UserTags.of(kept)
    notices += found.notices(kept)
    values = {key: _truncated_tag(key, value, notices) for key, value in found.values.items()}
    return values, listed, len(kept) == len(tags)


def _tag_name(tag: str) -> str:
    found = _KEY_VALUE.fullmatch(tag)
    return found[1] if found else tag


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}..."


# ---------------------------------------------------------------------------------------------------------------------
# The bridge's own tags and MLflow's natural ones


def sweep_of(tags: Iterable[str]) -> str | None:
    """Return the sweep that a run with these tags belongs to, from its tag `sweep:<id>`."""
    found = next((tag.partition(":")[2] for tag in tags if re.match(r"sweep:.", tag)), None)
    return None if found is None else shortened(storable(found))


def _own_tags(run: Run, redaction: Redaction, notices: list[Notice]) -> dict[str, str]:
    """Return what the run directory says beside user tags: its identity and source, how it went, who ran it."""
    sessions = run.sessions

    def newest(name: str) -> Any:
        return next((getattr(one, name) for one in reversed(sessions) if getattr(one, name) is not None), None)

    command = newest("command")
    shown = None if command is None else redaction.command(command)
    slurm: Mapping[str, Scalar] = next((one.slurm for one in reversed(sessions) if one.slurm), {})
    masked = {name: redaction.value(name, value) for name, value in slurm.items()}
    tags: dict[str, str | None] = {
        Tag.RUN_ID: run.run_id,
        Tag.SOURCE: os.fsencode(run.path).decode(errors="replace"),
        Tag.STATUS: status_beyond_mlflow(run.status, run.status_word),
        Tag.TIME: None if run.time_column else "estimated",
        Tag.USER: newest("user"),
        "mlflow.source.name": None if shown is None else script_of(shown),
        "mlflow.source.type": None if command is None else "LOCAL",
        "mlflow.source.git.commit": newest("git_commit"),
        "bridge.command": shown,
        "bridge.host": newest("host"),
        "bridge.slurm": ", ".join(f"{name}={value}" for name, value in masked.items()) or None,
        "bridge.restarts": _restarts(sessions),
    }
    if run.checkpoint:
        tags["bridge.checkpoint"] = run.checkpoint
        if checkpoint_file(run) is None:
            detail = f"{run.checkpoint} is not in the run directory, so only its path is kept"
            notices.append(Notice(NoticeKind.LEFT_OUT, "checkpoint", detail))
    if shown is not None and MASK in shown:
        notices.append(Notice(NoticeKind.REDACTED, "tag bridge.command"))
    if masked != dict(slurm):
        notices.append(Notice(NoticeKind.REDACTED, "tag bridge.slurm"))
    return {key: storable(value) for key, value in tags.items() if value is not None}


def checkpoint_file(run: Run) -> RunFile | None:
    """Return the checkpoint that the sidecar names if it is a plain file inside the run directory, else None."""
    if not run.checkpoint:
        return None
    named = Path(run.checkpoint)
    is_inside = named.is_relative_to(run.path)
    # The directory may have moved since: then the file lies below its own `checkpoints`.
    candidates = (named.relative_to(run.path) if is_inside else named, Path("checkpoints") / named.name)
    return next((file for path in candidates if (file := plain_file(run, path)) is not None), None)


def plain_file(run: Run, path: Path) -> RunFile | None:
    """Return the file at the relative `path`, None unless it is a plain file inside the run directory."""
    with contextlib.suppress(Refused):
        return inside(run.path, os.fspath(path))
    return None


_LAUNCHERS = ("torch.distributed.run", "torch.distributed.launch", "accelerate.commands.launch", "pdb", "cProfile")


def script_of(command: str) -> str:
    """Return the script in a command line, or the module after `-m`: MLflow shows it in the column Source."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    for at, word in enumerate(words):
        if word.endswith(".py"):
            return word
        if word == "-m" and at + 1 < len(words) and words[at + 1] not in _LAUNCHERS:
            return words[at + 1]
    return words[0] if words else command


def status_beyond_mlflow(status: Status, word: str | None) -> str | None:
    """Return the status if MLflow's word for it says less: KILLED for interrupted, FINISHED for unknown.

    `word` is the sidecar's own, which an unknown status keeps.
    """
    if status is Status.UNKNOWN:
        return word or status.value
    return status.value if STATUS_OF_WORD[STATUSES[status]] != status.value else None


def _restarts(sessions: Sequence[SessionEntry]) -> str | None:
    """Return how often the run was restarted, if ever: as SLURM counted, or the sessions after the first."""
    counted = [session.restart_count for session in sessions if session.restart_count is not None]
    restarts = max([len(sessions) - 1, *counted])
    return str(restarts) if restarts > 0 else None


def is_obsolete(key: str, facts: RunFacts) -> bool:
    """Return True for a tag that the bridge may have set and that does not hold any more."""
    return (key in _VISIBLE or key.startswith(_NEWEST)) and key not in facts.own_tags

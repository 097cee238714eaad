"""What changes while a run goes on: hyperparameters, status, notes, tags. They have a small file of their own.

It is replaced whole, under a new name, since TensorBoard takes the first session start and end that it reads.
"""

from __future__ import annotations

import hashlib
import html
import math
import re
from typing import TYPE_CHECKING

from bridge.cursor import sent_facts
from bridge.exporters.tensorboard import protos
from bridge.exporters.tensorboard.records import version_record
from bridge.exporters.tensorboard.tags import beside_metrics, plain, renamed
from bridge.model import Notice, NoticeKind, Status
from bridge.secrets import Redaction

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from bridge.cursor import ContentOptions
    from bridge.model import Run, Scalar

__all__ = [
    "HPARAMS_TAG",
    "NOTES_TAG",
    "STATUSES",
    "TAGS_TAG",
    "fact_losses",
    "facts_file",
    "lacking_params",
    "list_of_markdown",
    "sent",
]

STATUSES: Mapping[Status, str] = {
    Status.RUNNING: "",
    Status.COMPLETED: "SUCCESS",
    Status.FAILED: "FAILURE",
    Status.INTERRUPTED: "FAILURE",
    Status.KILLED: "FAILURE",
    Status.UNKNOWN: "",
}
"""TensorBoard's word for each status; where it is empty no session end is written."""

NOTES_TAG, HPARAMS_TAG, TAGS_TAG = "run/notes", "run/hparams", "run/tags"

_EXACT = 2**53
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+\-.!|>~])")


def facts_file(run: Run, content: ContentOptions, *, group: str, metrics: Collection[str], session: bool) -> bytes:
    """The whole file. `group` is the run's folder under the log directory; `metrics` are the tags of its metrics."""
    values = _masked(run, content)
    records = [version_record(run.start)]
    if session:
        typed = {plain(key): value for key, value in values.items() if _held(value) and value is not None}
        records.append(protos.session_start_record(typed, group=group, time=run.start))
        word = STATUSES[run.status]
        if word:
            end = run.last_alive if run.end is None else run.end
            records.append(protos.session_end_record(success=word == "SUCCESS", end=end, time=run.start))
    texts = {
        NOTES_TAG: run.notes,
        HPARAMS_TAG: _table(values),
        TAGS_TAG: "\n".join(f"- {_escaped(tag)}" for tag in _tags(run, content)),
    }
    records += [
        protos.text_record(beside_metrics(tag, metrics, "text"), plain(text), step=0, time=run.start)
        for tag, text in texts.items()
        if text
    ]
    return b"".join(records)


def fact_losses(run: Run, content: ContentOptions, *, metrics: Collection[str], session: bool) -> list[Notice]:
    """What of the run's own facts is not as the run has it, or not where it should be."""
    notices = [
        renamed(tag, tag, metrics, "text")
        for tag, fact in ((NOTES_TAG, run.notes), (HPARAMS_TAG, run.params), (TAGS_TAG, run.tags))
        if fact and tag in metrics
    ]
    values = _masked(run, content)
    notices += [
        Notice(NoticeKind.REDACTED, key, "masked by --redact")
        for key, value in values.items()
        if value is not run.params[key]
    ]
    notices += [
        Notice(NoticeKind.REDACTED, f"tag {re.split('[:=]', tag)[0]:.40}", "masked by --redact")
        for tag, shown in zip(run.tags, _tags(run, content), strict=True)
        if tag != shown
    ]
    if not session:
        why = "a step is beyond 32 bits, which would break the HPARAMS page for all runs; they stand in TEXT"
        return [*notices, Notice(NoticeKind.LEFT_OUT, "hparams", why)]
    for key, value in values.items():
        if not _held(value):
            notices.append(
                Notice(NoticeKind.LEFT_OUT, key, "no number that the HPARAMS page can take; it stands in TEXT")
            )
        elif _rounded(value):
            notices.append(Notice(NoticeKind.CUT, key, "rounded to 53 bits in HPARAMS; in full in TEXT"))
    return notices


def lacking_params(run: Run, content: ContentOptions) -> frozenset[str]:
    """The hyperparameters that HPARAMS does not hold, or not as they are, as `TargetContent.lacks` names them."""
    values = _masked(run, content)
    return frozenset(
        f"params.{key}" for key, value in values.items() if value is None or not _held(value) or _rounded(value)
    )


def sent(run: Run, content: ContentOptions, *, group: str) -> dict[str, str]:
    """What stands in `Cursor.sent`: the run's own facts and its folder, the longer ones as digests."""
    facts = {
        "folder": group,
        "hparams": repr(sorted((key, repr(value)) for key, value in _masked(run, content).items())),
        "notes": run.notes,
        "tags": repr(_tags(run, content)),
    }
    digests = {key: hashlib.sha256(plain(text).encode()).hexdigest()[:16] for key, text in facts.items()}
    return sent_facts(run) | digests


def _masked(run: Run, content: ContentOptions) -> dict[str, Scalar]:
    redaction = Redaction(content.redact)
    return {key: redaction.value(key, value) for key, value in run.params.items()}


def _tags(run: Run, content: ContentOptions) -> tuple[str, ...]:
    redaction = Redaction(content.redact)
    return tuple(redaction.tag(tag) for tag in run.tags)


def _held(value: Scalar) -> bool:
    """Whether HPARAMS can take the value: a number that is none would break the page."""
    try:
        return not isinstance(value, int | float) or math.isfinite(value)
    except OverflowError:  # an int beyond float64
        return False


def _rounded(value: Scalar) -> bool:
    return type(value) is int and abs(value) > _EXACT and _held(value) and float(value) != value


def _table(values: Mapping[str, Scalar]) -> str:
    if not values:
        return ""
    lines = [f"| {_escaped(key)} | {_escaped(str(value))} |" for key, value in values.items()]
    return "\n".join(["| hparam | value |", "| --- | --- |", *lines])


def _escaped(text: str) -> str:
    """`text` as it must stand in one cell of a Markdown table to be seen as it is."""
    safe = _SPECIAL.sub(r"\\\1", html.escape(text, quote=False))
    return safe.replace("\r", "&#13;").replace("\n", "<br>")


def list_of_markdown(text: str) -> tuple[str, ...]:
    """The tags in a list that `facts_file` wrote."""
    return tuple(
        html.unescape(re.sub(r"\\(.)", r"\1", line[2:].replace("<br>", "\n"))) for line in text.split("\n") if line
    )

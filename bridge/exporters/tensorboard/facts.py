"""Name the tags of a run, and write its facts: hyperparameters, status, notes and tags.

In TensorBoard a tag belongs to one plugin: if a metric and an image share a name, both vanish. So metrics keep their
names whatever else there is. Images stand under `<tag>/<index>`, their captions under `<tag>/caption`, the run's own
texts under `run/...`. Where such a tag is also a metric's, it gets a suffix. A tag depends on the metrics alone, not on
what came first.

Facts change while a run goes on, and TensorBoard keeps the first session start and end that it reads. So they have a
small event file, which is replaced under a new name when they change.
"""

from __future__ import annotations

import html
import math
import re
from functools import lru_cache
from typing import TYPE_CHECKING

from msgspec.structs import replace

from bridge.exporters.tensorboard import events
from bridge.model import Notice, NoticeKind, Status, digest, sent_facts
from bridge.secrets import Redaction

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from bridge.model import Run, Scalar
    from bridge.options import ContentOptions

STATUSES: Mapping[Status, str] = {
    Status.RUNNING: "",
    Status.COMPLETED: "SUCCESS",
    Status.FAILED: "FAILURE",
    Status.INTERRUPTED: "FAILURE",
    Status.KILLED: "FAILURE",
    Status.UNKNOWN: "",
}
"""TensorBoard's word for each status. With an empty word no session end is written."""

NOTES_TAG, HPARAMS_TAG, TAGS_TAG = "run/notes", "run/hparams", "run/tags"

_EXACT_INTEGERS = 2**53
"""Up to this number every integer is a float64."""

_RESERVED = "_hparams_/"
"""What HPARAMS reads begins so; a metric of such a name would be in no chart."""

_IMAGE = re.compile(r"(.*)/(\d+)(?: \(image\))*", re.DOTALL)
_SUFFIXES = re.compile(r"(?: \((?:image|text)\))+$")
_CAPTION = re.compile(r"(.*)/caption(?: \((\d+)\))?(?: \(text\))*", re.DOTALL)
_ESCAPES = str.maketrans(
    {char: f"\\{char}" for char in r"\`*_{}[]()#+-.!|~"}
    | {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;", "\n": "<br>"}
)


# Tags


def plain(text: str) -> str:
    """Return `text` with lone surrogates, which UTF-8 cannot encode, as question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


@lru_cache(maxsize=64)
def metric_tags(
    names: tuple[str, ...], rename: tuple[tuple[str, str], ...], held: tuple[tuple[str, str], ...] = ()
) -> Mapping[str, str]:
    """Return the tag of each metric. If two metrics would share one, the first keeps it and the other gets a number.

    `held` are tags and the metrics that the target already has under another tag than their name. The runs of a sweep
    share the result.
    """
    wishes = dict(rename)
    tags: dict[str, str] = {name: tag for tag, name in held}
    taken = set(tags.values())
    for name in names:
        if name in tags:
            continue
        wanted = plain(wishes.get(name, name)) or "(no name)"
        if wanted.startswith(_RESERVED):
            wanted = f"metric {wanted}"
        tag, number = wanted, 2
        while tag in taken:
            tag, number = f"{wanted} ({number})", number + 1
        tags[name] = tag
        taken.add(tag)
    return tags


def metric_notices(tags: Mapping[str, str], rename: Mapping[str, str]) -> list[Notice]:
    """Return a notice for each metric that got another tag than its own or the one in `rename`."""
    return [
        Notice(NoticeKind.RENAMED, name, f"stored as {tag!r}")
        for name, tag in tags.items()
        if tag != rename.get(name, name)
    ]


def image_tag(tag: str, index: int) -> str:
    """Return the tag of all images with one index, so that the same index of several runs stands side by side."""
    return f"{plain(tag)}/{index}"


def caption_tag(tag: str, index: int) -> str:
    """Return the tag of the captions of one index. A tag holds one text per step, so each index has its own."""
    return f"{plain(tag)}/caption" if index == 0 else f"{plain(tag)}/caption ({index})"


def free_tag(tag: str, metrics: Collection[str], suffix: str) -> str:
    """Return `tag`, with ` (suffix)` added until it is none of the tags in `metrics`."""
    while tag in metrics:
        tag += f" ({suffix})"
    return tag


def suffix_notices(tags: Collection[str]) -> list[Notice]:
    """Return a notice for each tag of an image or a text that has a suffix, because a metric has the tag without it."""
    return [
        Notice(NoticeKind.RENAMED, own, f"stored as {tag!r}, since a metric has that name")
        for tag in sorted(tags)
        if (own := _SUFFIXES.sub("", tag)) != tag
    ]


def parse_image_tag(tag: str) -> tuple[str, int] | None:
    """Return the logged tag and index of an image's tag, the reverse of `image_tag` with suffixes."""
    match = _IMAGE.fullmatch(tag)
    return (match[1], int(match[2])) if match else None


def parse_caption_tag(tag: str) -> tuple[str, int] | None:
    """Return the logged tag and index of a caption's tag, the reverse of `caption_tag` with suffixes."""
    match = _CAPTION.fullmatch(tag)
    return (match[1], int(match[2] or 0)) if match else None


# Facts


def shown_facts(run: Run, content: ContentOptions) -> Run:
    """Return `run` as TensorBoard shows it: what `content.redact` names is masked in its params and tags."""
    redaction = Redaction(content.redact)
    masked = {key: redaction.value(key, value) for key, value in run.params.items()}
    return replace(run, params=masked, tags=tuple(map(redaction.tag, run.tags)))


def facts_file(shown: Run, *, group: str, metrics: Collection[str], fits_hparams: bool) -> bytes:
    """Return the whole event file of a run's facts.

    `group` is the run's folder below the log directory, `metrics` are the tags of its metrics. Without
    `fits_hparams` the run is left out of the HPARAMS page.
    """
    values = []
    if fits_hparams:
        session = session_of(shown, STATUSES[shown.status], group=group)
        values += [events.session_value(tag, content) for tag, content in session.items()]
    values += [events.text_value(free_tag(tag, metrics, "text"), text) for tag, text in fact_texts(shown).items()]
    first = events.version_record(shown.start)
    return first + events.record_of(values, time=shown.start) if values else first


def fact_texts(shown: Run) -> dict[str, str]:
    """Return the Markdown texts of a run by tag, without the empty ones: notes, hyperparameters, tags."""
    texts = {
        NOTES_TAG: plain(shown.notes),
        HPARAMS_TAG: plain(_markdown_table(shown.params)),
        TAGS_TAG: plain("\n".join(f"- {_escape(tag)}" for tag in shown.tags)),
    }
    return {tag: text for tag, text in texts.items() if text}


def session_values(params: Mapping[str, Scalar]) -> dict[str, bool | float | str]:
    """Return those of `params` that the HPARAMS page can show. It fails for all runs if a number is not finite."""
    return {plain(key): value for key, value in params.items() if value is not None and _is_showable(value)}


def session_of(shown: Run, status: str, *, group: str) -> dict[str, bytes]:
    """Return what HPARAMS reads of a run, by tag. Without a `status` there is no end of the session."""
    start = events.session_start(session_values(shown.params), group=group, time=shown.start)
    found = {"_hparams_/session_start_info": start}
    if status:
        end = events.session_end(status, end=shown.last_alive if shown.end is None else shown.end)
        found["_hparams_/session_end_info"] = end
    return found


def fact_notices(run: Run, shown: Run, *, metrics: Collection[str], fits_hparams: bool) -> list[Notice]:
    """Return a notice for each fact that is masked, changed, left out, or stored under another tag."""
    own = [tag for tag in (NOTES_TAG, HPARAMS_TAG, TAGS_TAG) if tag in metrics]
    notices = suffix_notices([free_tag(tag, metrics, "text") for tag in own])
    notices += [
        Notice(NoticeKind.REDACTED, key, "masked by --redact")
        for key, value in shown.params.items()
        if value is not run.params[key]
    ]
    notices += [
        Notice(NoticeKind.REDACTED, f"tag {re.split('[:=]', tag)[0]:.40}", "masked by --redact")
        for tag, masked in zip(run.tags, shown.tags, strict=True)
        if tag != masked
    ]
    if not fits_hparams:
        why = "a step is beyond 32 bits, which would break the HPARAMS page for all runs; they stand in TEXT"
        return [*notices, Notice(NoticeKind.LEFT_OUT, "hparams", why)]
    for key, value in shown.params.items():
        if not _is_showable(value):
            notices.append(
                Notice(NoticeKind.LEFT_OUT, key, "not a number that the HPARAMS page can show; it is in TEXT")
            )
        elif _is_rounded(value):
            notices.append(Notice(NoticeKind.CUT, key, "rounded to 53 bits in HPARAMS; in full in TEXT"))
    return notices


def unsupported_params(shown: Run) -> frozenset[str]:
    """Return the params that HPARAMS does not hold exactly, as `TargetContent.unsupported` names them."""
    return frozenset(
        f"params.{key}"
        for key, value in shown.params.items()
        if value is None or not _is_showable(value) or _is_rounded(value)
    )


def sent_digests(shown: Run, *, group: str) -> dict[str, str]:
    """Return what a cursor remembers of the facts last sent: the run's folder and facts, the long ones as digests."""
    texts = {
        "folder": group,
        "hparams": repr(sorted((key, repr(value)) for key, value in shown.params.items())),
        "notes": shown.notes,
        "tags": repr(shown.tags),
    }
    digests = {key: digest(plain(text), 16) for key, text in texts.items()}
    return sent_facts(shown) | digests


def parse_tags(text: str) -> tuple[str, ...]:
    """Return the tags in the Markdown list that `fact_texts` made."""
    return tuple(
        html.unescape(re.sub(r"\\(.)", r"\1", line[2:].replace("<br>", "\n"))) for line in text.split("\n") if line
    )


def _is_showable(value: Scalar) -> bool:
    try:
        return not isinstance(value, int | float) or math.isfinite(value)
    except OverflowError:  # an int beyond float64
        return False


def _is_rounded(value: Scalar) -> bool:
    return type(value) is int and abs(value) > _EXACT_INTEGERS and _is_showable(value) and float(value) != value


def _markdown_table(params: Mapping[str, Scalar]) -> str:
    if not params:
        return ""
    lines = [f"| {_escape(key)} | {_escape(str(value))} |" for key, value in params.items()]
    return "\n".join(["| hparam | value |", "| --- | --- |", *lines])


def _escape(text: str) -> str:
    """Return `text` such that Markdown shows it unchanged in one cell of a table."""
    return text.translate(_ESCAPES)

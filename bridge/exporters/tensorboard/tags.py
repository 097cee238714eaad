"""The tags that metrics and images get.

In TensorBoard a tag belongs to one plugin: a metric and an image of one name would both vanish. So metrics keep their
names, whatever else there is; images stand as `<tag>/<index>`, their captions as `<tag>/caption`,
the run's own texts as `run/...`; and where such a tag is also a metric's, it gets a suffix. What a thing
is called depends on the metrics alone, not on what came first.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bridge.model import Notice, NoticeKind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from bridge.model import Delta

__all__ = [
    "beside_metrics",
    "caption_of_tag",
    "caption_tag",
    "image_of_tag",
    "image_tag",
    "media_losses",
    "metric_losses",
    "metric_tags",
    "plain",
    "renamed",
]

_RESERVED = "_hparams_/"
_IMAGE = re.compile(r"(.*)/(\d+)(?: \(image\))*", re.DOTALL)
_CAPTION = re.compile(r"(.*)/caption(?: \((\d+)\))?(?: \(text\))*", re.DOTALL)


def plain(text: str) -> str:
    """`text` as far as UTF-8 can say it: lone surrogates become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def metric_tags(
    names: Iterable[str], rename: Mapping[str, str], held: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The tag of each metric; of two that would share one, the first keeps it and the others get a number.

    `held` are metrics by tag that the target has already under another tag than their name.
    """
    tags: dict[str, str] = {name: tag for tag, name in (held or {}).items()}
    taken = set(tags.values())
    for name in names:
        if name in tags:
            continue
        wanted = plain(rename.get(name, name)) or "(no name)"
        if wanted.startswith(_RESERVED):
            wanted = f"metric {wanted}"
        tag, number = wanted, 2
        while tag in taken:
            tag, number = f"{wanted} ({number})", number + 1
        tags[name] = tag
        taken.add(tag)
    return tags


def metric_losses(tags: Mapping[str, str], rename: Mapping[str, str]) -> list[Notice]:
    """A notice for each metric that got another tag than it was to have."""
    return [
        Notice(NoticeKind.RENAMED, name, f"stands as {tag!r}")
        for name, tag in tags.items()
        if tag != rename.get(name, name)
    ]


def image_tag(tag: str, index: int) -> str:
    """The tag of the images with one index: so the same index of different runs stands side by side."""
    return f"{plain(tag)}/{index}"


def caption_tag(tag: str, index: int) -> str:
    """The tag of their captions; a text's tag holds one text a step, so each index has its own."""
    return f"{plain(tag)}/caption" if index == 0 else f"{plain(tag)}/caption ({index})"


def beside_metrics(tag: str, metrics: Collection[str], suffix: str) -> str:
    """`tag`, with as many suffixes as it takes to be no metric's tag. `suffix` is `image` or `text`."""
    while tag in metrics:
        tag += f" ({suffix})"
    return tag


def renamed(what: str, tag: str, metrics: Collection[str], suffix: str) -> Notice:
    """The notice of `what`, which cannot stand under `tag`."""
    free = beside_metrics(tag, metrics, suffix)
    return Notice(NoticeKind.RENAMED, what, f"stands as {free!r}, since a metric has that name")


def media_losses(delta: Delta, metrics: Collection[str], known: Collection[str]) -> list[Notice]:
    """A notice for each tag that a metric takes from an image or a caption.

    `known` are the tags that are in use already: for these it was said before, unless a new metric takes them now.
    """
    wanted: dict[str, tuple[str, str]] = {}
    for event in delta.media:
        wanted[image_tag(event.tag, event.index)] = (event.tag, "image")
        if event.caption:
            wanted[caption_tag(event.tag, event.index)] = (event.tag, "text")
    for tag in known:
        wanted.setdefault(tag, (tag, "image" if image_of_tag(tag) else "text"))
    return [
        renamed(what, tag, metrics, suffix)
        for tag, (what, suffix) in wanted.items()
        if tag in metrics and beside_metrics(tag, metrics, suffix) not in known
    ]


def image_of_tag(tag: str) -> tuple[str, int] | None:
    """The tag and the index that the run logged; the reverse of `image_tag` with suffixes."""
    match = _IMAGE.fullmatch(tag)
    return (match[1], int(match[2])) if match else None


def caption_of_tag(tag: str) -> tuple[str, int] | None:
    """The image's tag and index of a caption's tag."""
    match = _CAPTION.fullmatch(tag)
    return (match[1], int(match[2] or 0)) if match else None

"""People's tags as MLflow's, by a rule that can be done backwards, and the list that keeps all of them as they are."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.exporters.mlflow.names import keys_of, renamed
from bridge.exporters.mlflow.tags import TAG_LIMIT, Tag
from bridge.model import Notice, NoticeKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["LIST_TAGS", "MOST_TAGS", "PeopleTags", "listed", "people_losses", "people_tags", "read_list"]

MOST_TAGS = 1000
"""Tags of one run that are sent; a run with more of them is a mistake that must not cost hours."""

LIST_TAGS = (Tag.TAGS, *(f"{Tag.TAGS}.{number}" for number in range(2, 21)))
"""The tags that hold the list, as far as it needs them: its JSON text goes on from one to the next."""

_KEY_VALUE = re.compile(r"([A-Za-z0-9_.\-]+):(.*)", re.DOTALL)
_OURS = ("mlflow.", "bridge.")


@dataclass(frozen=True, slots=True)
class PeopleTags:
    """What a run's tags become: `values` by MLflow's key, at most MOST_TAGS; `keys` from a tag's own name to that key."""

    values: Mapping[str, str]
    keys: Mapping[str, str]

    def key(self, tag: str) -> str:
        """The key of the tag in MLflow that `tag` became, or became a part of."""
        return self.keys[_name(tag)]


def people_tags(tags: Iterable[str]) -> PeopleTags:
    """A run's tags as MLflow's.

    `key:value` becomes key = value, several of one key are joined by `, `; any other text is a bare word, `word` =
    `true` unless there is a value of that very name. Keys that MLflow or the bridge uses get the prefix `tag.`; of two
    names that would get one key the first keeps it, the next get `_2`, `_3`.
    """
    joined: dict[str, list[str]] = {}
    words: dict[str, None] = {}
    for tag in tags:
        found = _KEY_VALUE.fullmatch(tag)
        if found:
            joined.setdefault(found[1], []).append(found[2])
        else:
            words[tag] = None
    names = [*joined, *(word for word in words if word not in joined)]
    keys = keys_of(names, {name: f"tag.{name}" for name in names if name.startswith(_OURS)})
    values = {keys[name]: ", ".join(joined[name]) if name in joined else "true" for name in names[:MOST_TAGS]}
    return PeopleTags(values, keys)


def people_losses(tags: Sequence[str], people: PeopleTags, listed: Sequence[str]) -> list[Notice]:
    """What of `tags` does not stand in MLflow as it is, where `listed` are those in the list."""
    where = "all tags stand as they are in bridge.tags"
    notices = [
        Notice(NoticeKind.RENAMED, f"tag {_short(name)}", f"as {key}; {where}")
        for name, key in renamed(people.keys).items()
        if key in people.values
    ]
    named = {_name(tag) for tag in tags if _KEY_VALUE.fullmatch(tag)}
    notices += [
        Notice(NoticeKind.LEFT_OUT, f"tag {_short(tag)}", f"there is a value of that name; {where}")
        for tag in dict.fromkeys(tags)
        if tag in named
    ]
    told = sum(people.key(tag) in people.values for tag in listed)
    if told < len(tags):
        detail = f"of {len(tags)} tags {told} are sent, and {len(listed)} stand in bridge.tags; all are in sidecar.json"
        notices.append(Notice(NoticeKind.LEFT_OUT, "tags", detail, count=len(tags) - told))
    return notices


def listed(tags: Sequence[str]) -> tuple[Sequence[str], dict[str, str]]:
    """The tags that keep the list of `tags`, and what it holds: all, or as many of the first as fit into LIST_TAGS."""
    room = TAG_LIMIT * len(LIST_TAGS)
    tags = tags[:room]
    text = json.dumps(tags, ensure_ascii=False)
    while len(text) > room:
        tags = tags[: min(len(tags) - 1, len(tags) * room // len(text))]
        text = json.dumps(tags, ensure_ascii=False)
    pieces = (text[at : at + TAG_LIMIT] for at in range(0, len(text), TAG_LIMIT))
    return tags, dict(zip(LIST_TAGS, pieces, strict=False))


def read_list(tags: Mapping[str, str]) -> list[str]:
    """The list that the tags of a run keep; empty where it cannot be read. What stands behind its end does not count."""
    try:
        found, _ = json.JSONDecoder().raw_decode("".join(tags.get(key, "") for key in LIST_TAGS))
    except (ValueError, RecursionError):
        return []
    return [tag for tag in found if isinstance(tag, str)] if isinstance(found, list) else []


def _name(tag: str) -> str:
    found = _KEY_VALUE.fullmatch(tag)
    return found[1] if found else tag


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}..."

"""Copies of a run's files without their secrets: hparams.yaml byte for byte but for these, sidecar.json as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from bridge.files import too_large_json, too_large_yaml
from bridge.redaction import MASK, Letters, TooMuchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridge.redaction import Redaction

__all__ = ["masked_json", "masked_yaml"]

_PLAIN = frozenset(
    {
        *("schema_version", "run_id", "run_dir", "uid", "status", "display_name", "archived", "notes", "summary"),
        *("created_at", "ended_at", "updated_at", "checkpoint_path", "time_column"),
        *("step", "epoch", "metrics"),
    }
)
"""Fields of sidecar.json and summary.json that say what they say under any name: metrics, times, people's own words."""


def masked_json(data: bytes, redaction: Redaction) -> bytes:
    """A sidecar's or a summary's JSON with its secrets masked, unknown fields included.

    Bytes without a secret come back unchanged. What is no JSON object, or too large to look through, becomes empty:
    nobody can tell what is in it.
    """
    if too_large_json(data):
        return b""
    try:
        tree = json.loads(data)
        if not isinstance(tree, dict):
            return b""
        letters = Letters()
        masked = {key: _field(key, value, redaction, letters) for key, value in tree.items()}
    except (ValueError, RecursionError, TooMuchError):
        return b""
    return data if masked == tree else json.dumps(masked, indent=2, ensure_ascii=False).encode("utf-8", "replace")


def _field(key: str, value: Any, redaction: Redaction, letters: Letters) -> Any:
    if key in _PLAIN:
        return value
    if key == "hparams":
        return redaction.tree(value, "", letters)
    if key == "tags" and isinstance(value, str | list):
        tags = [value] if isinstance(value, str) else value
        shown = [redaction.tag(tag) if isinstance(tag, str) else redaction.tree(tag, "", letters) for tag in tags]
        return shown[0] if isinstance(value, str) else shown
    return MASK if redaction.matches(key) else redaction.tree(value, key, letters, lines=True)


def masked_yaml(data: bytes, redaction: Redaction) -> bytes:
    """hparams.yaml with secret values masked in place; every other byte stays. Unreadable or too large YAML becomes empty."""
    if too_large_yaml(data):
        return b""
    text = data.decode("utf-8", "replace")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        spans = _Spans(redaction)
        if root is not None:
            spans.add(root, "")
    except (yaml.YAMLError, RecursionError, ValueError, TooMuchError):
        return b""
    return _still_yaml(_replaced(text, sorted(spans.found))) if spans.found else data


@dataclass(slots=True)
class _Spans:
    """Where secret values stand in a YAML text, and what is to stand there."""

    redaction: Redaction
    found: set[tuple[int, int, str]] = field(default_factory=set)
    letters: Letters = field(default_factory=Letters)
    seen: set[int] = field(default_factory=set)

    def add(self, node: Node, key: str) -> None:
        """Look through `node`, which stands under `key`; aliases lead to nodes that were seen already."""
        if key and self.redaction.matches(key):
            self._mask(node)
        elif id(node) not in self.seen:
            self.seen.add(id(node))
            if isinstance(node, MappingNode):
                for name, value in node.value:
                    if isinstance(name, ScalarNode):
                        self.add(value, self.letters.below(key, name.value))
                    else:  # a list or a mapping as a key
                        self.add(name, key)
                        self.add(value, key)
            elif isinstance(node, SequenceNode):
                self._items(node.value, key)
            elif isinstance(node, ScalarNode):
                self._scalar(node, self.redaction.text(node.value, key, self.letters))

    def _items(self, items: Sequence[Node], key: str) -> None:
        is_secret = False
        for item in items:
            if is_secret:
                self._mask(item)
            else:
                self.add(item, key)
                if isinstance(item, ScalarNode):
                    self._scalar(item, self.redaction.tag(item.value))
            is_secret = isinstance(item, ScalarNode) and self.redaction.announces(item.value)

    def _scalar(self, node: ScalarNode, shown: str) -> None:
        if shown != node.value:
            self._mask(node, shown)

    def _mask(self, node: Node, shown: str = MASK) -> None:
        quoted = _one_line(shown).replace("'", "''")
        self.found.add((node.start_mark.index, node.end_mark.index, f"'{quoted}'"))


def _one_line(shown: str) -> str:
    """What was masked in printable ASCII, which a quoted scalar can hold whatever was in it."""
    if shown.isascii() and shown.isprintable():
        return shown
    try:
        return json.dumps(json.loads(shown))
    except ValueError:
        return MASK


def _replaced(text: str, spans: Sequence[tuple[int, int, str]]) -> str:
    """`text` with other text in the place of `spans`, which are in order; aliases put one into another, which it hides."""
    parts, place = [], 0
    for start, end, shown in spans:
        if start < place:
            continue
        tail = "\n" if text[start:end].endswith("\n") else ""
        parts.append(f"{text[place:start]}{shown}{tail}")
        place = end
    return "".join((*parts, text[place:]))


def _still_yaml(text: str) -> bytes:
    """`text`, empty where masking took an anchor away that an alias needs."""
    try:
        yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return b""
    return text.encode()

"""Secrets masked by the key they stand under: in params, in tags, in command lines and in copies of files."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from bridge.bounds import MOST_PARAM_LETTERS, too_large_json, too_large_yaml
from bridge.secrets import hide

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MASK", "Redaction"]

MASK = "***"
"""What stands in the place of a secret."""

_VALUE = r"(?:\"[^\"]*\"|'[^']*'|\S+)"
# A key begins where a word does: tried at each of its letters, a word of megabytes would take hours.
_ASSIGNED = re.compile(rf"(?<![\w.\-])(?P<key>[\w.\-]++)(?P<between>=){_VALUE}")
_FOLLOWING = re.compile(rf"(?<!\S)(?P<key>-[\w.\-]+)(?P<between>\s+)(?!-){_VALUE}")


@dataclass(frozen=True, slots=True)
class Redaction:
    """Masks values whose flat key matches one of `globs`, without regard to case."""

    globs: tuple[str, ...]

    def matches(self, key: str) -> bool:
        """Whether what stands under `key` is a secret."""
        low = key.lower()
        return any(fnmatchcase(low, glob.lower()) for glob in self.globs)

    def tag(self, tag: str) -> str:
        """A sidecar's tag `key:value` with a secret value masked."""
        key, colon, _ = tag.partition(":")
        return f"{key}:{MASK}" if colon and self.matches(key) else tag

    def command(self, text: str) -> str:
        """A command line: `--key value`, `--key=value` and `a.b.key=value` with secret values masked, and credentials in URLs."""

        def masked(found: re.Match[str]) -> str:
            is_secret = self.matches(found["key"].lstrip("-"))
            return f"{found['key']}{found['between']}{MASK}" if is_secret else found[0]

        return hide(_FOLLOWING.sub(masked, _ASSIGNED.sub(masked, text)))

    def param(self, key: str, value: str) -> str:
        """A param's text, masked as a whole or, where it is a list or mapping in JSON, the secrets within."""
        if self.matches(key):
            return MASK
        if not value.startswith(("[", "{")):
            return value
        try:
            tree = json.loads(value)
        except (ValueError, RecursionError):
            return value
        try:
            masked = self._tree(tree, "", _Letters())
        except _TooLongError:
            return MASK
        return value if masked == tree else json.dumps(masked, ensure_ascii=False)

    def is_open(self, key: str, value: object) -> bool:
        """Whether nothing of a param is masked."""
        return self.param(key, str(value)) == str(value)

    def json(self, data: bytes) -> bytes:
        """A sidecar's JSON: secrets in `hparams`, `tags` and the command of each session masked, the rest as it is.

        Bytes without a secret come back unchanged. What is no JSON object becomes empty: nobody can tell what is in it.
        """
        if too_large_json(data):
            return b""
        try:
            tree = json.loads(data)
        except (ValueError, RecursionError):
            return b""
        if not isinstance(tree, dict):
            return b""
        try:
            masked = tree | {key: self._part(key, tree[key]) for key in ("hparams", "tags", "sessions") if key in tree}
        except _TooLongError:
            return b""
        return data if masked == tree else json.dumps(masked, indent=2, ensure_ascii=False).encode()

    def yaml(self, data: bytes) -> bytes:
        """hparams.yaml with secret values masked in place; every other byte stays. Unreadable or too large YAML becomes empty."""
        if too_large_yaml(data):
            return b""
        text = data.decode("utf-8", "replace")
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except (yaml.YAMLError, RecursionError, ValueError):
            return b""
        spans: list[tuple[int, int]] = []
        try:
            if root is not None:
                self._spans(root, "", spans, set(), _Letters())
        except _TooLongError:
            return b""
        return _still_yaml(_masked(text, sorted(set(spans)))) if spans else data

    def _part(self, key: str, value: Any) -> Any:
        if key == "hparams":
            return self._tree(value, "", _Letters())
        if not isinstance(value, list):
            return value
        if key == "tags":
            return [self.tag(tag) if isinstance(tag, str) else tag for tag in value]
        return [self._session(session) for session in value]

    def _session(self, session: Any) -> Any:
        if not isinstance(session, dict) or not isinstance(session.get("command"), str):
            return session
        return session | {"command": self.command(session["command"])}

    def _tree(self, value: Any, key: str, letters: _Letters) -> Any:
        if key and self.matches(key):
            return MASK
        if isinstance(value, dict):
            return {name: self._tree(item, letters.below(key, name), letters) for name, item in value.items()}
        if isinstance(value, list):
            return [self._tree(item, "", letters) for item in value]
        return value

    def _spans(self, node: Node, key: str, spans: list[tuple[int, int]], seen: set[int], letters: _Letters) -> None:
        """Collect where secret values stand; aliases lead to nodes that were seen already."""
        if id(node) in seen and not self.matches(key):
            return
        seen.add(id(node))
        if key and self.matches(key):
            spans.append((node.start_mark.index, node.end_mark.index))
            return
        if isinstance(node, MappingNode):
            for name, value in node.value:
                if isinstance(name, ScalarNode):
                    self._spans(value, letters.below(key, name.value), spans, seen, letters)
        elif isinstance(node, SequenceNode):
            for item in node.value:
                self._spans(item, "", spans, seen, letters)


class _TooLongError(Exception):
    """Keys within keys are longer together than anybody reads."""


class _Letters:
    """How many letters of flat keys may still be made: nested ones repeat the keys above them."""

    def __init__(self) -> None:
        self.left = MOST_PARAM_LETTERS

    def below(self, key: str, name: object) -> str:
        """The flat key of `name` below `key`. Raises _TooLongError where that was the last straw."""
        flat = f"{key}.{name}" if key else str(name)
        self.left -= len(flat)
        if self.left < 0:
            raise _TooLongError
        return flat


def _masked(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """`text` with the mask in the place of `spans`, which are in order; aliases put one into another, which it hides."""
    parts, place = [], 0
    for start, end in spans:
        if start < place:
            continue
        tail = "\n" if text[start:end].endswith("\n") else ""
        parts.append(f"{text[place:start]}'{MASK}'{tail}")
        place = end
    return "".join((*parts, text[place:]))


def _still_yaml(text: str) -> bytes:
    """`text`, empty where masking took an anchor away that an alias needs."""
    try:
        yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return b""
    return text.encode()

"""Secrets masked by the key they stand under: in params, in tags, in command lines and in copies of files."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from bridge.secrets import hide

__all__ = ["MASK", "Redaction"]

MASK = "***"
"""What stands in the place of a secret."""

_VALUE = r"(?:\"[^\"]*\"|'[^']*'|\S+)"
_ASSIGNED = re.compile(rf"(?P<key>[\w.\-]+)(?P<between>=){_VALUE}")
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
        masked = self._tree(tree, "")
        return value if masked == tree else json.dumps(masked, ensure_ascii=False)

    def is_open(self, key: str, value: object) -> bool:
        """Whether nothing of a param is masked."""
        return self.param(key, str(value)) == str(value)

    def json(self, data: bytes) -> bytes:
        """A sidecar's JSON: secrets in `hparams`, `tags` and the command of each session masked, the rest as it is.

        Bytes without a secret come back unchanged. What is no JSON object becomes empty: nobody can tell what is in it.
        """
        try:
            tree = json.loads(data)
        except (ValueError, RecursionError):
            return b""
        if not isinstance(tree, dict):
            return b""
        masked = tree | {key: self._part(key, tree[key]) for key in ("hparams", "tags", "sessions") if key in tree}
        return data if masked == tree else json.dumps(masked, indent=2, ensure_ascii=False).encode()

    def yaml(self, data: bytes) -> bytes:
        """hparams.yaml with secret values masked in place; every other byte stays. Unreadable YAML becomes empty."""
        text = data.decode("utf-8", "replace")
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except (yaml.YAMLError, RecursionError, ValueError):
            return b""
        spans: list[tuple[int, int]] = []
        if root is not None:
            self._spans(root, "", spans, set())
        for start, end in sorted(set(spans), reverse=True):
            tail = "\n" if text[start:end].endswith("\n") else ""
            text = f"{text[:start]}'{MASK}'{tail}{text[end:]}"
        return _still_yaml(text) if spans else data

    def _part(self, key: str, value: Any) -> Any:
        if key == "hparams":
            return self._tree(value, "")
        if not isinstance(value, list):
            return value
        if key == "tags":
            return [self.tag(tag) if isinstance(tag, str) else tag for tag in value]
        return [self._session(session) for session in value]

    def _session(self, session: Any) -> Any:
        if not isinstance(session, dict) or not isinstance(session.get("command"), str):
            return session
        return session | {"command": self.command(session["command"])}

    def _tree(self, value: Any, key: str) -> Any:
        if key and self.matches(key):
            return MASK
        if isinstance(value, dict):
            return {name: self._tree(item, f"{key}.{name}" if key else str(name)) for name, item in value.items()}
        if isinstance(value, list):
            return [self._tree(item, "") for item in value]
        return value

    def _spans(self, node: Node, key: str, spans: list[tuple[int, int]], seen: set[int]) -> None:
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
                    self._spans(value, f"{key}.{name.value}" if key else name.value, spans, seen)
        elif isinstance(node, SequenceNode):
            for item in node.value:
                self._spans(item, "", spans, seen)


def _still_yaml(text: str) -> bytes:
    """`text`, empty where masking took an anchor away that an alias needs."""
    try:
        yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return b""
    return text.encode()

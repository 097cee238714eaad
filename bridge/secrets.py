"""Hide secrets: credentials in addresses and messages, and values under keys that name a secret.

`hide` masks credentials in any text on its way to people and targets. `hide_all` is for the words of others (a driver's
message, a server's answer, a traceback), which may repeat a password without its address: it also masks every word
given to `keep`. `Redaction` masks values by globs on their keys: flat params, tags, command lines, JSON inside a text,
and copies of hparams.yaml, sidecar.json and summary.json.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import unquote

from logger.values import names_secret

if TYPE_CHECKING:
    from collections.abc import Sequence

    Node: TypeAlias = Any
    """A `yaml.Node`. Its class attribute `id` is missing in the stubs."""

E = TypeVar("E", bound=BaseException)
V = TypeVar("V")

MASK = "***"

_ADDRESS = re.compile(r"://[^\s'\"]+")
_QUERY = re.compile(r"(?i)([?&;](?:[\w.\-]*(?:password|passwd|pwd|secret|token|api_?key|credentials?))=)([^&\s;'\"#]+)")
_CREDENTIALS = re.compile(r"(?:://|^(?!.*://))(?=[^/]*[:@])", re.DOTALL)
"""Where the credentials of an address begin: behind `://`, or at its beginning if it has no scheme."""
_SHORTEST_KEPT = 6
"""Characters; a shorter word appears in too many texts by chance."""

_kept: dict[str, re.Pattern[str]] = {}


def keep(secret: str | None) -> None:
    """Let `hide_all` mask this word from now on, wherever it stands by itself."""
    if secret and len(secret) >= _SHORTEST_KEPT and secret not in _kept:
        _kept[secret] = re.compile(rf"(?<!\w){re.escape(secret)}(?!\w)")


def keep_pair(user: str, password: str) -> None:
    """Let `hide_all` mask the pair as an Authorization header carries it."""
    for encoding in ("utf-8", "latin-1"):
        keep(base64.b64encode(f"{user}:{password}".encode(encoding, "replace")).decode())


def keep_uri(uri: str | None) -> None:
    """Let `hide_all` mask the passwords in `uri`, but none that equals the user, the host or the database."""
    before, credentials, after = _split(uri or "")
    words = [found[2] for found in _QUERY.finditer(uri or "")]
    shown = _QUERY.sub(r"\1", before + after)
    if credentials:
        user, colon, password = credentials[:-1].partition(":")
        words.append(password if colon else user)
        keep_pair(unquote(user), unquote(password))
        shown += f" {user}" if colon else ""
    for word in words:
        for form in (word, unquote(word)):
            if form not in shown:
                keep(form)


def bare(uri: str) -> str:
    """Return the single address `uri` without the credentials before its host."""
    before, _, after = _split(uri)
    return before + after


def hide_uri(uri: str) -> str:
    """Return the single address `uri` with its credentials masked, whatever characters they contain."""
    before, credentials, after = _split(uri)
    return _QUERY.sub(rf"\1{MASK}", before + (f"{MASK}@" if credentials else "") + after)


def hide(text: str) -> str:
    """Return `text` with the credentials in all its addresses masked."""
    return _ADDRESS.sub(lambda word: hide_uri(word[0]), text) if "://" in text else text


def hide_all(text: str) -> str:
    """Return `text` with the credentials in all its addresses, and all words given to `keep`, masked."""
    text = hide(text)
    for secret, pattern in _kept.items():
        if secret in text:
            text = pattern.sub(MASK, text)
    return text


def hide_in(error: E) -> E:
    """Mask secrets in `error` and in every error that led to it, since a traceback prints them all. Return `error`."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        waiting += [one.__cause__, one.__context__, *(item for item in one.args if isinstance(item, BaseException))]
        one.args = tuple(hide_all(item) if isinstance(item, str) else item for item in one.args)
        for name, value in getattr(one, "__dict__", {}).items():
            if isinstance(value, str) and value != hide_all(value):
                setattr(one, name, hide_all(value))
    return error


def _split(address: str) -> tuple[str, str, str]:
    """Return the parts of `address` before, within and after its credentials; without any, `address` and two "".

    Up to the first slash, credentials hold a colon or an @. As a password may hold any character, they end at the last
    @ of the address: rather hide a part of a path than show one of a password.
    """
    end = address.rfind("@") + 1
    found = _CREDENTIALS.search(address, 0, end)
    if found is None:
        return address, "", ""
    return address[: found.end()], address[found.end() : end], address[end:]


_DEEPEST = 64
_MOST_LETTERS = 16 << 20
"""Characters of the flat keys of one value together. Each value counts as 16 more, so that their number is bounded."""
_LARGEST_JSON, _LARGEST_YAML = 16 << 20, 1 << 20
"""Bytes; a larger file is left out. The YAML parser takes seconds for a megabyte."""
_LONGEST_COMMAND = 10_000
"""Characters; RegistryLogger keeps 4,000. The time that shlex takes grows with the square of a word's length."""
_STRUCTURED = re.compile(r"\s*+[\w.]{0,100}+[\[({<]")
_KEY_BEFORE_SIGN = re.compile(r"(?<![\w.\-])([\w.\-]++)['\"]?\s*+[:=]")
_SHELL_SAFE = re.compile(r"[\w@%+=:,./*-]+", re.ASCII)

_PLAIN_FIELDS = frozenset(
    ["run_id", "run_dir", "uid", "display_name", "notes", "checkpoint_path", "time_column", "summary", "metrics"]
)
"""Fields of sidecar.json and summary.json that hold names, people's own words, or metrics by name."""


class _TooLargeError(Exception):
    """The value is nested too deep, or its keys are too long together, to look through."""


@dataclass(frozen=True, slots=True)
class Redaction:
    """Masks values whose key matches one of `globs`.

    A glob matches the whole dotted key or any part between its dots. Case does not matter, and `-` equals `_`.
    """

    globs: tuple[str, ...]

    def matches(self, key: str) -> bool:
        """Return whether `key` names a secret."""
        return names_secret(key, self.globs)

    def value(self, key: str, value: V) -> V | str:
        """Return the hyperparameter with its value masked, or with the secrets in it if it is JSON as text."""
        if self.matches(key):
            return MASK
        return _Walk(self).text(value, key) if isinstance(value, str) else value

    def tag(self, tag: str) -> str:
        """Return `key:value` or `key=value` with a secret value masked, and other words unchanged."""
        return _Walk(self).tag(tag)

    def command(self, text: str) -> str:
        """Return a command line with the values of secret options, and credentials in addresses, masked.

        Options look like `--key value`, `--key=value` or `a.b.key=value`. The word after an option that names a secret
        is masked whatever it looks like. A line that no shell can read, or of more than 10,000 characters, is masked
        whole if it names a secret.
        """
        try:
            words = shlex.split(text) if len(text) <= _LONGEST_COMMAND else []
        except ValueError:
            words = []
        if not words:
            words = text.split()
            return hide(text) if _Walk(self).words(words) == words else MASK
        masked = [hide(word) for word in _Walk(self).words(words)]
        if masked == words:
            return text
        return " ".join(word if _SHELL_SAFE.fullmatch(word) else shlex.quote(word) for word in masked)

    def json_file(self, data: bytes) -> bytes:
        """Return a copy of sidecar.json or summary.json with all secrets masked, those in unknown fields too.

        Return the same bytes if there is no secret, and b"" if the file is too large or no JSON object.
        """
        if len(data) > _LARGEST_JSON:
            return b""
        walk = _Walk(self)
        try:
            tree = json.loads(data)
            # A list of one, since a text in the place of tags is a tag.
            logged = {key: walk.value([tree[key]], "")[0] for key in ("hparams", "tags") if key in tree}
            others = {key: value for key, value in tree.items() if key not in _PLAIN_FIELDS | logged.keys()}
            masked = tree | walk.value(others, "", commands=True) | logged
        except (ValueError, RecursionError, TypeError, AttributeError, _TooLargeError):
            return b""
        return data if masked == tree else json.dumps(masked, indent=2, ensure_ascii=False).encode("utf-8", "replace")

    def yaml_file(self, data: bytes) -> bytes:
        """Return a copy of hparams.yaml with all secrets masked, and without its comments.

        Return the same bytes if there is no secret, and b"" if the file is too large or no YAML.
        """
        import yaml

        if len(data) > _LARGEST_YAML:
            return b""
        walk = _Walk(self)
        try:
            # Nodes are masked, and no values made of them: their tags and the spelling of numbers stay as they are.
            loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first is ten times as fast, where it is built
            root = yaml.compose(data.decode("utf-8", "replace"), Loader=loader)
            masked = None if root is None else walk.node(root, "")
            if not walk.changed:
                return data
            return yaml.serialize(masked, Dumper=yaml.SafeDumper, allow_unicode=True).encode("utf-8", "replace")
        except (yaml.YAMLError, RecursionError, ValueError, _TooLargeError):
            return b""


class _Walk:
    """One pass through a nested value. A small file can make a large one: keys repeat those above them, aliases all."""

    def __init__(self, redaction: Redaction) -> None:
        self._redaction = redaction
        self._left = _MOST_LETTERS
        self.changed = False

    def value(self, value: Any, key: str, depth: int = 0, *, commands: bool = False) -> Any:
        """Return the JSON value under `key` with its secrets masked; with `commands`, texts may be command lines."""
        self._count(key, depth)
        if isinstance(value, dict):
            masked = {}
            for name, item in value.items():
                flat = f"{key}.{name}" if key else str(name)
                is_secret = self._redaction.matches(flat)
                masked[name] = MASK if is_secret else self.value(item, flat, depth + 1, commands=commands)
            return masked
        if isinstance(value, list):
            return self.words([self.value(item, key, depth + 1, commands=commands) for item in value], value)
        if not isinstance(value, str):
            return value
        shown = self.text(value, key, depth)
        return self._redaction.command(value) if commands and shown == value else shown

    def text(self, text: str, key: str, depth: int = 0) -> str:
        """Return `text` with the secrets in it masked where it is JSON.

        Mask a list, mapping or object in another notation whole if it names a secret.
        """
        if _STRUCTURED.match(text) is None:
            return text
        try:
            tree = json.loads(text)
            masked = self.value(tree, key, depth + 1)
        except (RecursionError, _TooLargeError):
            return MASK
        except ValueError:
            return MASK if any(map(self._redaction.matches, _KEY_BEFORE_SIGN.findall(text))) else text
        return text if masked == tree else json.dumps(masked, ensure_ascii=False)

    def tag(self, tag: str) -> str:
        """Return `key:value` or `key=value` with a secret value masked, and JSON with the secrets in it masked."""
        sign = re.search("[:=]", tag)
        if sign is None or _STRUCTURED.match(tag):
            return self.text(tag, "")
        key, rest = tag[: sign.start()].strip().lstrip("-+"), tag[sign.end() :]
        return tag[: sign.end()] + (MASK if self._redaction.matches(key) else self.text(rest, key))

    def words(self, words: Sequence[Any], unmasked: Sequence[Any] = ()) -> list[Any]:
        """Return a list, perhaps of words of a command line, with secrets masked, and the word after a secret option.

        `unmasked` is the list as it was before secrets inside its items were masked.
        """
        shown, is_secret = [], False
        for word, original in zip(words, unmasked or words, strict=True):
            shown.append(MASK if is_secret else self.tag(word) if isinstance(word, str) else word)
            is_secret = isinstance(original, str) and self._announces_secret(original)
        return shown

    def _announces_secret(self, word: str) -> bool:
        """Return whether the word after `word` is a secret: `--password`, `password:` or `password=`."""
        if word.endswith((":", "=")):
            return self._redaction.matches(re.split(r"[\s:=]", word[:-1])[-1].lstrip("-+"))
        return word.startswith("-") and not re.search("[:=]", word) and self._redaction.matches(word.lstrip("-"))

    def node(self, node: Node, key: str, depth: int = 0) -> Node:
        """Mask the secrets in and below a YAML node in place. Return the node, or the one to put in its place."""
        self._count(key, depth)
        if node.id == "mapping":
            node.value = [(name, self._entry(name, value, key, depth)) for name, value in node.value]
        elif node.id == "sequence":
            texts = [_text_of(item) for item in node.value]
            items = [self.node(item, key, depth + 1) for item in node.value]
            shown = self.words([_text_of(item) for item in items], texts)
            node.value = [self._scalar(item, text) for item, text in zip(items, shown, strict=True)]
        else:
            return self._scalar(node, self.text(node.value, key, depth))
        return node

    def _entry(self, name: Node, value: Node, key: str, depth: int) -> Node:
        """Return the masked value of one entry of a mapping. Its key may be a list or a mapping, masked in place."""
        flat = f"{key}.{name.value}" if key else str(name.value)
        if name.id != "scalar":
            self.node(name, key, depth + 1)
        return self._scalar(value, MASK) if self._redaction.matches(flat) else self.node(value, flat, depth + 1)

    def _scalar(self, node: Node, text: str | None) -> Node:
        """Return `node` if its text is `text`, else a new scalar."""
        from yaml import ScalarNode

        if text == _text_of(node):
            return node
        self.changed = True
        return ScalarNode("tag:yaml.org,2002:str", text, style="'")

    def _count(self, key: str, depth: int) -> None:
        self._left -= len(key) + 16
        if depth > _DEEPEST or self._left < 0:
            raise _TooLargeError


def _text_of(node: Node) -> str | None:
    return node.value if node.id == "scalar" else None

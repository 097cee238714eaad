"""Secrets masked by the key they stand under, wherever a run says them: params, tags, command lines, JSON within texts.

One rule for all exporters. (`bridge verify` has its own, `bridge.sync.truth_secrets`, which shares no code with this.)
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from bridge.files import MOST_PARAM_LETTERS
from bridge.secrets import MASK, hide

if TYPE_CHECKING:
    from bridge.model import Scalar

__all__ = ["MASK", "Letters", "Redaction", "TooMuchError"]

_DEEPEST = 64
_SHORT = 200
"""Characters of a key that is remembered; most runs have the same few."""

# None of these looks at a character more than a few times, however long the text is.
_STRUCTURED = re.compile(r"\s*+[\w.]{0,100}+[\[({<]")
_NAMED = re.compile(r"(?<![\w.\-])([\w.\-]++)['\"]?\s*+[:=]")
_PIECE = re.compile(r"[^\s'\"\\]++|\\.?|'[^']*+'?|\"(?:[^\"\\]++|\\.?)*+\"?", re.DOTALL)
_WORD = re.compile(rf"(?:{_PIECE.pattern})++", re.DOTALL)


class TooMuchError(Exception):
    """What was to be masked is nested deeper, or its keys are longer together, than anybody reads."""


class Letters:
    """How many letters of flat keys may still be made: nested ones repeat the keys above them."""

    def __init__(self) -> None:
        self.left = MOST_PARAM_LETTERS

    def below(self, key: str, name: object) -> str:
        """The flat key of `name` below `key`. Raises TooMuchError where that was the last straw."""
        flat = f"{key}.{name}" if key else str(name)
        self.left -= len(flat)
        if self.left < 0:
            raise TooMuchError
        return flat


@dataclass(frozen=True, slots=True)
class Redaction:
    """Masks what stands under a key that matches one of `globs`.

    A key matches by its whole dotted name or by any part of it, without regard to case, and `-` is as good as `_`.
    """

    globs: tuple[str, ...]

    def matches(self, key: str) -> bool:
        """Whether what stands under `key` is a secret."""
        if not key:
            return False
        return _remembered(key, self.globs) if len(key) <= _SHORT else _matches(key, self.globs)

    def value(self, key: str, value: Scalar) -> Scalar:
        """A hyperparameter: the mask, or with the secrets in it masked where it is the text of a list or mapping."""
        if self.matches(key):
            return MASK
        return self.text(value, key) if isinstance(value, str) else value

    def text(self, text: str, key: str = "", letters: Letters | None = None, depth: int = 0) -> str:
        """`text` under `key`: where it is JSON, with the secrets in it masked, at any depth.

        A list, mapping or object in any other notation is masked whole where it names a secret.
        """
        if _STRUCTURED.match(text) is None:
            return text
        try:
            tree = json.loads(text)
        except RecursionError:
            return MASK
        except ValueError:
            return MASK if any(self.matches(found[1]) for found in _NAMED.finditer(text)) else text
        try:
            masked = self.tree(tree, key, letters or Letters(), depth + 1)
        except TooMuchError:
            return MASK
        return text if masked == tree else json.dumps(masked, ensure_ascii=False)

    def tag(self, tag: str) -> str:
        """A tag or another word: `key:value` or `key=value` with a secret value masked."""
        if _STRUCTURED.match(tag):
            return self.text(tag)
        found = re.search("[:=]", tag)
        if found is None:
            return tag
        key = tag[: found.start()].strip().lstrip("-+")
        rest = MASK if self.matches(key) else self.text(tag[found.end() :], key)
        return tag[: found.end()] + rest

    def command(self, text: str) -> str:
        """A command line: `--key value`, `--key=value`, `a.b.key=value` and JSON with secret values masked, and URLs' credentials.

        What follows an option that names a secret is masked whatever it looks like.
        """
        parts, place, is_secret = [], 0, False
        for word in _WORD.finditer(text):
            bare = _unquoted(word[0])
            parts += [text[place : word.start()], MASK if is_secret else self._argument(word[0], bare)]
            place = word.end()
            is_secret = self.announces(bare)
        return hide("".join((*parts, text[place:])))

    def announces(self, word: str) -> bool:
        """Whether the word after `word` is a secret: it is an option without a value, or ends in `key:` or `key=`."""
        if word.endswith((":", "=")):
            return self.matches(re.split(r"[\s:=]", word[:-1])[-1].lstrip("-+"))
        return word.startswith("-") and not re.search("[:=]", word) and self.matches(word.lstrip("-"))

    def tree(self, value: Any, key: str, letters: Letters, depth: int = 0, *, lines: bool = False) -> Any:
        """What JSON can hold, under `key`, with its secrets masked. `lines`: texts in it may be command lines.

        Raises TooMuchError.
        """
        if depth > _DEEPEST:
            raise TooMuchError
        if isinstance(value, dict):
            flat = {name: letters.below(key, name) for name in value}
            return {
                name: MASK if self.matches(flat[name]) else self.tree(item, flat[name], letters, depth + 1, lines=lines)
                for name, item in value.items()
            }
        if isinstance(value, list):
            return self._items(value, key, letters, depth, lines=lines)
        if not isinstance(value, str):
            return value
        shown = self.text(value, key, letters, depth)
        return self.command(value) if lines and shown == value else shown

    def _items(self, items: list[Any], key: str, letters: Letters, depth: int, *, lines: bool) -> list[Any]:
        """The items of a list, which may be the words of a command line."""
        found: list[Any] = []
        is_secret = False
        for item in items:
            shown = MASK if is_secret else self.tree(item, key, letters, depth + 1, lines=lines)
            found.append(self.tag(shown) if isinstance(shown, str) else shown)
            is_secret = isinstance(item, str) and self.announces(item)
        return found

    def _argument(self, raw: str, bare: str) -> str:
        """One word of a command line, as it stands (`raw`) and as it is meant."""
        shown = self.tag(bare)
        if shown == bare:
            secrets = (found.end() for found in _NAMED.finditer(bare) if self.matches(found[1].lstrip("-")))
            shown = next((bare[:end] + MASK for end in secrets), bare)
        if shown == bare:
            return raw
        if not shown.endswith(MASK):
            return shlex.quote(shown)
        before = shown.removesuffix(MASK)
        return (before if not before or raw.startswith(before) else shlex.quote(before)) + MASK


@lru_cache(maxsize=1 << 14)
def _remembered(key: str, globs: tuple[str, ...]) -> bool:
    return _matches(key, globs)


def _matches(key: str, globs: tuple[str, ...]) -> bool:
    folded = key.lower().replace("-", "_")
    wide, narrow = _folded(globs)
    return any(fnmatchcase(folded, glob) for glob in (*wide, *narrow)) or any(
        fnmatchcase(part, glob) for glob in narrow for part in folded.split(".")
    )


@lru_cache(maxsize=64)
def _folded(globs: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """In lower case, with `-` as `_`, but in a set of characters, where it means a range.

    First those that match a whole key wherever they match a part of it, then the others.
    """
    found: tuple[list[str], list[str]] = ([], [])
    for glob in globs:
        parts = re.split(r"(\[[^\]]*\])", glob.lower())
        folded = "".join(part if part.startswith("[") else part.replace("-", "_") for part in parts)
        found[not (folded.startswith("*") and folded.endswith("*"))].append(folded)
    return tuple(found[0]), tuple(found[1])


def _unquoted(word: str) -> str:
    """A word of a command line as the program gets it."""
    parts = []
    for piece in _PIECE.findall(word):
        if piece.startswith("'"):
            parts.append(piece[1:].removesuffix("'"))
        elif piece.startswith('"'):
            parts.append(re.sub(r'\\(["\\$`])', r"\1", piece[1:].removesuffix('"')))
        else:
            parts.append(piece.removeprefix("\\") if piece.startswith("\\") else piece)
    return "".join(parts)

"""What of a run's facts a target must hold masked: the rule of secrets, written a second time for verify.

It shares no code with what exporters mask by, so a secret that slips through there is a difference here.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from bridge.files import MOST_PARAM_LETTERS
from bridge.secrets import MASK

if TYPE_CHECKING:
    from bridge.model import Scalar

__all__ = ["Secrets"]

DEEPEST = 64
LONGEST_TYPE = 100
"""Characters of a name before a bracket, as in `Namespace(lr=1)`."""


class _BeyondBoundsError(Exception):
    """A text that nobody looks through to its end: all of it must be masked."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """Values stand masked under keys that one of `globs` matches, as a whole or in a part between dots."""

    globs: tuple[str, ...]

    def value(self, key: str, value: Scalar) -> Scalar:
        """What a target holds of the param `key`."""
        if self.hides(key):
            return MASK
        return self._within(value, key) if isinstance(value, str) else value

    def tag(self, tag: str) -> str:
        """What a target holds of a tag, or of a word in a list."""
        if _is_tree(tag):
            return self._within(tag, "")
        for place, sign in enumerate(tag):
            if sign in ":=":
                key, rest = tag[:place].strip().lstrip("-+"), tag[place + 1 :]
                return tag[: place + 1] + (MASK if self.hides(key) else self._within(rest, key))
        return tag

    def hides(self, key: str) -> bool:
        """Whether what stands under `key` is a secret; nothing stands under the empty one."""
        low = key.lower().replace("-", "_")
        for like in map(_alike, self.globs):
            if key and fnmatchcase(low, like):
                return True
            if like[:1] + like[-1:] != "**" and any(fnmatchcase(part, like) for part in low.split(".") if key):
                return True
        return False

    def _within(self, text: str, key: str) -> str:
        """A text, with what is secret in it masked where it is a list or a mapping in JSON."""
        return _Walk(self).text(text, key, 0)


class _Walk:
    """One look through a text; the keys in it have so many letters, together, and no more."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._left = MOST_PARAM_LETTERS

    def text(self, text: str, key: str, depth: int) -> str:
        """`text` as it may be shown."""
        if not _is_tree(text):
            return text
        try:
            tree = json.loads(text)
        except RecursionError:
            return MASK
        except ValueError:
            return MASK if any(self._secrets.hides(word) for word in _words_before_signs(text)) else text
        try:
            shown = self._shown(tree, key, depth + 1)
        except _BeyondBoundsError:
            return MASK
        return text if shown == tree else json.dumps(shown, ensure_ascii=False)

    def _shown(self, value: Any, key: str, depth: int) -> Any:
        if depth > DEEPEST:
            raise _BeyondBoundsError
        if isinstance(value, str):
            return self.text(value, key, depth)
        if isinstance(value, list):
            return self._list(value, key, depth)
        if not isinstance(value, dict):
            return value
        shown = {}
        for name, item in value.items():
            whole = f"{key}.{name}" if key else name
            self._left -= len(whole)
            if self._left < 0:
                raise _BeyondBoundsError
            shown[name] = MASK if self._secrets.hides(whole) else self._shown(item, whole, depth + 1)
        return shown

    def _list(self, items: list[Any], key: str, depth: int) -> list[Any]:
        shown: list[Any] = []
        for place, item in enumerate(items):
            before = items[place - 1] if place else None
            if isinstance(before, str) and self._is_followed_by_a_secret(before):
                shown.append(MASK)
            elif isinstance(item, str):
                shown.append(self._secrets.tag(self._shown(item, key, depth + 1)))
            else:
                shown.append(self._shown(item, key, depth + 1))
        return shown

    def _is_followed_by_a_secret(self, word: str) -> bool:
        """`--password`, `password:` or `password=`."""
        if word[-1:] in (":", "="):
            return self._secrets.hides(re.split(r"[\s:=]", word[:-1]).pop().lstrip("-+"))
        return word.startswith("-") and ":" not in word and "=" not in word and self._secrets.hides(word.lstrip("-"))


def _alike(glob: str) -> str:
    """In lower case, with `_` for `-`, but between brackets, where a range may stand."""
    letters, depth = [], 0
    for letter in glob.lower():
        depth = depth or int(letter == "[")
        letters.append("_" if letter == "-" and not depth else letter)
        depth = depth and int(letter != "]")
    return "".join(letters)


def _is_tree(text: str) -> bool:
    """Whether `text` begins as a list, a mapping or an object does: `[`, `{`, `(`, `<`, or one of them behind a name."""
    head = text.lstrip()[: LONGEST_TYPE + 1]
    named = re.match(r"[\w.]*", head)
    assert named is not None
    return head[named.end() : named.end() + 1] in ("[", "(", "{", "<")


def _words_before_signs(text: str) -> list[str]:
    """The words right before a `:` or a `=`, with quotes around them or not."""
    found = []
    for piece in re.split("[:=]", text)[:-1]:
        bare = piece.rstrip()
        bare = bare[:-1] if bare.endswith(("'", '"')) else bare
        found.append(re.split(r"[^\w.\-]", bare).pop())
    return found

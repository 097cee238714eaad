"""What must never be shown: the credentials in addresses, in whatever text they turn up.

`hide` is what text goes through on its way to people and targets. `hide_all` is for what others say (a driver's message, a
server's answer, a traceback): they may repeat a password by itself, so the words that were told to `keep` are hidden too.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["MASK", "bare", "hide", "hide_all", "hide_in", "hide_uri", "keep", "keep_pair", "keep_uri"]

E = TypeVar("E", bound=BaseException)

MASK = "***"

_WORD = re.compile(r"://[^\s'\"]+")
_NO_WORD = re.compile(r"[\s'\"]")
_QUERY = re.compile(r"(?i)([?&;](?:[\w.\-]*(?:password|passwd|pwd|secret|token|api_?key|credentials?))=)[^&\s;'\"#]+")

_SHORTEST = 6
"""Characters; a shorter word stands in too many texts that have nothing to do with it."""

_kept: dict[str, re.Pattern[str]] = {}


def keep(secret: str | None) -> None:
    """Hide this word from now on in this process, wherever it stands by itself in an error."""
    if secret and len(secret) >= _SHORTEST and secret not in _kept:
        _kept[secret] = re.compile(rf"(?<!\w){re.escape(secret)}(?!\w)")


def keep_pair(user: str, password: str) -> None:
    """Hide what the header of a request says of them."""
    for pair in {f"{user}:{password}".encode(code, "replace") for code in ("utf-8", "latin-1")}:
        keep(base64.b64encode(pair).decode())


def keep_uri(uri: str | None) -> None:
    """Hide the password of `uri` from now on, as it stands there and as it is meant.

    Not one that is also the name of the user, the host or the database: that is shown anyway.
    """
    uri = uri or ""
    found = _credentials_of(uri)
    words = [match[0][len(match[1]) :] for match in _QUERY.finditer(uri)]
    shown = _QUERY.sub(r"\1", bare(uri))
    if found:
        user, colon, password = uri[found[0] : found[1] - 1].partition(":")
        words.append(password if colon else user)
        keep_pair(unquote(user), unquote(password))
        shown += f" {user}" if colon else ""
    for word in words:
        for form in (word, unquote(word)):
            if form not in shown:
                keep(form)


def bare(uri: str) -> str:
    """`uri`, which is nothing else, without the credentials before its host, whatever signs are in them."""
    return _without(uri, "", [found] if (found := _credentials_of(uri)) else [])


def hide_uri(uri: str) -> str:
    """The same with MASK in their place, and in the place of those in its query."""
    found = _credentials_of(uri)
    return _QUERY.sub(rf"\1{MASK}", _without(uri, f"{MASK}@", [found] if found else []))


def hide(text: str) -> str:
    """`text` with MASK in the place of credentials in addresses."""
    return _QUERY.sub(rf"\1{MASK}", _without(text, f"{MASK}@", _credentials(text))) if "://" in text else text


def hide_all(text: str) -> str:
    """What a driver or a server said: without credentials in addresses, and without the very words that are kept."""
    text = hide(text)
    for secret, alone in _kept.items():
        if secret in text:
            text = alone.sub(MASK, text)
    return text


def hide_in(error: E) -> E:
    """Hide them in `error` and in all errors that led to it, since a traceback shows these; returns `error`."""
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


def _credentials_of(uri: str) -> tuple[int, int] | None:
    """Where the credentials of `uri` stand, whatever signs are in them, also where the scheme is missing."""
    if "://" in uri:
        return next(_credentials(_NO_WORD.sub("_", uri)), None)
    end = uri.rfind("@") + 1
    return (0, end) if end else None


def _without(text: str, instead: str, credentials: Iterable[tuple[int, int]]) -> str:
    """`text` with `instead` in the place of all `credentials`."""
    parts, place = [], 0
    for start, end in credentials:
        parts += [text[place:start], instead]
        place = end
    return "".join((*parts, text[place:]))


def _credentials(text: str) -> Iterator[tuple[int, int]]:
    """Where `user:password@` (the password may hold anything, as SQLAlchemy takes it) or `token@` begins and ends.

    Up to the last @ of the word. Takes time by the length of `text`, whatever is in it: notes of megabytes pass here.
    """
    for word in _WORD.finditer(text):
        start, stop = word.start() + 3, word.end()
        last = text.rfind("@", start, stop)
        while 2 < start <= last:
            # Neither looks further than the next `://`, which has both signs in it.
            slash = text.find("/", start, stop)
            colon = text.find(":", start, stop if slash < 0 else slash)
            ends = text.rfind("@", start, stop if slash < 0 else slash)
            if colon >= 0 and text.find("@", start, colon) < 0:
                ends = last
            if ends > start:
                yield start, ends + 1
                start = ends + 1
            start = text.find("://", start, stop) + 3

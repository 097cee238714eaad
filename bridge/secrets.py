"""What must never be shown: the credentials in addresses, in whatever text they turn up.

`hide` is what text goes through on its way to people and targets. `hide_all` is for what others say (a driver's message, a
server's answer, a traceback): they may repeat a password by itself, so the words that were told to `keep` are hidden too.
"""

from __future__ import annotations

import re
from typing import TypeVar
from urllib.parse import unquote

__all__ = ["MASK", "bare", "hide", "hide_all", "hide_in", "keep", "keep_uri"]

E = TypeVar("E", bound=BaseException)

MASK = "***"

# user:password@ (the password may hold anything, as SQLAlchemy takes it) or token@. Up to the last @ of the word.
_CREDENTIALS = re.compile(r"(?<=://)(?:[^/\s@:'\"]*:[^\s'\"]*@|[^/\s'\"]+@)")
_QUERY = re.compile(r"(?i)([?&;](?:[\w.\-]*(?:password|passwd|pwd|secret|token|api_?key|credentials?))=)[^&\s;'\"#]+")

_SHORTEST = 6
"""Characters; a shorter word stands in too many texts that have nothing to do with it."""

_kept: dict[str, re.Pattern[str]] = {}


def keep(secret: str | None) -> None:
    """Hide this word from now on in this process, wherever it stands by itself in an error."""
    if secret and len(secret) >= _SHORTEST and secret not in _kept:
        _kept[secret] = re.compile(rf"(?<!\w){re.escape(secret)}(?!\w)")


def keep_uri(uri: str | None) -> None:
    """Hide the password of `uri` from now on, as it stands there and as it is meant.

    Not one that is also the name of the user, the host or the database: that is shown anyway.
    """
    uri = uri or ""
    found = _CREDENTIALS.search(uri)
    words = [match[0][len(match[1]) :] for match in _QUERY.finditer(uri)]
    shown = _QUERY.sub(r"\1", _CREDENTIALS.sub("", uri))
    if found:
        user, colon, password = found[0][:-1].partition(":")
        words.append(password if colon else user)
        shown += f" {user}" if colon else ""
    for word in words:
        for form in (word, unquote(word)):
            if form not in shown:
                keep(form)


def bare(uri: str) -> str:
    """`uri` without the credentials before its host."""
    return _CREDENTIALS.sub("", uri)


def hide(text: str) -> str:
    """`text` with MASK in the place of credentials in addresses."""
    return _QUERY.sub(rf"\1{MASK}", _CREDENTIALS.sub(f"{MASK}@", text)) if "://" in text else text


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

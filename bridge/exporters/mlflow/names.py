"""Names within MLflow's rules: cleaned so that the map back is known, the first to appear keeps the clean one."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["KEY_LIMIT", "clean", "keys_of", "renamed", "storable"]

KEY_LIMIT = 250
"""Characters in the key of a metric, a param or a tag."""

# MLflow's own rule is [/\w.\- :]; its `$` lets a newline at the end through, which a URL does not.
_REFUSED = re.compile(r"[^/\w.\- :]")


def clean(name: str) -> str:
    """`name` as a key that MLflow takes: refused characters become `_`, and it is a plain relative path.

    A name that is taken as it is comes back unchanged. One over the limit is cut and ends in a digest of the whole.
    """
    parts = _REFUSED.sub("_", name).split("/")
    text = "/".join("_" if part in ("", ".", "..") else part for part in parts)
    if len(text) <= KEY_LIMIT:
        return text
    return f"{text[: KEY_LIMIT - 9]}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def keys_of(names: Iterable[str], rename: Mapping[str, str] | None = None) -> dict[str, str]:
    """The key of each name, in order: of two that would share a key the first keeps it, the next get `_2`, `_3`.

    Names that come later never change the key of an earlier one. `rename` says what people want a name to become.
    """
    rename = rename or {}
    keys: dict[str, str] = {}
    taken: set[str] = set()
    last: dict[str, int] = {}  # the number that a clean key had last: what is taken stays so
    for name in names:
        if name in keys:
            continue
        plain = key = clean(rename.get(name, name))
        while key in taken:
            last[plain] = last.get(plain, 1) + 1
            ending = f"_{last[plain]}"
            key = plain[: KEY_LIMIT - len(ending)] + ending
        keys[name] = key
        taken.add(key)
    return keys


def storable(text: str) -> str:
    """`text` as every database takes it: PostgreSQL has no NUL character."""
    return text.replace("\0", "\ufffd") if "\0" in text else text


def renamed(keys: Mapping[str, str]) -> dict[str, str]:
    """Those of `keys` that are not their own names."""
    return {name: key for name, key in keys.items() if name != key}

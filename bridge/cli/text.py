"""Text from users made harmless for a terminal, and numbers in words."""

from __future__ import annotations

import re

from bridge.secrets import hide

__all__ = ["counted", "plain", "plain_json"]

# C0 and C1 controls and DEL steer a terminal; U+2028/9 break lines; the bidi controls reorder what is shown;
# lone surrogates (from file names that are not UTF-8) cannot be written at all.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSAFE_BUT_LINES = re.compile(_UNSAFE.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))


def plain(text: object, *, lines: bool = False) -> str:
    r"""`text` with every control character as its escape (`\x1b`), and without credentials in addresses.

    `lines` lets newlines and tabs stand.
    """
    pattern = _UNSAFE_BUT_LINES if lines else _UNSAFE
    return pattern.sub(lambda found: _escape(found.group()), hide(str(text)))


def plain_json(text: str) -> str:
    r"""JSON `text` with what steers a terminal as JSON's own escapes (`\u009b`), and without credentials in addresses."""
    return _UNSAFE_BUT_LINES.sub(lambda found: f"\\u{ord(found.group()):04x}", hide(text))


def counted(count: int, noun: str) -> str:
    """`1 run`, `2 runs`, `12,000 runs`; the plural of `notice` is `notices`."""
    return f"{count:,} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"


def _escape(character: str) -> str:
    short = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character)
    code = ord(character)
    return short or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")

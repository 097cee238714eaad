"""What a media file truly is, by its first bytes; nothing is ever decoded here."""

from __future__ import annotations

import struct
from typing import NamedTuple

__all__ = ["HEAD", "MOST_PIXELS", "Sniffed", "sniff"]

HEAD = 1 << 16
"""Bytes that are looked at."""

MOST_PIXELS = 178_956_970
"""A picture that says it has more is not handed on: a small file can be made to fill any memory (Pillow's own bound)."""

_PICTURE_BRANDS = {b"avif": "avif", b"avis": "avif", b"heic": "heic", b"heix": "heic", b"mif1": "heic"}


class Sniffed(NamedTuple):
    """A format in lower case, whether it always is a video, and its pixels where the header says them."""

    format: str
    video: bool
    pixels: int | None = None


def sniff(head: bytes) -> Sniffed | None:
    """The format of a file that begins with `head` (HEAD bytes of it); None where it is neither picture nor video.

    An animated PNG is a `png`, as its bytes are.
    """
    return _picture(head) or _video(head)


def _picture(head: bytes) -> Sniffed | None:  # noqa: PLR0911 - one return a format
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return Sniffed("png", False, _product(head, 16, ">II"))
    if head.startswith(b"\xff\xd8\xff"):
        return Sniffed("jpeg", False, _jpeg_pixels(head))
    if head.startswith((b"GIF87a", b"GIF89a")):
        return Sniffed("gif", False, _product(head, 6, "<HH"))
    if head.startswith(b"BM") and len(head) >= 26:
        return Sniffed("bmp", False, _product(head, 18, "<ii"))
    if head.startswith((b"II*\0", b"MM\0*")):
        return Sniffed("tiff", False)
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return Sniffed("webp", False, _webp_pixels(head))
    if head[4:8] == b"ftyp" and head[8:12] in _PICTURE_BRANDS:
        return Sniffed(_PICTURE_BRANDS[head[8:12]], False)
    return None


def _video(head: bytes) -> Sniffed | None:
    if head[4:8] == b"ftyp":
        return Sniffed("mov" if head[8:12] == b"qt  " else "mp4", True)
    if head.startswith(b"\x1aE\xdf\xa3"):
        return Sniffed("webm" if b"webm" in head[:64] else "mkv", True)
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return Sniffed("avi", True)
    if head.startswith(b"OggS"):
        return Sniffed("ogv", True)
    if head.startswith((b"\0\0\1\xba", b"\0\0\1\xb3")):
        return Sniffed("mpeg", True)
    return None


def _product(head: bytes, offset: int, layout: str) -> int | None:
    try:
        width, height = struct.unpack_from(layout, head, offset)
    except struct.error:
        return None
    return abs(int(width) * int(height))


def _webp_pixels(head: bytes) -> int | None:
    kind = head[12:16]
    if kind == b"VP8X" and len(head) >= 30:
        return (int.from_bytes(head[24:27], "little") + 1) * (int.from_bytes(head[27:30], "little") + 1)
    if kind == b"VP8L" and len(head) >= 25:
        bits = int.from_bytes(head[21:25], "little")
        return ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8 ":
        return _product(head, 26, "<HH")
    return None


def _jpeg_pixels(head: bytes) -> int | None:
    """From the start-of-frame segment, if it stands in `head`."""
    place = 2
    while place + 9 <= len(head) and head[place] == 0xFF:
        marker = head[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return _product(head, place + 5, ">HH")
        place += 2 + int.from_bytes(head[place + 2 : place + 4], "big")
    return None

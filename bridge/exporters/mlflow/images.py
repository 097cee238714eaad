"""A picture as the two files that MLflow's image grid shows: one in full size, one small."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from typing import TYPE_CHECKING

from bridge.files import MOST_DECODED_PIXELS

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

__all__ = ["SMALL", "Unreadable", "full_and_small"]

SMALL = 256
"""The longer side of the small picture, in pixels, as MLflow makes it."""

_MOST_FRAMES = 2_000
_STRIP = 1 << 20
"""Pixels that are floats at once."""


class Unreadable(Exception):  # noqa: N818 - an answer for the caller to word, never shown
    """A picture that cannot be decoded, or not within bounds; `str()` says why."""


def full_and_small(data: bytes, form: str) -> tuple[str, bytes, bytes]:
    """The extension and bytes of the full picture, and the small one as WebP.

    PNG and WebP are full as they are. A GIF becomes a lossless WebP that moves; what else Pillow reads a PNG. Raises
    Unreadable.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oddities of single pictures; what cannot be read raises
            with Image.open(io.BytesIO(data)) as picture:
                frames = _frames(picture)
                pixels = max(math.prod(picture.size), math.prod(_small_size(picture))) * frames
                if pixels > MOST_DECODED_PIXELS or frames > _MOST_FRAMES:
                    raise Unreadable(f"{picture.width} x {picture.height}, {frames} frames: too large to be decoded")
                small = _encoded(picture, _sized, lossless=max(picture.size) <= SMALL)
                if form in ("png", "webp"):
                    return form, data, small
                if frames > 1:
                    return "webp", _encoded(picture, lambda frame: frame.copy(), lossless=True), small
                full = io.BytesIO()
                _plain(picture).save(full, "PNG")
                return "png", full.getvalue(), small
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        raise Unreadable(str(error)[:200]) from error
    except Image.DecompressionBombError as error:
        raise Unreadable("too many pixels") from error


def _frames(picture: Image) -> int:
    """How many frames there are, at most one more than _MOST_FRAMES where they have to be looked for."""
    if picture.format != "TIFF":
        return int(getattr(picture, "n_frames", 1))
    # Pillow looks for each page of a TIFF among all those before, so a file of megabytes would take it hours.
    pages = 0
    with contextlib.suppress(EOFError):
        while pages <= _MOST_FRAMES:
            picture.seek(pages)
            pages += 1
    picture.seek(0)
    return pages


def _encoded(picture: Image, change: Callable[[Image], Image], *, lossless: bool) -> bytes:
    """`picture`, moving if it does, as WebP."""
    from PIL import ImageSequence

    frames, durations = [], []
    for frame in ImageSequence.Iterator(picture):
        frames.append(change(_plain(frame)))
        durations.append(int(frame.info.get("duration") or 100))
    picture.seek(0)
    encoded = io.BytesIO()
    if len(frames) == 1:
        frames[0].save(encoded, "WEBP", lossless=lossless, quality=80)
    else:
        frames[0].save(
            encoded,
            "WEBP",
            save_all=True,
            append_images=frames[1:],
            duration=durations,
            loop=0,
            lossless=lossless,
            quality=80,
            method=0,
        )
    return encoded.getvalue()


def _sized(frame: Image) -> Image:
    """`frame` with SMALL pixels on its longer side, as MLflow makes it; a smaller one keeps its pixels visible."""
    from PIL import Image as Pillow

    method = Pillow.Resampling.BOX if max(frame.size) > SMALL else Pillow.Resampling.NEAREST
    return frame.resize(_small_size(frame), method)


def _small_size(frame: Image) -> tuple[int, int]:
    width, height = (max(1, side * SMALL // max(frame.size)) for side in frame.size)
    return width, height


def _plain(frame: Image) -> Image:
    """`frame` in 8 bits a channel, itself where it is so; greys of more bits are stretched over what they use."""
    if frame.mode in ("L", "RGB", "RGBA"):
        return frame
    if frame.mode.startswith("I") or frame.mode == "F":
        return _stretched(frame)
    has_alpha = "A" in frame.mode or "transparency" in frame.info
    return frame.convert("RGBA" if has_alpha else "RGB")


def _stretched(frame: Image) -> Image:
    """A picture of greys in 8 bits, from black for the least to white for the greatest."""
    import numpy as np
    from PIL import Image

    width, height = frame.size
    # In strips, since a float for each pixel of a large picture would fill the memory.
    rows = max(1, _STRIP // width)
    tops = range(0, height, rows)

    def strip(top: int) -> NDArray[np.float64]:
        return np.asarray(frame.crop((0, top, width, min(top + rows, height))), dtype=np.float64)

    low = float(np.nanmin([np.nanmin(strip(top)) for top in tops]))
    high = float(np.nanmax([np.nanmax(strip(top)) for top in tops]))
    grey = Image.new("L", frame.size)
    for top in tops if high > low else ():
        scaled = (strip(top) - low) / (high - low) * 255.0
        grey.paste(Image.fromarray(np.nan_to_num(scaled).astype(np.uint8), "L"), (0, top))
    return grey

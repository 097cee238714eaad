"""A picture as the two files that MLflow's image grid shows: one in full size, one small."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

__all__ = ["SMALL", "Unreadable", "full_and_small"]

SMALL = 256
"""The longer side of the small picture, in pixels, as MLflow makes it."""

_MOST_PIXELS = 64_000_000
"""Of all frames together; decoding more would take gigabytes."""

_MOST_FRAMES = 2_000


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
                frames = getattr(picture, "n_frames", 1)
                pixels = picture.width * picture.height * min(frames, _MOST_FRAMES)
                if pixels > _MOST_PIXELS or frames > _MOST_FRAMES:
                    raise Unreadable(f"{picture.width} x {picture.height}, {frames} frames: too large to be decoded")
                small = _encoded(picture, _sized, lossless=max(picture.size) <= SMALL)
                if form in ("png", "webp"):
                    return form, data, small
                if frames > 1:
                    return "webp", _encoded(picture, lambda frame: frame, lossless=True), small
                full = io.BytesIO()
                _plain(picture).save(full, "PNG")
                return "png", full.getvalue(), small
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        raise Unreadable(str(error)[:200]) from error
    except Image.DecompressionBombError as error:
        raise Unreadable("too many pixels") from error


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

    longer = max(frame.size)
    width, height = (max(1, side * SMALL // longer) for side in frame.size)
    return frame.resize((width, height), Pillow.Resampling.BOX if longer > SMALL else Pillow.Resampling.NEAREST)


def _plain(frame: Image) -> Image:
    """`frame` in 8 bits a channel; greys of more bits are stretched over what they use."""
    from PIL import Image

    if frame.mode in ("L", "RGB", "RGBA"):
        return frame.copy()
    if frame.mode.startswith("I") or frame.mode == "F":
        import numpy as np

        values = np.asarray(frame, dtype=np.float64)
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        scaled = (values - low) / (high - low) * 255.0 if high > low else np.zeros_like(values)
        return Image.fromarray(np.nan_to_num(scaled).astype(np.uint8), "L")
    has_alpha = "A" in frame.mode or "transparency" in frame.info
    return frame.convert("RGBA" if has_alpha else "RGB")

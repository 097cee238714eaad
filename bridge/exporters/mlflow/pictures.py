"""Make the two files of a picture that MLflow's image grid shows: the full picture, and a small one as WebP.

MLflow's own client makes the same two of each image that is logged.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from bridge.files import BROKEN_PICTURE, MOST_DECODED_PIXELS, open_file, why_broken
from bridge.model import MediaType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from bridge.model import MediaEvent, RunFile

SMALL = 256
"""The longer side of the small picture in pixels, as MLflow makes it."""

LARGEST_PICTURE = 64 << 20
"""Bytes. A larger picture is a plain artifact."""

_MOST_FRAMES = 2_000
_LONGEST_WEBP = 16_383
"""Pixels of the longest side that a WebP can have."""

_DECODED = ("PNG", "JPEG", "GIF", "WEBP", "BMP")
"""What is shown in the grid. A picture in another format is kept as a file, as in TensorBoard."""


_KEPT = ("png", "webp")
"""The formats whose pictures are shown as they are."""


class UnreadablePictureError(Exception):
    """A picture that cannot be decoded, or not within the limits. `str()` says why."""


def full_and_small(data: bytes, form: str) -> tuple[str, bytes, bytes]:
    """Return the extension and bytes of the full picture, and the small one as WebP.

    PNG and WebP stay as they are. A moving GIF becomes a lossless moving WebP, anything else that Pillow reads a PNG.
    Raise UnreadablePictureError.
    """
    from PIL import Image

    with _opened(data) as (picture, frames):
        try:
            small = _webp(picture, _resized, lossless=max(picture.size) <= SMALL)
        except BROKEN_PICTURE:
            if picture.format != "PNG":
                raise
            # Its checksums are right, its pixels are not. A browser shows those above the fault.
            small = _webp(Image.new("L", _small_size(picture), 128), lambda frame: frame, lossless=True)
        extension, is_kept = _extension(picture, frames, form)
        if is_kept:
            return extension, data, small
        if extension == "webp":
            return extension, _webp(picture, lambda frame: frame.copy(), lossless=True), small
        full = io.BytesIO()
        _eight_bits(picture).save(full, "PNG")
        return extension, full.getvalue(), small


def picture_extension(file: RunFile, form: str) -> str | None:
    """Return the extension that `full_and_small` gives, None where it raises or the file is gone."""
    try:
        return _known_extension(file, form)
    except FileNotFoundError:
        return None
    except OSError:  # the file server fails for a moment, so the picture counts as whole until it is asked for
        return form if form in _KEPT else "png"


@lru_cache(1 << 16)  # a run that grows has each picture looked at once
def _known_extension(file: RunFile, form: str) -> str | None:
    with open_file(file) as source:
        data = source.read(LARGEST_PICTURE + 1)
    if len(data) <= LARGEST_PICTURE:
        with contextlib.suppress(UnreadablePictureError), _opened(data) as (picture, frames):
            return _extension(picture, frames, form)[0]
    return None


def _extension(picture: Image, frames: int, form: str) -> tuple[str, bool]:
    """Return the extension of the full picture, and if that is the file as it is."""
    if form in _KEPT or picture.format == "PNG":
        return form if form == "webp" else "png", True
    return "webp" if frames > 1 else "png", False


def has_picture(events: Iterable[MediaEvent]) -> bool:
    """Return True if any of `events` is shown in the image grid."""
    return any(
        event.type is MediaType.IMAGE and picture_extension(event.file, event.format) is not None for event in events
    )


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[tuple[Image, int]]:
    """Open a picture that can be shown for the block, with its number of frames.

    Few formats must be decoded to know that: of a PNG, which most pictures are, the checksums say that it is whole.
    Raise UnreadablePictureError if it is too large or cannot be decoded, also for what Pillow raises in the block.
    """
    from PIL import Image, ImageSequence

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oddities of single pictures; an unreadable one raises
            picture = Image.open(io.BytesIO(data), formats=_DECODED)
            frames = int(getattr(picture, "n_frames", 1))
            pixels = max(math.prod(picture.size), math.prod(_small_size(picture))) * frames
            edge = max(picture.size) if frames > 1 else 0
            if pixels > MOST_DECODED_PIXELS or frames > _MOST_FRAMES or edge > _LONGEST_WEBP:
                size = f"{picture.width} x {picture.height}, {frames} frames"
                raise UnreadablePictureError(f"{size}: too large to be decoded")
            if picture.format == "PNG":
                picture.verify()  # after that it must be opened again
                picture = Image.open(io.BytesIO(data))
            else:
                for frame in ImageSequence.Iterator(picture):
                    frame.load()
                picture.seek(0)
            yield picture, frames
    except BROKEN_PICTURE as error:
        raise UnreadablePictureError(why_broken(error)) from error
    except Image.DecompressionBombError as error:
        raise UnreadablePictureError("too many pixels") from error


_MOST_APART = 24.0
"""The mean difference of the channels, in 0 to 255, up to which a lossy small picture shows the full one."""


def is_preview_of(small: Path, full: Path) -> bool:
    """Return whether `small` holds the first frame of `full`, made small as here, or `full` is unreadable."""
    import numpy as np

    found, expected = _first_frame(small), _first_frame(full, _resized)
    if found is None or expected is None:
        return expected is None
    # Red, green and blue times alpha of both pictures, (height, width, 3) in 0 to 255: WebP may change the colour of
    # what is transparent.
    colours = [frame[..., :3] * (frame[..., 3:] / 255.0) for frame in (found, expected)]
    return found.shape == expected.shape and float(np.abs(colours[0] - colours[1]).mean()) <= _MOST_APART


def _first_frame(file: Path, change: Callable[[Image], Image] = lambda frame: frame) -> NDArray[np.float64] | None:
    """Return the channels of a picture, (height, width, 4) in 0 to 255, None if it cannot be decoded."""
    import numpy as np

    try:
        with _opened(file.read_bytes()) as (picture, _):
            return np.asarray(change(_eight_bits(picture)).convert("RGBA"), dtype=np.float64)
    except UnreadablePictureError:
        return None


def _webp(picture: Image, change: Callable[[Image], Image], *, lossless: bool) -> bytes:
    """Return `picture` as WebP, a moving one with all its frames."""
    from PIL import ImageSequence

    frames, durations = [], []
    for frame in ImageSequence.Iterator(picture):
        frames.append(change(_eight_bits(frame)))
        durations.append(int(frame.info.get("duration") or 100))
    picture.seek(0)
    options: dict[str, Any] = {"lossless": lossless, "quality": 80}
    if len(frames) > 1:
        options |= {"save_all": True, "append_images": frames[1:], "duration": durations, "loop": 0, "method": 0}
    encoded = io.BytesIO()
    frames[0].save(encoded, "WEBP", **options)
    return encoded.getvalue()


def _resized(frame: Image) -> Image:
    """Return `frame` with SMALL pixels on its longer side, as MLflow makes it. Enlarged pixels stay sharp."""
    from PIL import Image as Pillow

    method = Pillow.Resampling.BOX if max(frame.size) > SMALL else Pillow.Resampling.NEAREST
    return frame.resize(_small_size(frame), method)


def _small_size(frame: Image) -> tuple[int, int]:
    width, height = (max(1, side * SMALL // max(frame.size)) for side in frame.size)
    return width, height


def _eight_bits(frame: Image) -> Image:
    """Return `frame` in 8 bits a channel. Greys of 16 bits are stretched from their least to their greatest value."""
    if frame.mode.startswith("I"):
        grey = frame.convert("I")
        extrema: Any = grey.getextrema()
        low, high = extrema
        scale = 255.0 / max(high - low, 1)
        return grey.point(lambda value: value * scale - low * scale).convert("L")
    if frame.mode in ("L", "RGB", "RGBA"):
        return frame
    has_alpha = "A" in frame.mode or "transparency" in frame.info
    return frame.convert("RGBA" if has_alpha else "RGB")

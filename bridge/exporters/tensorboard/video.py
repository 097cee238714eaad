"""Videos as GIFs, which is all that moves in TensorBoard. Needs the extra `video` (PyAV)."""

from __future__ import annotations

import io
import itertools
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from bridge.exporters.tensorboard.pictures import Picture
from bridge.files import open_plain
from bridge.model import Notice, NoticeKind

if TYPE_CHECKING:
    from PIL.Image import Image

    from bridge.model import MediaEvent

__all__ = ["gif_of"]

_EDGE = 480
_FRAMES = 240
_DECODED = 20_000
"""Frames that are decoded at most: a file of a few bytes can promise any number."""

_PIXELS = 4_000_000_000
"""Pixels that are decoded at most: two thousand frames of a large screen."""

_LARGEST_FRAME = 9_000_000
"""Pixels of a frame: 4K. A decoder keeps up to sixteen of them, so that a file of kilobytes could fill gigabytes."""

_LIMITS = {"max_pixels": str(_LARGEST_FRAME)}
"""For FFmpeg itself, which finds out about the size, or about another one in the middle, while it decodes."""

_MOST_STREAMS = 1000
"""As many as FFmpeg looks at."""

_SLOWEST = 0.1
"""Frames a second; a GIF's pauses are not long enough for fewer of them."""


def gif_of(event: MediaEvent) -> Picture | Notice:
    """The video as a GIF of at most 480 pixels an edge and 240 frames; frames that are left out are a notice.

    Raises OSError or ValueError for a file that PyAV cannot read.
    """
    import av

    what = f"{event.tag}: {event.path}"
    limits: Any = [_LIMITS] * _MOST_STREAMS  # PyAV says that these were texts; they are options by name
    # An open file, not a path: nothing that the file says can make the decoder open another one.
    with open_plain(event.file.path) as file, av.open(file, "r", stream_options=limits) as container:
        if not container.streams.video:
            raise ValueError("it has no video stream")
        stream = container.streams.video[0]
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > _LARGEST_FRAME:
            return Notice(NoticeKind.TOO_LARGE, what, f"frames of {width} x {height} pixels")
        rate = Fraction(min(max(event.fps, _SLOWEST), 1000)) if event.fps else stream.average_rate or Fraction(10)
        bound = max(1, min(_DECODED, _PIXELS // max(width * height, 1)))
        stride = max(1, -(-min(_frame_count(container, stream), bound) // _FRAMES))
        chosen: list[Image] = []
        total = 0
        stream.thread_type = "NONE"
        stream.codec_context.options = _LIMITS
        for frame in itertools.islice(container.decode(stream), bound):
            if total % stride == 0 and len(chosen) < _FRAMES:
                chosen.append(_small(frame))
            total += 1
    if not chosen:
        raise ValueError("it has no frames")
    buffer = io.BytesIO()
    # GIFs count in hundredths of a second, and browsers slow down what is faster than two of them.
    pause = max(20, round(1000 * stride / rate / 10) * 10)
    chosen[0].save(buffer, format="GIF", save_all=True, append_images=chosen[1:], duration=pause, loop=0)
    whole = f"its {total}" if total < bound else f"its first {total}"
    cut = Notice(NoticeKind.CUT, what, f"a GIF of {len(chosen)} of {whole} frames")
    return Picture(buffer.getvalue(), chosen[0].size, (cut,) if total > len(chosen) or total == bound else ())


def _frame_count(container: Any, stream: Any) -> int:
    """How many frames there are, as far as the file says."""
    if stream.frames:
        return int(stream.frames)
    if container.duration and stream.average_rate:
        return int(container.duration / 1_000_000 * stream.average_rate)
    return 0


def _small(frame: Any) -> Image:
    scale = min(1.0, _EDGE / max(frame.width, frame.height))
    width, height = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
    image: Image = frame.reformat(width=width, height=height, format="rgb24").to_image()
    return image

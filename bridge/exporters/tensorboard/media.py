"""Encode pictures, videos and captions as TensorBoard can show them.

A picture goes into the media file as it is. A video becomes a GIF, which is all that moves in TensorBoard, if PyAV (the
extra `video`) is installed. Each record holds one value.

Each picture carries its caption as its description. The IMAGES page shows one description per tag, that of the first
record.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import sys
import warnings
from fractions import Fraction
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from bridge.exporters.tensorboard import events
from bridge.exporters.tensorboard.facts import caption_tag, free_tag, image_tag, plain
from bridge.files import BROKEN_PICTURE, open_file, open_plain, why_broken
from bridge.model import MediaType, Notice, NoticeKind
from logger.files import VIDEO_FORMATS

if TYPE_CHECKING:
    from collections.abc import Collection

    from PIL.Image import Image

    from bridge.model import MediaEvent

KEPT_FORMATS = frozenset({"png", "jpeg", "gif", "webp", "bmp"})
"""The formats that TensorBoard's page shows as they are."""

_HEAD_BYTES = 2**20
"""Of a picture in an event file so much is read for a list: its header, and whatever a camera writes before it."""

MAX_FILE_BYTES = 64 * 2**20
MAX_PICTURE_PIXELS = 100_000_000

GIF_EDGE = 480
GIF_FRAMES = 240
MAX_DECODED_FRAMES = 20_000
"""A file of a few bytes can promise any number of frames."""

MAX_DECODED_PIXELS = 4_000_000_000
"""As many as two thousand frames of a large screen have."""

MAX_FRAME_PIXELS = 9_000_000
"""4K. A decoder keeps up to sixteen frames, so a file of kilobytes could fill gigabytes."""

MAX_STREAMS = 1000
"""As many as FFmpeg looks at."""

MIN_FRAME_RATE = 0.1
"""Frames per second; a GIF's pauses are not long enough for fewer."""


class EncodedImage(msgspec.Struct, frozen=True):
    """The bytes of a picture, its width and height in pixels, and what could not be carried over."""

    data: bytes
    size: tuple[int, int]
    notices: tuple[Notice, ...] = ()


def can_convert() -> bool:
    """Return whether PyAV is installed."""
    return find_spec("av") is not None


def encode_media(event: MediaEvent, metrics: Collection[str]) -> tuple[dict[str, bytes], tuple[Notice, ...]]:
    """Return the record of the picture of `event` and that of its caption, by tag; or none, and why it is not shown.

    `metrics` are the tags of metrics.
    """
    image = load_image(event)
    if isinstance(image, Notice):
        return {}, (image,)
    caption = plain(event.caption or "")
    tag = free_tag(image_tag(event.tag, event.index), metrics, "image")
    values = [(tag, events.image_value(tag, image.data, size=image.size, description=caption))]
    if caption:
        tag = free_tag(caption_tag(event.tag, event.index), metrics, "text")
        values.append((tag, events.text_value(tag, caption)))
    records = {tag: events.record_of([value], step=event.step, time=event.time) for tag, value in values}
    return records, image.notices


def load_image(event: MediaEvent, *, look: bool = False) -> EncodedImage | Notice:
    """Return the picture that TensorBoard shows for `event`, or the notice that says why there is none.

    Only the header of a picture is decoded. With `look`, read only this header, or the first frame of a video, and
    return no data: a list of pictures needs no more.
    """
    refusal = _refuse(event)
    if refusal is not None:
        return refusal
    what = f"{event.tag}: {event.path}"
    try:
        if event.format in VIDEO_FORMATS:
            return _convert_video(event, look=look)
        with open_file(event.file, most=_HEAD_BYTES if look else sys.maxsize) as file:
            data = b"" if look else file.read(min(event.file.size, MAX_FILE_BYTES) + 1)
            size = _picture_size(file if look else io.BytesIO(data))
        if size[0] * size[1] <= MAX_PICTURE_PIXELS and len(data) <= MAX_FILE_BYTES:
            return EncodedImage(data, size)
        return Notice(NoticeKind.TOO_LARGE, what, f"{size[0]} x {size[1]} pixels would stall the browser")
    except FileNotFoundError:
        return Notice(NoticeKind.MISSING_FILE, what)
    except BROKEN_PICTURE as error:
        kind = "video" if event.type is MediaType.VIDEO else "picture"
        return Notice(NoticeKind.UNREADABLE_MEDIA, what, f"no {kind} that can be read: {why_broken(error)}")


def is_shown(event: MediaEvent) -> bool:
    """Return True if `load_image` gives a picture for `event`."""
    with contextlib.suppress(OSError):  # a server of files that fails for a moment; the next list looks again
        return _is_picture(event)
    return False


@lru_cache(1 << 16)  # a list of pictures is asked for again and again
def _is_picture(event: MediaEvent) -> bool:
    open_plain(event.file.path).close()
    return isinstance(load_image(event, look=True), EncodedImage)


def _refuse(event: MediaEvent) -> Notice | None:
    """Return why `event` cannot be shown, as far as that is known without opening its file."""
    what = f"{event.tag}: {event.path}"
    if event.format not in KEPT_FORMATS | VIDEO_FORMATS:
        return Notice(NoticeKind.NOT_SHOWABLE, what, f"TensorBoard shows no {event.format}; the file stays where it is")
    if event.format in VIDEO_FORMATS and not can_convert():
        why = f'{event.format} becomes a GIF with: pip install "registry-bridge[video]"'
        return Notice(NoticeKind.NOT_SHOWABLE, what, why)
    if event.file.size > MAX_FILE_BYTES:
        return Notice(NoticeKind.TOO_LARGE, what, f"more than {MAX_FILE_BYTES // 2**20} MiB")
    return None


def _picture_size(file: BinaryIO) -> tuple[int, int]:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(file) as image:
                return image.size
        except Image.DecompressionBombError:
            return (2**31, 2**31)


def _convert_video(event: MediaEvent, *, look: bool) -> EncodedImage | Notice:
    """Return the video as a GIF of at most GIF_EDGE pixels an edge and GIF_FRAMES frames; none for a `look`.

    A video that breaks off is shown up to there. Raise one of BROKEN_PICTURE for a file that PyAV cannot read.
    """
    import av

    what = f"{event.tag}: {event.path}"
    # FFmpeg learns the size of a frame, or another size in mid-stream, only while it decodes. So it gets the limit too.
    limits = {"max_pixels": str(MAX_FRAME_PIXELS)}
    stream_limits: Any = [limits] * MAX_STREAMS  # typed by PyAV as texts, but read as options by name
    # FFmpeg gets an open file, not a path: nothing in the file can make it open another one.
    with open_file(event.file) as file, av.open(file, "r", stream_options=stream_limits) as container:
        if not container.streams.video:
            raise ValueError("it has no video stream")
        stream = container.streams.video[0]
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > MAX_FRAME_PIXELS:
            return Notice(NoticeKind.TOO_LARGE, what, f"frames of {width} x {height} pixels")
        rate = Fraction(min(max(event.fps, MIN_FRAME_RATE), 1000)) if event.fps else stream.average_rate or Fraction(10)
        bound = 1 if look else max(1, min(MAX_DECODED_FRAMES, MAX_DECODED_PIXELS // max(width * height, 1)))
        stride = max(1, -(-min(_count_frames(container, stream), bound) // GIF_FRAMES))
        chosen: list[Image] = []
        total, broken = 0, ""
        stream.thread_type = "NONE"
        stream.codec_context.options = limits
        try:
            for frame in itertools.islice(container.decode(stream), bound):
                if total % stride == 0 and len(chosen) < GIF_FRAMES:
                    chosen.append(_shrink(frame))
                total += 1
        except BROKEN_PICTURE as error:
            if not chosen:
                raise
            broken = f": {why_broken(error)}"
    if not chosen:
        raise ValueError("it has no frames")
    if look:
        return EncodedImage(b"", chosen[0].size)
    buffer = io.BytesIO()
    # GIFs count in hundredths of a second. Browsers slow down a GIF whose pauses are shorter than two of them.
    pause = max(20, round(1000 * stride / rate / 10) * 10)
    chosen[0].save(buffer, format="GIF", save_all=True, append_images=chosen[1:], duration=pause, loop=0)
    whole = f"its {total}" if total < bound and not broken else f"its first {total}"
    thinned = Notice(NoticeKind.CUT, what, f"a GIF of {len(chosen)} of {whole} frames{broken}")
    notices = (thinned,) if total > len(chosen) or total == bound or broken else ()
    return EncodedImage(buffer.getvalue(), chosen[0].size, notices)


def _count_frames(container: Any, stream: Any) -> int:
    """Return the number of frames as far as the file says it."""
    if stream.frames:
        return int(stream.frames)
    if container.duration and stream.average_rate:
        return int(container.duration / 1_000_000 * stream.average_rate)
    return 0


def _shrink(frame: Any) -> Image:
    scale = min(1.0, GIF_EDGE / max(frame.width, frame.height))
    width, height = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
    image: Image = frame.reformat(width=width, height=height, format="rgb24").to_image()
    return image

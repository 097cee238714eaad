"""Pictures and videos as TensorBoard can show them: files as they are, where a browser can; videos as GIFs."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from bridge.files import BROKEN_PICTURE, read_plain
from bridge.model import MediaType, Notice, NoticeKind

if TYPE_CHECKING:
    from bridge.model import MediaEvent

__all__ = ["CONVERTED", "KEPT", "Picture", "can_convert", "picture_of"]

KEPT = frozenset({"png", "jpeg", "gif", "webp", "bmp"})
"""The formats whose files TensorBoard's page shows as they are."""

CONVERTED = frozenset({"mp4", "webm", "mov", "mkv", "avi", "ogv", "mpeg", "m4v"})
"""The formats that become a GIF where PyAV is installed."""

_LARGEST_FILE = 64 * 2**20
_LARGEST_PICTURE = 100_000_000


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture with its width and height in pixels, and what was lost on the way."""

    data: bytes
    size: tuple[int, int]
    notices: tuple[Notice, ...] = ()


def can_convert() -> bool:
    """Whether PyAV is installed."""
    return find_spec("av") is not None


def _unsupported(event: MediaEvent) -> Notice | None:
    """Return why `event` cannot be shown, as far as that is known without opening its file."""
    what = f"{event.tag}: {event.path}"
    if event.format not in KEPT | CONVERTED:
        return Notice(NoticeKind.NOT_SHOWABLE, what, f"TensorBoard shows no {event.format}; the file stays where it is")
    if event.format in CONVERTED and not can_convert():
        why = f'{event.format} becomes a GIF with: pip install "registry-bridge[video]"'
        return Notice(NoticeKind.NOT_SHOWABLE, what, why)
    if event.file.size > _LARGEST_FILE:
        return Notice(NoticeKind.TOO_LARGE, what, f"more than {_LARGEST_FILE // 2**20} MiB")
    return None


def picture_of(event: MediaEvent) -> Picture | Notice:
    """The picture to show for `event`, or why there is none. Only headers are read of what is shown as it is."""
    notice = _unsupported(event)
    if notice is not None:
        return notice
    what = f"{event.tag}: {event.path}"
    try:
        if event.format in CONVERTED:
            from bridge.exporters.tensorboard.video import gif_of

            return gif_of(event)
        data = read_plain(event.file.path, limit=_LARGEST_FILE)
        size = _size_of(data)
        if size[0] * size[1] <= _LARGEST_PICTURE and len(data) <= _LARGEST_FILE:
            return Picture(data, size)
        return Notice(NoticeKind.TOO_LARGE, what, f"{size[0]} x {size[1]} pixels would stall the browser")
    except FileNotFoundError:
        return Notice(NoticeKind.MISSING_FILE, what)
    except BROKEN_PICTURE as error:
        kind = "video" if event.type is MediaType.VIDEO else "picture"
        return Notice(NoticeKind.UNREADABLE_MEDIA, what, f"no {kind} that can be read: {error}")


def _size_of(data: bytes) -> tuple[int, int]:
    """Width and height from the picture's header; nothing is decoded."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data)) as image:
                return image.size
        except Image.DecompressionBombError:
            return (2**31, 2**31)

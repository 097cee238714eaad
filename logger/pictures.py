"""Images and videos of any kind as the bytes of a file: arrays, tensors, PIL, figures, paths, bytes."""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

__all__ = ["Encoded", "MediaError", "encode_image", "encode_video", "single_images"]

_CHANNELS = (1, 3, 4)
_DEFAULT_FPS = 4.0
_CODECS = {"mp4": "libx264", "webm": "libvpx-vp9"}
_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
"""The modes of PIL that PNG can hold as they are."""

_SIGNATURES = (
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (0, b"\xff\xd8\xff", "jpg"),
    (0, b"GIF8", "gif"),
    (8, b"WEBP", "webp"),
    (0, b"BM", "bmp"),
    (0, b"II*\x00", "tiff"),
    (0, b"MM\x00*", "tiff"),
    (4, b"ftypqt", "mov"),
    (4, b"ftyp", "mp4"),
    (0, b"\x1aE\xdf\xa3", "webm"),
    (8, b"AVI ", "avi"),
    (0, b"OggS", "ogv"),
)


class MediaError(ValueError):
    """An item cannot be stored; says why."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """An item as the bytes of a file, or the path of a file to copy, with the ending that suits it."""

    ending: str
    data: bytes | None = None
    source: Path | None = None
    fps: float | None = None


def single_images(images: object) -> list[Any]:
    """`images` as a list: a sequence as it is, a batch (an array or tensor of four dimensions) taken apart, else the one item."""
    if isinstance(images, list | tuple):
        return list(images)
    if getattr(images, "ndim", 0) == 4:
        return list(images)  # type: ignore[call-overload, no-any-return]
    return [images]


def encode_image(item: Any) -> Encoded:
    """An image of any kind. Files and bytes keep their format; what is drawn here becomes PNG.

    Arrays are HW, HWC or CHW with 1, 3 or 4 channels; uint8, bool, whole numbers from 0 to 255, or floats in [0, 1] (what lies
    outside is clipped, with a warning; NaN is black). Raises MediaError for anything else.
    """
    stored = _stored(item)
    if stored is not None:
        return stored
    if hasattr(item, "savefig"):
        drawn = io.BytesIO()
        item.savefig(drawn, format="png")
        return Encoded("png", drawn.getvalue())
    if hasattr(item, "save") and hasattr(item, "getbands"):
        return _pil(item)
    from PIL import Image

    array = _pixels(_array(item))
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    return _png(Image.fromarray(_channels_last(array, channels_first=hasattr(item, "detach"))))


def encode_video(item: Any, *, fps: float | None, format: str | None) -> Encoded:  # noqa: A002 - WandbLogger's name
    """A video of any kind. Files and bytes keep their format; arrays become an animated GIF.

    Arrays are (time, channels, height, width), or channels last. With `format` "mp4" or "webm" they become that, where the package
    av is installed. Raises MediaError for anything else.
    """
    stored = _stored(item, format=format)
    if stored is not None:
        return Encoded(stored.ending, stored.data, stored.source, fps)
    array = _pixels(_array(item))
    if array.ndim == 5 and array.shape[0] == 1:
        array = array[0]
    if array.ndim not in (3, 4) or len(array) == 0:
        raise MediaError(
            f"a video has the dimensions time, channels, height, width; this one has the shape {array.shape}"
        )
    frames = [_channels_last(frame, channels_first=True) for frame in array]
    rate = float(fps) if fps else _DEFAULT_FPS
    if format in _CODECS:
        return Encoded(format, _film(frames, rate, format), fps=rate)
    return Encoded("gif", _gif(frames, rate), fps=rate)


def _stored(item: Any, *, format: str | None = None) -> Encoded | None:  # noqa: A002
    """An item that is a file already: a path, bytes, or something to read bytes from."""
    if isinstance(item, str | os.PathLike):
        path = Path(item)
        if not path.is_file():
            raise MediaError(f"there is no file {path}")
        with path.open("rb") as file:
            head = file.read(16)
        return Encoded(path.suffix.lstrip(".").lower() or _sniff(head) or "bin", source=path)
    if isinstance(item, bytes | bytearray | memoryview):
        data = bytes(item)
    elif hasattr(item, "read"):
        data = item.read()
    else:
        return None
    ending = _sniff(data) or (format or "").lstrip(".").lower()
    if not data or not ending:
        raise MediaError("these bytes are of no format that is known" if data else "there are no bytes")
    return Encoded(ending, data)


def _sniff(head: bytes) -> str | None:
    for at, signature, ending in _SIGNATURES:
        if head[at : at + len(signature)] == signature:
            return ending
    return None


def _pil(image: Image) -> Encoded:
    if getattr(image, "is_animated", False) and image.format in ("GIF", "WEBP", "PNG"):
        drawn = io.BytesIO()
        image.save(drawn, format=image.format, save_all=True)
        return Encoded(image.format.lower(), drawn.getvalue())
    if image.mode in ("F", "I"):
        from PIL import Image as Images

        array = np.asarray(image)
        if array.dtype.kind != "f" and 255 < array.max() <= 65535 and array.min() >= 0:
            return _png(Images.fromarray(array.astype(np.uint16)))
        return _png(Images.fromarray(_pixels(array)))
    return _png(image if image.mode in _MODES else image.convert("RGBA" if "A" in image.getbands() else "RGB"))


def _png(image: Image) -> Encoded:
    drawn = io.BytesIO()
    image.save(drawn, format="PNG")
    return Encoded("png", drawn.getvalue())


def _array(item: Any) -> NDArray[Any]:
    """A tensor, array or nested list as an array of numbers."""
    if hasattr(item, "detach"):
        item = item.detach().cpu()
        item = item.float() if item.is_floating_point() else item
        array = item.numpy()
    else:
        array = np.asarray(item)
    if array.dtype.kind not in "buif" or array.size == 0:
        raise MediaError(f"{type(item).__name__} of shape {array.shape} and type {array.dtype} holds no picture")
    return np.asarray(array)


def _pixels(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "f":
        clean = np.nan_to_num(array.astype(np.float64), nan=0.0, posinf=1.0, neginf=0.0)
        low, high = float(clean.min()), float(clean.max())
        if low < -1e-6 or high > 1 + 1e-6:
            warnings.warn(
                f"Pixels are clipped to [0, 1]; they go from {low:g} to {high:g}. Scale them, or log uint8.",
                stacklevel=2,
            )
        scaled: NDArray[np.uint8] = np.rint(clean.clip(0.0, 1.0) * 255).astype(np.uint8)
        return scaled
    if int(array.min()) < 0 or int(array.max()) > 255:
        raise MediaError(
            f"whole numbers must lie in 0 to 255 (0 to 65535 in a PIL image of mode I); these go from {array.min()} to {array.max()}"
        )
    return array.astype(np.uint8)


def _channels_last(array: NDArray[np.uint8], *, channels_first: bool) -> NDArray[np.uint8]:
    """HW, HWC or CHW as HW, or HWC with 3 or 4 channels. Where both could be meant, `channels_first` decides."""
    if array.ndim == 2:
        return np.ascontiguousarray(array)
    if array.ndim != 3 or not (array.shape[0] in _CHANNELS or array.shape[2] in _CHANNELS):
        raise MediaError(f"an image is HW, HWC or CHW with 1, 3 or 4 channels; this one has the shape {array.shape}")
    first, last = array.shape[0] in _CHANNELS, array.shape[2] in _CHANNELS
    if first and (channels_first or not last):
        array = np.moveaxis(array, 0, 2)
    return np.ascontiguousarray(array[:, :, 0] if array.shape[2] == 1 else array)


def _gif(frames: list[NDArray[np.uint8]], fps: float) -> bytes:
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    drawn = io.BytesIO()
    # GIF counts in hundredths of a second; viewers take less than two of them for ten.
    duration = max(20, round(100 / fps) * 10)
    images[0].save(drawn, format="GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)
    return drawn.getvalue()


def _film(frames: list[NDArray[np.uint8]], fps: float, ending: str) -> bytes:
    try:
        import av
    except ImportError:
        raise MediaError(f'{ending} from arrays needs the package av: pip install "registry-bridge[video]"') from None
    from fractions import Fraction

    from PIL import Image

    drawn = io.BytesIO()
    height, width = (max(2, size // 2 * 2) for size in frames[0].shape[:2])  # the codecs take even sizes only
    with av.open(drawn, mode="w", format=ending) as container:
        stream: Any = container.add_stream(_CODECS[ending], rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            picture = Image.fromarray(frame).convert("RGB").crop((0, 0, width, height))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")))
        container.mux(stream.encode())
    return drawn.getvalue()

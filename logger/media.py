"""Store images and videos of any kind: encode them, and write them to the folder media and its list, media.jsonl.

Each item is a file that is never overwritten, and its line in media.jsonl follows the file. A process that is killed
before the line leaves a part of a file that no line names, never a line without its whole file.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logger.files import SNIFFED_BYTES, append_whole, sniff
from logger.values import strict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MEDIA_NAME = "media.jsonl"
MEDIA_FOLDER = "media"
_MAX_NAME_BYTES = 200
"""The longest name of a tag's folder; file systems take 255 bytes."""

_CHANNELS = (1, 3, 4)
_DEFAULT_FPS = 4.0
_CODECS = {"mp4": "libx264", "webm": "libvpx-vp9"}
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
"""Modes of PIL that PNG holds as they are."""

_FILE_NAME = re.compile(r"(-?\d+)_(\d+)\.")


class MediaError(ValueError):
    """An item cannot be stored; the message says why."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """An image or video as the bytes of a file, or as the path of a file to copy, with the ending for its name."""

    ending: str
    data: bytes = b""
    source: Path | None = None
    fps: float | None = None


class MediaWriter:
    """Stores media files below `media/`, and appends their lines to media.jsonl.

    A torn last line of media.jsonl is cut off, so that it cannot swallow the next one.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.path = run_dir / MEDIA_NAME
        self._next_index: dict[str, dict[int, int]] = {}
        if self.path.is_file():
            data = self.path.read_bytes()
            if not data.endswith(b"\n"):
                os.truncate(self.path, data.rfind(b"\n") + 1)

    def add(self, tag: str, step: int, kind: str, item: Encoded, *, caption: str | None, session: int) -> None:
        """Store `item` in a file and add its line. Raises OSError if the disk refuses."""
        folder = self.run_dir / MEDIA_FOLDER / safe_tag(tag)
        folder.parent.mkdir(exist_ok=True)  # without the run directory, which may have been removed or unmounted
        folder.mkdir(exist_ok=True)
        file = self._store(folder, step, item)
        event = {
            "step": step,
            "tag": tag,
            "type": kind,
            "path": file.relative_to(self.run_dir).as_posix(),
            "caption": caption,
            "fps": item.fps,
            "format": item.ending,
            "time": round(time.time(), 6),
            "session": session,
        }
        self._append(json.dumps(strict(event), allow_nan=False))

    def _store(self, folder: Path, step: int, item: Encoded) -> Path:
        file = self._reserve(folder, step, item.ending)
        try:
            if item.source is None:
                file.write_bytes(item.data)
            else:
                shutil.copyfile(item.source, file)
        except BaseException:
            with contextlib.suppress(OSError):
                file.unlink()
            raise
        return file

    def _reserve(self, folder: Path, step: int, ending: str) -> Path:
        """Make an empty file with the first free name of its step: another process may write here too.

        An index is used once in the folder, whatever the ending.
        """
        next_index = self._next_index.get(folder.name)
        if next_index is None:
            next_index = self._next_index[folder.name] = _next_indices(folder)
        while True:
            index = next_index.get(step, 0)
            next_index[step] = index + 1
            file = folder / f"{step:08d}_{index}.{_safe_ending(ending)}"
            with contextlib.suppress(FileExistsError):
                file.touch(exist_ok=False)
                return file

    def _append(self, line: str) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            append_whole(descriptor, (line + "\n").encode("utf-8", errors="backslashreplace"))
        finally:
            os.close(descriptor)


def safe_tag(tag: str) -> str:
    """Return the folder name for `tag`: a different one for each tag, and readable in any script.

    Letters, digits, `_`, `-`, inner dots and spaces stay, everything else becomes %XX as in a URL (`a/b` is `a%2Fb`).
    A name that would be too long is cut, and ends in a digest of the tag.
    """
    safe = re.sub(r"[^\w. -]|^[. ]|[. ]\Z", _percent, tag) or "%"
    encoded = safe.encode()
    if len(encoded) <= _MAX_NAME_BYTES:
        return safe
    digest = hashlib.sha256(tag.encode("utf-8", errors="surrogatepass")).hexdigest()[:16]
    return encoded[: _MAX_NAME_BYTES - 20].decode("utf-8", errors="ignore") + f"%~{digest}"


def _percent(letter: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in letter[0].encode("utf-8", errors="surrogatepass"))


def _safe_ending(ending: str) -> str:
    return re.sub(r"[^0-9A-Za-z]", "", ending)[:16] or "bin"


def _next_indices(folder: Path) -> dict[int, int]:
    """Return for each step the first index that no file in `folder` has."""
    following: dict[int, int] = {}
    for entry in os.scandir(folder):
        if match := _FILE_NAME.match(entry.name):
            step, index = int(match[1]), int(match[2])
            following[step] = max(following.get(step, 0), index + 1)
    return following


# Encoding


def single_images(images: object) -> list[Any]:
    """Return `images` as a list: a sequence as it is, the images of a batch (four dimensions), or the one image."""
    if isinstance(images, list | tuple):
        return list(images)
    if getattr(images, "ndim", 0) == 4:
        return list(images)  # type: ignore[call-overload, no-any-return]
    return [images]


def encode_image(item: Any, *, channels_first: bool | None = None) -> Encoded:
    """Encode an image of any kind. Files and bytes keep their format; everything else becomes a PNG.

    Arrays have the shape HW, HWC or CHW with 1, 3 or 4 channels, and hold uint8, bool, whole numbers from 0 to 255, or
    floats in [0, 1]. Floats outside are clipped with a warning; NaN is black. `channels_first` decides if a shape fits
    both orders; by default it is true for tensors. Raises MediaError for anything else.
    """
    if channels_first is None:
        channels_first = hasattr(item, "detach")
    stored = _stored(item)
    if stored is not None:
        return stored
    drawn = io.BytesIO()
    if hasattr(item, "savefig"):
        item.savefig(drawn, format="png")
        return Encoded("png", drawn.getvalue())
    if hasattr(item, "save") and hasattr(item, "getbands") and item.mode not in ("F", "I"):
        image = item
        if image.mode not in _PNG_MODES:
            image = image.convert("RGBA" if "A" in image.getbands() else "RGB")
    else:
        from PIL import Image

        array = _pixels(_array(item))
        if array.ndim == 4 and array.shape[0] == 1:
            array = array[0]
        image = Image.fromarray(_channels_last(array, channels_first=channels_first))
    image.save(drawn, format="PNG")
    return Encoded("png", drawn.getvalue())


def encode_video(item: Any, *, fps: float | None, format: str | None) -> Encoded:  # noqa: A002 - WandbLogger's name
    """Encode a video of any kind. Files and bytes keep their format; arrays become an animated GIF.

    Arrays have the shape (time, channels, height, width), or channels last. With the `format` "mp4" or "webm" they
    become that if the package av is installed. Raises MediaError for anything else.
    """
    stored = _stored(item, format=format or "bin")
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
    """Return an item that is a file already (a path, bytes, or an open file), and None for any other.

    Bytes of an unknown format are of `format`. Raises MediaError if that is None.
    """
    if isinstance(item, str | os.PathLike):
        path = Path(item)
        if not path.is_file():
            raise MediaError(f"there is no file {path}")
        with path.open("rb") as file:
            head = file.read(SNIFFED_BYTES)
        return Encoded(path.suffix.lstrip(".").lower() or _ending(head) or "bin", source=path)
    if isinstance(item, bytes | bytearray | memoryview):
        data = bytes(item)
    elif hasattr(item, "read"):
        data = item.read()
    else:
        return None
    ending = _ending(data[:SNIFFED_BYTES]) or (format or "").lstrip(".").lower()
    if not data or not ending:
        raise MediaError("these bytes are of no known format" if data else "there are no bytes")
    return Encoded(ending, data)


def _ending(head: bytes) -> str | None:
    found = sniff(head)
    return "jpg" if found == "jpeg" else found


def _array(item: Any) -> NDArray[Any]:
    """Return a tensor, array, nested list or PIL image as an array of numbers. Raises MediaError for anything else."""
    import numpy as np

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
    """Return the numbers of a picture as uint8, of the same shape.

    Raises MediaError for whole numbers beyond 0 to 255.
    """
    import numpy as np

    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "f":
        clean = np.nan_to_num(array.astype(np.float64), nan=0.0, posinf=1.0, neginf=0.0)
        low, high = float(clean.min()), float(clean.max())
        if low < -1e-6 or high > 1 + 1e-6:
            warnings.warn(
                f"Pixels are clipped to [0, 1]; they range from {low:g} to {high:g}. Scale them, or log uint8.",
                stacklevel=2,
            )
        scaled: NDArray[np.uint8] = np.rint(clean.clip(0.0, 1.0) * 255).astype(np.uint8)
        return scaled
    if int(array.min()) < 0 or int(array.max()) > 255:
        raise MediaError(f"whole numbers must lie in 0 to 255; these range from {array.min()} to {array.max()}")
    return array.astype(np.uint8)


def _channels_last(array: NDArray[np.uint8], *, channels_first: bool) -> NDArray[np.uint8]:
    """Return a picture of shape HW, HWC or CHW as HW, or as HWC with 3 or 4 channels.

    `channels_first` decides if the shape fits both orders. Raises MediaError for any other shape.
    """
    import numpy as np

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
    # GIF counts in hundredths of a second, and viewers show fewer than two of them as ten.
    duration = max(20, round(100 / fps) * 10)
    images[0].save(drawn, format="GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)
    return drawn.getvalue()


def _film(frames: list[NDArray[np.uint8]], fps: float, ending: str) -> bytes:
    """Return `frames`, uint8 arrays HW or HWC of one size, as the bytes of an mp4 or webm."""
    try:
        import av
    except ImportError:
        raise MediaError(f'{ending} from arrays needs the package av: pip install "registry-bridge[video]"') from None
    from fractions import Fraction

    import numpy as np
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

"""Make small images and videos, media events for them, and lines of media.jsonl."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bridge.model import MediaEvent, MediaType
from tests.deltas import file_of
from tests.run_dirs import CREATED_S

if TYPE_CHECKING:
    from pathlib import Path


def encoded(form: str, *colours: Any, size: tuple[int, int] = (12, 8), mode: str = "RGB", **options: Any) -> bytes:
    """Return an image in one of Pillow's formats, with one frame for each colour."""
    frames = [Image.new(mode, size, one) for one in colours or ("orange",)]
    if frames[1:]:
        options |= {"save_all": True, "append_images": frames[1:], "duration": 200, "loop": 0}
    file = io.BytesIO()
    frames[0].save(file, form, **options)
    return file.getvalue()


def png(number: int = 0, *, comment: str = "") -> bytes:
    """Return a PNG of 4 x 4 pixels, another one for each number."""
    info = PngInfo()
    if comment:
        info.add_text("Comment", comment)
    return encoded("png", (number % 256, number // 256, 7), size=(4, 4), pnginfo=info)


def draw(path: Path, colour: str = "orange") -> Path:
    """Write an image of 64 x 48 pixels in the format that the name says; GIF and WebP have two more frames."""
    colours = (colour, "black", "white") if path.suffix in (".gif", ".webp") else (colour,)
    path.write_bytes(encoded({".jpg": "jpeg"}.get(path.suffix, path.suffix[1:]), *colours, size=(64, 48)))
    return path


def film(frames: int = 12, *, codec: str = "mpeg4", size: tuple[int, int] = (96, 64)) -> bytes:
    """Return an MP4 of ten frames a second that gets brighter; every PyAV has the codec `mpeg4`."""
    import av
    import numpy as np

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            shade = np.full((size[1], size[0], 3), 255 * number // frames, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def media_event(
    path: Path, data: bytes | None = None, *, tag: str = "val/samples", step: int = 0, index: int = 0, **fields: Any
) -> MediaEvent:
    """Return the event of the file at `path`, whose suffix says its format; `data` is written there first.

    Its time counts seconds from CREATED_S by step.
    """
    if data is not None:
        path.write_bytes(data)
    format_ = {"jpg": "jpeg"}.get(path.suffix[1:], path.suffix[1:])
    usual: dict[str, Any] = {
        "line": 0,
        "type": MediaType.VIDEO if format_ in ("mp4", "webm") else MediaType.IMAGE,
        "path": f"media/{path.name}",
        "file": file_of(path),
        "format": format_,
        "time": CREATED_S + step,
    }
    return MediaEvent(tag=tag, step=step, index=index, **(usual | fields))


def log_image(path: Path, step: int, name: str, data: bytes, **fields: Any) -> None:
    """Write an image as the logger does: first the file, then its line."""
    file = path / "media" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    line = {"step": step, "tag": "val/samples", "type": "image", "path": f"media/{name}"} | fields
    with (path / "media.jsonl").open("a") as lines:
        lines.write(json.dumps(line) + "\n")

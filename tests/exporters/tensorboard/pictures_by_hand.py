"""Make images and media events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from PIL import Image

from bridge.model import MediaEvent, MediaType, RunFile
from tests.run_dirs import CREATED_S

if TYPE_CHECKING:
    from pathlib import Path


def draw(path: Path, color: str = "orange", size: tuple[int, int] = (64, 48)) -> Path:
    """Return an image of one color in the format that the name says; GIF and WebP have two more frames."""
    frames = [Image.new("RGB", size, one) for one in (color, "black", "white")]
    if path.suffix in (".gif", ".webp"):
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=200, loop=0)
    else:
        frames[0].save(path)
    return path


def film(path: Path, frames: int, size: tuple[int, int] = (96, 64)) -> Path:
    """Return a video that gets brighter, in a codec that every PyAV has."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            shade = np.full((size[1], size[0], 3), 255 * number // frames, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
        container.mux(stream.encode())
    return path


def media_event(path: Path, *, tag: str = "val/samples", step: int = 0, index: int = 0, **fields: Any) -> MediaEvent:
    """Return the event of the file at `path`, whose suffix says its format.

    Its time counts seconds from CREATED_S by step.
    """
    stat = path.stat()
    format_ = {"jpg": "jpeg"}.get(path.suffix[1:], path.suffix[1:])
    usual: dict[str, Any] = {
        "line": 0,
        "type": MediaType.VIDEO if format_ in ("mp4", "webm") else MediaType.IMAGE,
        "path": f"media/{path.name}",
        "file": RunFile(path, stat.st_size, stat.st_mtime_ns),
        "format": format_,
        "time": CREATED_S + step,
    }
    return MediaEvent(tag=tag, step=step, index=index, **(usual | fields))

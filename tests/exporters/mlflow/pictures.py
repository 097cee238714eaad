"""Make small images and videos, and media events for them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from PIL import Image

from bridge.model import MediaEvent, MediaType
from tests.exporters.mlflow.by_hand import START, file_of

if TYPE_CHECKING:
    from pathlib import Path


def encoded(form: str, *, size: tuple[int, int] = (12, 8), mode: str = "RGB", colour: Any = (200, 30, 60)) -> bytes:
    """Return an image of one colour in one of Pillow's formats."""
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, form)
    return file.getvalue()


def moving_gif(*, frames: int = 3) -> bytes:
    """Return a GIF whose frames differ."""
    file = io.BytesIO()
    pictures = [Image.new("RGB", (300, 20), (80 * number, 40, 200)) for number in range(frames)]
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=200, loop=0)
    return file.getvalue()


def event_of(
    folder: Path, data: bytes, form: str, *, tag: str = "val/samples", step: int = 5, **fields: Any
) -> MediaEvent:
    """Return a media event for `data`, which is written below `folder`."""
    index = fields.get("index", 0)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{abs(hash(tag)):x}-{step}-{index}.{form}"
    path.write_bytes(data)
    defaults: dict[str, Any] = {
        "line": 0,
        "tag": tag,
        "step": step,
        "index": index,
        "type": MediaType.IMAGE,
        "path": f"media/{path.name}",
        "file": file_of(path),
        "format": form,
        "time": START + step,
    }
    return MediaEvent(**defaults | fields)


def film(*, frames: int = 10) -> bytes:
    """Return a short film that browsers play: H.264 in MP4."""
    import av
    import numpy as np

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            picture = np.full((48, 64, 3), (25 * number, 60, 120), dtype=np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return file.getvalue()

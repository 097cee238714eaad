"""Turn a plain run directory into one that would fill the memory or never end."""

from __future__ import annotations

import io
import json
import struct
import zlib
from typing import TYPE_CHECKING, Any

from tests.pictures import png
from tests.security.scene import add_media

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GIB = 1 << 30
MB = 1_000_000


def sparse(name: str, head: str = "") -> Callable[[Path], None]:
    """Write a file of a gibibyte of NUL characters after `head`."""

    def harm(run: Path) -> None:
        (run / name).write_text(head)
        with (run / name).open("r+b") as file:
            file.truncate(GIB)

    return harm


def content(name: str, *pieces: str, append: bool = False) -> Callable[[Path], None]:
    """Write a file of these pieces."""

    def harm(run: Path) -> None:
        with (run / name).open("a" if append else "w", newline="") as file:
            file.writelines(pieces)

    return harm


def sidecar(**fields: Any) -> Callable[[Path], None]:
    """Write a sidecar with these fields; a text that begins with `json:` is inserted as JSON."""

    def harm(run: Path) -> None:
        facts = json.loads((run / "sidecar.json").read_text()) | fields
        text = json.dumps(facts)
        for value in fields.values():
            if isinstance(value, str) and value.startswith("json:"):
                text = text.replace(json.dumps(value), value.removeprefix("json:"))
        (run / "sidecar.json").write_text(text)

    return harm


def params_in_yaml(text: str) -> Callable[[Path], None]:
    """Write hparams.yaml, and a sidecar without hparams, so that the file is read."""

    def harm(run: Path) -> None:
        sidecar(hparams={})(run)
        (run / "hparams.yaml").write_text(text)

    return harm


def picture(data: Callable[[], bytes]) -> Callable[[Path], None]:
    """Write an image of these bytes, named in the second line of media.jsonl."""

    def harm(run: Path) -> None:
        (run / "media" / "x.png").write_bytes(data())
        add_media(run, "media/x.png")

    return harm


def huge_png(side: int, *, bits: int = 1, kind: int = 0) -> bytes:
    """Return a square PNG with all its pixels, which are zeros and compress to little.

    `kind` 0 is grey, 6 has colours and alpha.
    """
    line = bytes(1 + side * bits * (4 if kind == 6 else 1) // 8)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    hundred = packer.compress(line * 100) + packer.flush(zlib.Z_FULL_FLUSH)
    # The checksum of so many zeros is known, and the packed lines can be repeated: nothing has to be packed at length.
    checksum = struct.pack(">I", len(line) * side % 65521 << 16 | 1)
    packed = b"\x78\x9c" + hundred * (side // 100) + packer.flush() + checksum
    return png_of(side, side, packed, bits=bits, kind=kind)


def png_of(width: int, height: int, packed: bytes, *, bits: int = 8, kind: int = 2) -> bytes:
    """Return a PNG with right checksums that declares this size and holds these compressed pixels."""
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def video(side: int) -> bytes:
    """Return a black MP4 of two square frames."""
    import av

    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        frames = [av.VideoFrame(side, side, "yuv420p") for _ in range(2)]
        for number, frame in enumerate(frames):
            frame.pts = number
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
        for packet in [packet for frame in [*frames, None] for packet in stream.encode(frame)]:
            container.mux(packet)
    return data.getvalue()


def sparse_picture(run: Path) -> None:
    picture(png)(run)
    with (run / "media" / "x.png").open("r+b") as file:
        file.truncate(GIB + 1)


def aliases() -> str:
    """Return nine levels of nine aliases each: a kilobyte that stands for 387 million values."""
    levels = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 10)]
    return "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(levels)


def merges() -> str:
    """Return the same by merge keys."""
    levels = [f"b{n}: &b{n}\n" + f"  <<: [{', '.join([f'*b{n - 1}'] * 9)}]\n" for n in range(1, 10)]
    return "b0: &b0 {" + ", ".join(f"k{n}: {n}" for n in range(9)) + "}\n" + "".join(levels)


def gif(frames: int) -> bytes:
    """Return a GIF of so many frames of one pixel, fifteen bytes each."""
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return head + (b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0") * frames + b";"

"""`bridge cache`: where the caches are, how large, and away with them."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING

import click

from bridge.cli.common import Exit, Output, command, output_options
from bridge.errors import BridgeError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["cache"]


@command("cache", example="bridge cache", exits=(Exit.DONE, Exit.NOTHING_DONE))
@click.option("--clear", is_flag=True, help="Empty all caches; everything in them can be made again.")
@output_options
def cache(clear: bool, out: Output) -> None:
    """Show the place and the size of all caches, or empty them. What else lies in their folder is left alone."""
    from bridge.files import PARTS, cache_dir

    try:
        place = cache_dir()
    except RuntimeError as error:
        raise BridgeError(
            "There is no home directory, so there is no place for caches.", hint="Set BRIDGE_CACHE_DIR to a folder."
        ) from error
    parts = {place / name: sorted((place / name).glob(pattern)) for name, pattern in PARTS.items()}
    rows = [
        {"name": part.name, "path": str(part), "bytes": sum(map(_size, held))} for part, held in parts.items() if held
    ]
    if clear:
        for part, held in parts.items():
            _empty(part, held)
    if out.json:
        out.result_json({"version": 1, "path": str(place), "cleared": clear, "caches": rows})
        return
    out.result(str(place))
    for row in rows:
        out.result(f"{row['bytes']:>14,} bytes  {row['name']}")
    if clear:
        out.result(f"{len(rows)} caches emptied.")


def _empty(part: Path, held: list[Path]) -> None:
    """Delete what is ours in the folder `part`, and the folder where nothing else lies in it."""
    for path in held:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        part.rmdir()


def _size(path: Path) -> int:
    """The bytes of a file, or of all files below a folder; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(_size(part) for part in path.iterdir())

"""`bridge cache`: where the caches are, how large, and away with them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import click

from bridge.cli.common import Exit, Output, command, output_options

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["cache"]


@command("cache", example="bridge cache", exits=(Exit.DONE, Exit.NOTHING_DONE))
@click.option("--clear", is_flag=True, help="Empty all caches; everything in them can be made again.")
@output_options
def cache(clear: bool, out: Output) -> None:
    """Show the place and the size of all caches, or empty them."""
    from bridge.caches import cache_dir

    place = cache_dir()
    parts = sorted(place.iterdir()) if place.is_dir() else []
    rows = [{"name": part.name, "path": str(part), "bytes": _size(part)} for part in parts]
    if clear:
        for part in parts:
            shutil.rmtree(part) if part.is_dir() and not part.is_symlink() else part.unlink()
    if out.json:
        out.result_json({"version": 1, "path": str(place), "cleared": clear, "caches": rows})
        return
    out.result(str(place))
    for row in rows:
        out.result(f"{row['bytes']:>14,} bytes  {row['name']}")
    if clear:
        out.result(f"{len(rows)} caches emptied.")


def _size(path: Path) -> int:
    """The bytes of a file, or of all files below a folder; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(_size(part) for part in path.iterdir())

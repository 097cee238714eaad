"""`bridge config`: the options in effect, where each comes from, and the caches."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from bridge.cli.command import command
from bridge.cli.output import Exit, Output, plain
from bridge.options import as_written
from bridge.secrets import hide_uri

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.options import Config


@command("config", example="bridge config --json", exits=(Exit.DONE, Exit.USAGE))
def config(out: Output) -> None:
    """Show the options in effect for `bridge export`, where each comes from, and the caches with their sizes."""
    from bridge.cli.export import export

    context = click.get_current_context()
    found: Config = context.meta["bridge.config"]
    arguments = ["--config", str(found.path)] if found.path else []
    asked = export.make_context("export", ["--to", "tensorboard", *arguments], parent=context.parent)
    rows = [_row(param, asked, found) for param in export.params if param.name in asked.params and param.name != "to"]
    caches = _caches()
    if out.json:
        file = str(found.path) if found.path else None
        out.result_json({"version": 1, "file": file, "options": rows, "caches": caches})
        return
    out.result(f"file: {found.path or 'none (no bridge.yaml here or above)'}")
    width = max(len(row["option"]) for row in rows)
    for row in rows:
        out.result(plain(f"{row['option']:<{width}}  {_shown(row['value'])}  ({row['source']})"))
    for cache in caches:
        out.result(plain(f"cache: {cache['path']}  ({cache['bytes'] / 1000:,.0f} kB; can be deleted at any time)"))


def _row(param: click.Parameter, asked: click.Context, found: Config) -> dict[str, Any]:
    name = param.name or ""
    source = asked.get_parameter_source(name)
    where = "default"
    if source is ParameterSource.ENVIRONMENT:
        where = f"environment: {_variable(param)}"
    elif source is ParameterSource.DEFAULT_MAP:
        where = str(found.path)
    value = json.loads(json.dumps(asked.params[name], default=str))
    if name.endswith("_uri") and isinstance(value, str):
        value = hide_uri(value)
    written = param.opts[0] if isinstance(param, click.Option) else name.upper()
    return {"option": written, "value": value, "source": where}


def _variable(param: click.Parameter) -> str:
    names = [param.envvar] if isinstance(param.envvar, str) else list(param.envvar or ())
    return next((name for name in names if os.environ.get(name)), names[0])


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return as_written(value) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _caches() -> list[dict[str, Any]]:
    """Return the files and folders of the cache with their sizes; none where there is no home directory."""
    from bridge.files import cache_dir

    try:
        place = cache_dir()
    except RuntimeError:
        return []
    return [{"path": str(path), "bytes": _size(path)} for path in sorted(place.iterdir() if place.is_dir() else ())]


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; links are not followed."""
    return sum(file.lstat().st_size for file in (path, *path.rglob("*")) if not file.is_dir())

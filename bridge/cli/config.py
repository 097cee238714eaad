"""`bridge config`: the options in effect and where each comes from."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from bridge.cli.common import Exit, Output, command, output_options, plain
from bridge.secrets import hide_uri

if TYPE_CHECKING:
    from bridge.config import Config

__all__ = ["config"]


@command("config", example="bridge config --json", exits=(Exit.DONE, Exit.USAGE))
@output_options
@click.pass_context
def config(ctx: click.Context, out: Output) -> None:
    """Show the options in effect for `bridge export`, and where each comes from."""
    from bridge.cli.export import export

    found: Config = ctx.meta["bridge.config"]
    arguments = ["--config", str(found.path)] if found.path else []
    asked = export.make_context("export", ["--to", "tensorboard", *arguments], parent=ctx.parent)
    rows = [_row(param, asked, found) for param in export.params if param.name in asked.params and param.name != "to"]
    if out.json:
        out.result_json({"version": 1, "file": str(found.path) if found.path else None, "options": rows})
        return
    out.result(f"file: {found.path or 'none (no bridge.yaml here or above)'}")
    width = max(len(row["option"]) for row in rows)
    for row in rows:
        out.result(plain(f"{row['option']:<{width}}  {_shown(row['value'])}  ({row['source']})"))


def _row(param: click.Parameter, asked: click.Context, found: Config) -> dict[str, Any]:
    name = param.name or ""
    source = asked.get_parameter_source(name)
    where = "default"
    if source is ParameterSource.ENVIRONMENT:
        where = f"environment: {_variable(param)}"
    elif source is ParameterSource.DEFAULT_MAP:
        where = str(found.path)
    written = param.opts[0] if isinstance(param, click.Option) else name.upper()
    value = _plain(asked.params[name])
    if name.endswith("_uri") and isinstance(value, str):
        value = hide_uri(value)
    return {"option": written, "value": value, "source": where}


def _variable(param: click.Parameter) -> str:
    names = [param.envvar] if isinstance(param.envvar, str) else list(param.envvar or ())
    return next((name for name in names if os.environ.get(name)), names[0])


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(str(item) for item in value) or "-"
    return "-" if value is None else str(value)

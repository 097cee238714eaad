"""Commands whose options have defaults in bridge.yaml and in the environment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ENVIRONMENT_PREFIX", "ConfiguredCommand"]

ENVIRONMENT_PREFIX = "BRIDGE_"
"""`--tracking-uri` is also BRIDGE_TRACKING_URI, and so on for every option and for the argument RUNS."""

_NOT_FROM_OUTSIDE = frozenset({"help", "config"})


class ConfiguredCommand(click.Command):
    """A command with `--config`; each of its parameters falls back to the environment, then to bridge.yaml."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.params.append(
            click.Option(
                ["--config"],
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                metavar="FILE",
                envvar=f"{ENVIRONMENT_PREFIX}CONFIG",
                is_eager=True,
                expose_value=False,
                callback=_load,
                help="Take defaults from this file instead of the nearest bridge.yaml here or above.",
            )
        )
        for param in self.params:
            if param.name and param.name not in _NOT_FROM_OUTSIDE:
                param.envvar = [_environment_name(param), *_listed(param.envvar)]


def _environment_name(param: click.Parameter) -> str:
    """The name of the longest way to write an option, so that `as_json` is BRIDGE_JSON."""
    written = max((opt for opt in param.opts if opt.startswith("--")), key=len, default=param.name or "")
    return ENVIRONMENT_PREFIX + written.removeprefix("--").replace("-", "_").upper()


def _listed(envvar: str | Sequence[str] | None) -> list[str]:
    if envvar is None:
        return []
    return [envvar] if isinstance(envvar, str) else list(envvar)


def _load(ctx: click.Context, _param: click.Parameter, value: Path | None) -> None:
    """Make the file's values this command's defaults; a wrong file is a UsageError of the bridge."""
    from bridge.config import Config, find_config, load_config

    found = value or find_config(Path.cwd())
    config = Config() if found is None else load_config(found)
    ctx.default_map = {**(ctx.default_map or {}), **config.options}
    ctx.meta["bridge.config"] = config

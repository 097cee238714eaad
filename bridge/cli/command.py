"""The frame of every command: its options, their defaults in the environment and in bridge.yaml, its help, completion.

A command is a function whose parameters say which options it has: a parameter whose type is a group of `bridge.options`
stands for all options of the group, `runs` stands for the argument RUNS, and `out` for --json, -q and -v.
"""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_origin, get_type_hints

import click
import msgspec
from click.core import ParameterSource
from msgspec.structs import asdict

from bridge.cli.output import MEANINGS, Exit, Output
from bridge.errors import BridgeError, UsageError
from bridge.options import Config, ContentOptions, fields_of, find_config, load_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from bridge.exporters.contract import Exporter
    from bridge.options import Field, TargetOptions
    from bridge.registry import RunRecord

ENVIRONMENT_PREFIX = "BRIDGE_"
"""--tracking-uri is also BRIDGE_TRACKING_URI; every option and the argument RUNS have such a variable."""

RECENT_S = 30.0
"""Completion reads the runs from a cache of this age, in seconds, so that a second Tab does not wait for a scan."""


def command(name: str, *, example: str, exits: tuple[Exit, ...]) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a command of a function; its docstring is the help, which ends with `example` and the exit codes.

    Further options and arguments are added below with click's own decorators. The function returns the exit code, None
    for 0, and raises BridgeError; it never prints errors.
    """
    codes = " · ".join(f"{code:d} {MEANINGS[code]}" for code in (*exits, Exit.INTERRUPTED))

    def decorate(function: Callable[..., Any]) -> click.Command:
        hints = get_type_hints(function)
        groups = {name: kind for name, kind in hints.items() if _is_group(kind)}
        own: list[click.Parameter] = list(reversed(getattr(function, "__click_params__", ())))

        @functools.wraps(function)
        def run(**values: Any) -> Any:
            for argument, group in groups.items():
                values[argument] = _collect(group, values)
            if "runs" in values:
                values["runs"] = values["runs"] or (Path(),)
            return function(**values)

        params: list[click.Parameter] = [param for param in own if isinstance(param, click.Argument)]
        if "runs" in hints:
            params.append(click.Argument(["runs"], nargs=-1, type=click.Path(path_type=Path)))
        for group in groups.values():
            if group is not Output:
                params += _options_of(group)
        params += [param for param in own if not isinstance(param, click.Argument)]
        params += _options_of(Output) if Output in groups.values() else ()
        for param in params:
            param.envvar = [_variable(param), *([str(param.envvar)] if param.envvar else [])]
        config = click.Option(
            ["--config"],
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="FILE",
            envvar=f"{ENVIRONMENT_PREFIX}CONFIG",
            is_eager=True,
            expose_value=False,
            callback=_load,
            help="Read defaults from this file instead of the nearest bridge.yaml here or above.",
        )
        return click.Command(
            name,
            callback=run,
            params=[*params, config],
            help=function.__doc__,
            context_settings={"help_option_names": ["-h", "--help"]},
            epilog=f"\b\nExample:\n  {example}\n\nExit codes: {codes}",
        )

    return decorate


def _is_group(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _collect(group: type[msgspec.Struct], values: dict[str, Any]) -> msgspec.Struct:
    """Take the options of `group` out of `values`; one that nobody set gets the default of its field."""
    context = click.get_current_context()
    given = {}
    for item in fields_of(group):
        value = values.pop(item.name)
        if context.get_parameter_source(item.name) is not ParameterSource.DEFAULT:
            given[item.name] = value
        flag, meaning = item.option.shorthand
        if flag and values.pop(_shorthand_name(flag)):
            given[item.name] = meaning
    context.meta[f"bridge.given.{group.__name__}"] = frozenset(given)
    return group(**given)


def given_names(group: type[msgspec.Struct]) -> frozenset[str]:
    """Return the options of `group` that were given: on the command line, in a variable or in bridge.yaml."""
    names: frozenset[str] = click.get_current_context().meta[f"bridge.given.{group.__name__}"]
    return names


def _options_of(group: type[msgspec.Struct]) -> Iterator[click.Option]:
    for item in fields_of(group):
        yield _click_option(item)
        flag, meaning = item.option.shorthand
        if flag:
            yield click.Option(
                [flag, _shorthand_name(flag)], is_flag=True, help=f"The same as --{item.name} {meaning}."
            )


def _shorthand_name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _click_option(item: Field) -> click.Option:
    """Return click's option for one field of a group."""
    option = item.option
    dashed = item.name.replace("_", "-")
    flags = option.flag.split() or [f"--{dashed}"]
    is_required = item.default is msgspec.NODEFAULT
    settings: dict[str, Any] = {"help": option.help, "envvar": option.variable or None, "required": is_required}
    if item.type is bool:
        can_be_put_back = item.default or item.name in ContentOptions.__struct_fields__
        flags = [f"--{dashed}/--no-{dashed}"] if can_be_put_back else flags
        settings |= {"is_flag": True, "default": item.default}
    else:
        is_shown = not item.is_list and item.default not in (None, "", msgspec.NODEFAULT)
        settings |= {
            "type": _click_type(item),
            "metavar": option.metavar or None,
            "multiple": item.is_list,
            "default": item.default if is_shown else None,
            "show_default": is_shown,
            "show_envvar": bool(option.variable),
            "shell_complete": _COMPLETERS.get(option.completes),
        }
    return click.Option([*flags, item.name], **settings)


def _click_type(item: Field) -> Any:
    """Return click's type for the values of a field."""
    if item.choices:
        return click.Choice(item.choices, case_sensitive=False)
    if get_origin(item.item) is tuple:  # --rename OLD=NEW, and --top N METRIC
        return rename_pair if item.is_list else (click.IntRange(min=1), str)
    types = {
        int: click.IntRange(min=item.option.least, max=item.option.most),  # type: ignore[arg-type]  # whole numbers
        float: Seconds(min=item.option.least),
        Path: click.Path(file_okay=False, path_type=Path) if item.name == "logdir" else File(),
    }
    return types.get(item.item, str)


class File(click.Path):
    """A file to write, as a Path; `-` is stdout for CSV, and for nothing else."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if str(value) == "-" and param is not None and param.name != "csv":
            self.fail("'-' is not the name of a file.", param, ctx)
        return super().convert(value, param, ctx)


class Seconds(click.FloatRange):
    """A span of time in seconds. NaN is refused, since it compares with nothing."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number of seconds."""
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return seconds


def rename_pair(value: Any) -> tuple[str, str]:
    """Return OLD=NEW as a pair; the last `=` separates, since metric names may hold others. `none` puts it back."""
    if isinstance(value, tuple):
        return value
    old, separator, new = str(value).rpartition("=")
    if value != "none" and not (old and separator and new):
        raise click.UsageError(f"--rename takes OLD=NEW, not {value!r}.")
    return (old, new) if separator else ("none", "")


def _variable(param: click.Parameter) -> str:
    """Return the environment variable of a parameter, named after its longest flag."""
    flag = max((opt for opt in param.opts if opt.startswith("--")), key=len, default=param.name or "")
    return ENVIRONMENT_PREFIX + flag.removeprefix("--").replace("-", "_").upper()


def _load(ctx: click.Context, _param: click.Parameter, value: Path | None) -> None:
    """Make the values of bridge.yaml the defaults of this command. Raises UsageError for a wrong file."""
    try:
        found = value or find_config(Path.cwd())
        config = Config() if found is None else load_config(found)
    except (UsageError, OSError):
        if not ctx.resilient_parsing:  # a shell that completes a word is told nothing
            raise
        config = Config()
    ctx.default_map = {**(ctx.default_map or {}), **config.options}
    ctx.meta["bridge.config"] = config


def was_typed(name: str) -> bool:
    """Return whether an option of the running command stands on the command line."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def exporter_of(target: TargetOptions) -> Exporter:
    """Return the exporter that `target` names, made with those of its options that the exporter takes.

    Raises UsageError for an exporter that does not exist, and for an option on the command line that it does not take.
    Options of other targets in bridge.yaml or in the environment are left out.
    """
    from bridge.exporters.contract import make_exporter

    if not target.to:
        raise click.UsageError("Missing option '--to': mlflow or tensorboard.")
    options = asdict(target)
    del options["to"]
    return make_exporter(
        target.to, options, meant={name: f"--{name.replace('_', '-')}" for name in options if was_typed(name)}
    )


# ------------------------------------------------------------------------------------- completion from the runs


def complete_exporters(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of installed exporters that begin with `incomplete`."""
    from bridge.exporters.contract import exporter_names

    return [name for name in exporter_names() if name.startswith(incomplete)]


def _completer(words_of: Callable[[RunRecord], Iterable[str]]) -> Callable[..., list[str]]:
    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        words = {word for record in _records(ctx) for word in words_of(record)}
        # A shell reads lines, so a word with a line break or another control character cannot be completed.
        return sorted(word for word in words if word.startswith(incomplete) and word.isprintable())

    return complete


complete_run_ids = _completer(lambda record: (record.run_id,))
complete_metrics = _completer(lambda record: record.summary)
_COMPLETERS = {
    "exporters": complete_exporters,
    "run_ids": complete_run_ids,
    "metrics": complete_metrics,
    "tags": _completer(lambda record: record.tags),
}


def _records(ctx: click.Context) -> Iterator[RunRecord]:
    """Yield the runs in RUNS; what cannot be read is left out without a word."""
    from bridge.registry import open_registry

    # Click does not get to the arguments where an option still lacks its value, but the line names them.
    named = [word for word in os.environ.get("COMP_WORDS", "").split()[2:] if os.path.isdir(word)]  # noqa: PTH112
    is_typed = ctx.get_parameter_source("runs") is ParameterSource.COMMANDLINE
    for root in (is_typed and ctx.params["runs"]) or named or ctx.params.get("runs") or (".",):
        try:
            yield from open_registry(root, scan_ttl_s=RECENT_S, say=lambda _message: None)
        except (BridgeError, OSError):
            continue

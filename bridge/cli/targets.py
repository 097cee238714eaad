"""The options that say where runs go, shared by every command that talks to a target."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click
from click.core import ParameterSource

from bridge.errors import UsageError
from bridge.exporters import exporter_names, find_exporter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from click.shell_completion import CompletionItem

    from bridge.exporters.contract import Exporter

__all__ = ["TargetChoice", "make_exporter", "target_options"]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class TargetChoice:
    """What the command line says about the target.

    `to` names the exporter. `options` are all target options that have a value; `given` names those that were
    typed on the command line, so that one which the exporter does not know is an error and not ignored.
    """

    to: str
    options: Mapping[str, Any]
    given: frozenset[str] = frozenset()


class ExporterName(click.ParamType):  # type: ignore[type-arg]  # generic only in newer clicks
    """The name of an exporter; which there are is looked up only for completion and errors."""

    name = "exporter"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """The built-in names, as click shows a choice."""
        return "[mlflow|tensorboard|...]"

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,
        incomplete: str,
    ) -> list[CompletionItem]:
        """All names that start with what was typed."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(name) for name in exporter_names() if name.startswith(incomplete)]


_OPTIONS: tuple[Callable[..., Any], ...] = (
    click.option("--to", type=ExporterName(), required=True, help="Where the runs go."),
    click.option(
        "--tracking-uri",
        metavar="URI",
        envvar="MLFLOW_TRACKING_URI",
        show_envvar=True,
        help="MLflow: a server, or a database such as sqlite:///mlflow.db. Default: MLflow's own.",
    ),
    click.option(
        "--experiment",
        metavar="NAME",
        envvar="MLFLOW_EXPERIMENT_NAME",
        show_envvar=True,
        help="MLflow: the experiment; may hold {tags.x}, {hparams.a.b}, {parent}. Default: MLflow's own.",
    ),
    click.option(
        "--experiment-default",
        metavar="NAME",
        help="MLflow: the experiment of runs that lack what --experiment's placeholders name.",
    ),
    click.option(
        "--database-uri",
        metavar="URI",
        help="MLflow: the database behind the server, for points at full speed.",
    ),
    click.option(
        "--logdir",
        metavar="DIR",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path("tb_logs"),
        show_default=True,
        help="TensorBoard: the folder that it is pointed at.",
    ),
)
_NAMES = ("tracking_uri", "experiment", "experiment_default", "database_uri", "logdir")


def target_options(command: Callable[P, R]) -> Callable[..., R]:
    """Add --to and what says where to `command`, which gets them as one keyword argument `target`: TargetChoice."""

    @functools.wraps(command)
    def with_target(*args: Any, to: str, **others: Any) -> R:
        source = click.get_current_context().get_parameter_source
        values = {name: others.pop(name) for name in _NAMES}
        others["target"] = TargetChoice(
            to=to,
            options={name: value for name, value in values.items() if value is not None},
            given=frozenset(name for name in _NAMES if source(name) is ParameterSource.COMMANDLINE),
        )
        return command(*args, **others)

    decorated: Callable[..., R] = with_target
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def make_exporter(target: TargetChoice) -> Exporter:
    """The exporter that `target` chooses, made with those of its options that the factory's signature names.

    Raises UsageError for an exporter that does not exist and for a typed option that it does not take.
    """
    factory = find_exporter(target.to)
    taken = inspect.signature(factory).parameters
    for name in sorted(target.given):
        if name not in taken:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} is no option of --to {target.to}.")
    return factory(**{name: value for name, value in target.options.items() if name in taken})

"""The options that shape what a target holds, shared by the commands that fill one."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from bridge.cli.complete import complete_metrics, complete_ranking

if TYPE_CHECKING:
    from collections.abc import Callable

    from bridge.cursor import ContentOptions

__all__ = ["content_options"]

F = TypeVar("F", bound="Callable[..., Any]")

_CONTENT = (
    click.option(
        "--metrics",
        multiple=True,
        metavar="GLOB",
        shell_complete=complete_metrics,
        help="Only metrics whose name matches; may repeat.",
    ),
    click.option(
        "--exclude-metrics",
        multiple=True,
        metavar="GLOB",
        shell_complete=complete_metrics,
        help="No metrics whose name matches; may repeat.",
    ),
    click.option("--media/--no-media", default=True, help="With or without images and videos."),
    click.option(
        "--artifacts",
        type=click.Choice(["ended", "now", "none"]),
        default="ended",
        show_default=True,
        help="MLflow: when metrics.csv and the like are uploaded, if at all.",
    ),
    click.option("--no-artifacts", is_flag=True, help="The same as --artifacts none."),
    click.option("--checkpoints", is_flag=True, help="MLflow: upload the checkpoint too."),
    click.option(
        "--best",
        multiple=True,
        metavar="METRIC:max|min",
        shell_complete=complete_ranking,
        help="MLflow: add best/METRIC, the running best; may repeat.",
    ),
    click.option("--rename", multiple=True, metavar="OLD=NEW", help="Another name for a metric; may repeat."),
    click.option(
        "--redact",
        multiple=True,
        metavar="GLOB",
        help="Mask hparams that match, instead of the built-in list; may repeat.",
    ),
    click.option(
        "--volatile", multiple=True, metavar="GLOB", help="MLflow: hparams that may differ after a requeue; may repeat."
    ),
    click.option("--flat", is_flag=True, help="MLflow: no parent runs for sweeps."),
)
_CONTENT_NAMES = (
    "metrics", "exclude_metrics", "media", "artifacts", "no_artifacts",
    "checkpoints", "best", "flat", "rename", "redact", "volatile",
)  # fmt: skip


def content_options(function: F) -> F:
    """Add the options that shape what a target holds; the function gets `shape: bridge.cursor.ContentOptions`."""

    @functools.wraps(function)
    def collected(*args: Any, **options: Any) -> Any:
        given = {name: options.pop(name) for name in _CONTENT_NAMES}
        return function(*args, content=_shape(given), **options)

    for option in reversed(_CONTENT):
        collected = option(collected)
    return collected  # type: ignore[return-value]


def _shape(given: dict[str, Any]) -> ContentOptions:
    from bridge.cursor import ContentOptions

    if given.pop("no_artifacts"):
        given["artifacts"] = "none"
    source = click.get_current_context().get_parameter_source
    for listed in ("redact", "volatile"):
        # An empty list that a bridge.yaml asks for is none at all; one that nobody gave is the built-in list.
        if source(listed) is ParameterSource.DEFAULT:
            del given[listed]
    given["rename"] = tuple(_pair(text) for text in given["rename"])
    return ContentOptions(**given)


def _pair(text: str) -> tuple[str, str]:
    old, separator, new = text.rpartition("=")
    if not (old and separator and new):
        raise click.UsageError(f"--rename wants OLD=NEW, not {text!r}.")
    return old, new

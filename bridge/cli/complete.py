"""What a shell completes from the runs themselves: run ids, tags, metric names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bridge.errors import BridgeError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bridge.registry.record import RunRecord

__all__ = ["complete_metrics", "complete_ranking", "complete_run_ids", "complete_tags"]

_RECENT_S = 30.0
"""A person who presses Tab again waits for no second scan."""


def complete_run_ids(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """The run ids that begin so."""
    return _fitting((run.run_id for run in _records(ctx)), incomplete)


def complete_tags(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """The tags that begin so."""
    return _fitting((tag for run in _records(ctx) for tag in run.tags), incomplete)


def complete_metrics(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """The names of metrics that begin so."""
    return _fitting((name for run in _records(ctx) for name in run.summary), incomplete)


def complete_ranking(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """METRIC:max and METRIC:min of the metrics that begin so; nothing where the N before it is still missing."""
    before: tuple[str, ...] = ctx.obj or ()
    if param.nargs == 2 and before and before[-1] in param.opts:
        return []
    return _fitting(
        (f"{name}:{mode}" for run in _records(ctx) for name in run.summary for mode in ("max", "min")), incomplete
    )


def _fitting(words: Iterable[str], incomplete: str) -> list[str]:
    # A shell takes lines: a word with a line break, or any other control character, cannot be completed.
    return sorted({word for word in words if word.startswith(incomplete) and word.isprintable()})


def _records(ctx: click.Context) -> list[RunRecord]:
    """The runs in RUNS as far as they stand on the line already; nothing is said, nothing fails."""
    from bridge.registry import open_registry

    found: list[RunRecord] = []
    for root in _roots(ctx):
        try:
            found += open_registry(os.fspath(root), scan_ttl_s=_RECENT_S, say=lambda _message: None)
        except (BridgeError, OSError):
            continue
    return found


def _roots(ctx: click.Context) -> tuple[Path, ...]:
    """RUNS; click does not come to them where an option still lacks a value, so they are read without that option."""
    words = list(ctx.obj or ())[1:]
    values = {
        name: option.nargs
        for option in ctx.command.params
        if isinstance(option, click.Option) and not (option.is_flag or option.count)
        for name in option.opts
    }
    lacking = (place for place, word in enumerate(words) if len(words) - place <= values.get(word, 0))
    words = words[: next(lacking, len(words))]
    with ctx.command.make_context(ctx.info_name, words, parent=ctx.parent, resilient_parsing=True) as whole:
        return tuple(whole.params.get("runs") or (Path(),))

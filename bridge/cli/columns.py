"""Which columns a table of runs gets, and the options that choose them."""

from __future__ import annotations

from collections import Counter
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bridge.registry.refs import FIELDS, Kind, Ref, column

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridge.cli.common import Output
    from bridge.registry.record import RunRecord
    from bridge.sync.select import Selection

__all__ = ["default_columns", "file_options", "parse_columns", "varying", "warn_of_unknown"]

_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


def file_options(function: Any) -> Any:
    """Add --columns, --csv and --parquet."""
    for option in (
        click.option("--parquet", type=_FILE, metavar="FILE", help="Write all columns to FILE as Parquet."),
        click.option("--csv", type=_FILE, metavar="FILE", help="Write all columns to FILE as CSV."),
        click.option("--columns", metavar="NAMES", help="What to show: run_id,status,val/acc,val/acc.max,hparams.lr"),
    ):
        function = option(function)
    return function


def parse_columns(text: str) -> list[Ref]:
    """The columns in a list with commas. Raises UsageError for one that names nothing."""
    return [column(name.strip()) for name in text.split(",") if name.strip()]


def warn_of_unknown(refs: Sequence[Ref], records: Sequence[RunRecord], out: Output) -> None:
    """Say on stderr which of these metrics and hyperparameters no run holds, with the nearest name that there is."""
    for ref in refs:
        if ref.kind not in (Kind.METRIC, Kind.HPARAM) or not records or any(ref.of(run) is not ... for run in records):
            continue
        if ref.kind is Kind.METRIC:
            names = {
                *(name for run in records for name in run.stats),
                *(name for run in records for name in run.summary),
            }
            names |= set(FIELDS)
        else:
            names = {name for run in records for name in run.hparams}
        near = get_close_matches(ref.name, names, n=1)
        out.say(f"No run has {ref}" + (f"; did you mean {near[0]}?" if near else "."))


def varying(records: Sequence[RunRecord], most: int) -> list[Ref]:
    """The hyperparameters in which the records differ, those that the most of them have first; at most `most`."""
    counted = Counter(key for record in records for key in record.hparams)
    differing = [key for key in counted if len({repr(record.hparams.get(key)) for record in records}) > 1]
    differing.sort(key=lambda key: (-counted[key], key.count("."), key))
    return [Ref(Kind.HPARAM, key) for key in differing[:most]]


def default_columns(records: Sequence[RunRecord], selection: Selection) -> list[Ref]:
    """The columns of `bridge ls` where none are asked for, the most telling first."""
    top = selection.top
    metrics = [Ref(Kind.METRIC, top.metric, "last" if top.last else top.mode)] if top else _telling(records, most=3)
    fields = [column(name) for name in ("run_id", "status", "created_at", "duration")]
    tags = [column("tags")] if any(record.tags for record in records) else []
    return [*fields, *metrics, *varying(records, most=3), *tags]


def _telling(records: Sequence[RunRecord], most: int) -> list[Ref]:
    """The metrics that say the most: validation before training, those of many runs before those of few."""
    counted = Counter(name for record in records for name in record.summary)
    names = [name for name in counted if name not in ("epoch", "step", "lr") and not name.startswith("lr-")]
    names.sort(key=lambda name: (not name.startswith("val"), -counted[name], name))
    return [Ref(Kind.METRIC, name) for name in names[:most]]

"""`bridge show`: one run in full."""

from __future__ import annotations

import os
import time
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.padding import Padding
from rich.text import Text

from bridge.cli.command import command, complete_run_ids
from bridge.cli.output import Exit, Output, plain
from bridge.cli.records import RECORDS_VERSION, Column, age, open_registries, print_columns, read_records, word_of
from bridge.errors import RunDirectoryError, UsageError
from bridge.options import CacheOptions, ContentOptions
from bridge.registry.store import with_statistics
from bridge.registry.where import Kind, Ref, column
from bridge.secrets import Redaction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridge.registry import RunRecord

MOST_NAMED = 10
"""The most runs that an error names."""

STATISTICS = ("last", "max", "max_step", "min", "min_step", "count", "nan_count")
"""The columns of the metrics, the most telling first."""


@command("show", example="bridge show preempted demo-runs", exits=(Exit.DONE, Exit.NOTHING_DONE, Exit.USAGE))
@click.argument("run", shell_complete=complete_run_ids)
def show(run: str, runs: tuple[Path, ...], cache: CacheOptions, out: Output) -> None:
    """Show one run in full: RUN is a run directory, or the id of a run found in RUNS."""
    (record,) = with_statistics([find_run(run, runs, cache, out)])
    if out.json:
        out.result_json({"version": RECORDS_VERSION, "run": record.to_dict()})
        return
    _print_facts(record, out)
    hparams = sorted(record.hparams)
    if hparams:
        words = [word_of(Ref(Kind.HPARAM, key), record) for key in hparams]
        click.echo()
        print_columns([Column("hparam", [plain(key) for key in hparams]), Column("value", words)], out)
    metrics = sorted({*record.summary, *record.stats})
    if metrics:
        click.echo()
        print_columns(_metrics(record, metrics), out)


def find_run(run: str, runs: Sequence[Path], cache: CacheOptions, out: Output) -> RunRecord:
    """Return the one run that `run` names. Raises UsageError where there is none, or several."""
    if os.path.isdir(run):  # noqa: PTH112 - Path refuses what is no path at all
        (registry,) = open_registries([Path(run)], cache, out)
        return _only(run, list(registry), registry.report.problems if registry.report else ())
    records = read_records(runs, cache, out)
    for found in (
        [record for record in records if run in (record.run_id, record.identity)],
        [record for record in records if f"/{record.run_id}".endswith(f"/{run}") or record.name == run],
        [record for record in records if record.run_id.startswith(run)],
    ):
        if found:
            return _only(run, found, ())
    near = get_close_matches(run, {name for record in records for name in (record.run_id, record.name)}, n=1)
    suggested = f"Did you mean {near[0]}? " if near else ""
    raise UsageError(f"No run {run!r} in {', '.join(map(str, runs))}.", hint=f"{suggested}bridge ls lists the runs.")


def _only(run: str, found: Sequence[RunRecord], problems: Sequence[tuple[str, str]]) -> RunRecord:
    if len(found) == 1:
        return found[0]
    if not found and problems:
        raise RunDirectoryError(problems[0][1])
    if not found:
        raise UsageError(f"{run} holds no run.", hint="bridge ls lists the runs.")
    shown = "\n".join(f"  {record.run_dir}" for record in found[:MOST_NAMED])
    more = f"\n  and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    raise UsageError(f"{run!r} can mean {len(found)} runs:\n{shown}{more}", hint="Give the run's directory.")


def _print_facts(record: RunRecord, out: Output) -> None:
    """Print the facts that a run has, one a line with its name in front; notes as lines of their own."""
    facts = {name: word_of(column(name), record) for name in ("name", "run_id", "status")}
    is_known = record.duration is not None
    recent = f" ({age(record.start)} ago)" if 0 <= time.time() - record.start < 86400 else ""
    facts["started"] = f"{word_of(column('created_at'), record)}{recent}" if is_known else "unknown"
    facts |= {"ended": word_of(column("ended_at"), record), "duration": word_of(column("duration"), record)}
    facts["tags"] = word_of(column("tags"), record)
    facts["archived"] = "yes" if record.archived else ""
    facts["starts"] = str(record.sessions) if record.sessions > 1 else ""
    session = record.session
    facts["command"] = Redaction(ContentOptions().redact).command(session.get("command", ""))
    facts["host"] = " as ".join(session[name] for name in ("host", "user") if name in session)
    facts["commit"] = session.get("git_commit", "")
    facts["SLURM"] = ", ".join(f"{key} {value}" for key, value in session.get("slurm", {}).items())
    facts["checkpoint"] = record.checkpoint_path or ""
    facts["run_dir"] = record.run_dir
    facts["identity"] = record.identity if record.identity != record.run_dir else ""
    for name, text in facts.items():
        if text and not (name == "run_id" and text == facts["name"]):
            out.result(f"{name:<10}  {plain(text)}")
    if record.notes:
        console = out.console()
        click.echo("notes")
        for line in record.notes.strip().splitlines():
            # Indented, so that no line of a note looks like one of ours.
            console.print(Padding(Text(plain(line)), (0, 0, 0, 2), expand=False))


def _metrics(record: RunRecord, metrics: Sequence[str]) -> list[Column]:
    """Return the columns of the metrics. A statistic that no metric has, and NaN counts of 0, are left out."""
    shown = [Column("metric", [plain(name) for name in metrics])]
    for rank, statistic in enumerate(STATISTICS):
        words = [word_of(Ref(Kind.METRIC, name, statistic), record) for name in metrics]
        if any(word and (statistic, word) != ("nan_count", "0") for word in words):
            shown.append(Column(statistic.replace("_step", " at step").replace("_", " "), words, True, rank))
    return shown

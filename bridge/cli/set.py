"""`bridge set`: change a run's name, notes and tags, or archive it."""

from __future__ import annotations

from pathlib import Path

import click

from bridge.cli.command import command, complete_run_ids
from bridge.cli.output import Exit, Output
from bridge.cli.show import find_run
from bridge.options import CacheOptions


@command(
    "set",
    example="bridge set preempted demo-runs --tag +keep --notes 'Resumed after a preemption.'",
    exits=(Exit.DONE, Exit.NOTHING_DONE, Exit.USAGE),
)
@click.argument("run", shell_complete=complete_run_ids)
@click.option("--name", metavar="TEXT", help="The name to show; '' removes it.")
@click.option("--notes", metavar="TEXT", help="The notes, in Markdown; '' removes them.")
@click.option("--tag", "tags", multiple=True, metavar="+TAG|-TAG", help="Add or remove a tag; may repeat.")
@click.option(
    "--archive/--unarchive", "archived", default=None, help="Leave the run out of other commands, or include it again."
)
def set(  # noqa: A001 - the name of the command
    run: str,
    runs: tuple[Path, ...],
    cache: CacheOptions,
    name: str | None,
    notes: str | None,
    tags: tuple[str, ...],
    archived: bool | None,
    out: Output,
) -> None:
    """Change a run's name, notes and tags, or archive it. RUN is a run directory, or the id of a run found in RUNS.

    This edits the sidecar of the run. A training that is running keeps the edit, and the next export sends it.
    """
    from bridge.rundir.edit import edit_run

    if not tags and all(value is None for value in (name, notes, archived)):
        raise click.UsageError("Nothing to change: give --name, --notes, --tag, --archive or --unarchive.")
    for tag in tags:
        if tag[:1] not in ("+", "-") or not tag[1:]:
            raise click.UsageError(f"--tag takes +TAG or -TAG, not {tag!r}.")
    record = find_run(run, runs, cache, out)
    edit_run(
        Path(record.run_dir),
        name=name,
        notes=notes,
        add_tags=[tag[1:] for tag in tags if tag[0] == "+"],
        remove_tags=[tag[1:] for tag in tags if tag[0] == "-"],
        archived=archived,
    )
    changed = [what for what, value in (("name", name), ("notes", notes), ("archived", archived)) if value is not None]
    changed += ["tags"] if tags else []
    if out.json:
        out.result_json({"version": 1, "run_dir": record.run_dir, "changed": changed})
    else:
        out.result(f"{record.run_id}: changed {', '.join(changed)}. The next export sends it.")

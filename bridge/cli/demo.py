"""`bridge demo`: train small real runs."""

from __future__ import annotations

import time
from pathlib import Path

import click

from bridge.cli.command import command
from bridge.cli.output import Exit, Output


@command("demo", example="bridge demo demo-runs", exits=(Exit.DONE, Exit.NOTHING_DONE, Exit.USAGE))
@click.argument("folder", metavar="[DIR]", default="demo-runs", type=click.Path(file_okay=False, path_type=Path))
def demo(folder: Path, out: Output) -> None:
    """Train small real runs in DIR (default: demo-runs), to have something to look at."""
    from bridge.demo import DEMO_RUNS, train_demo

    began = time.monotonic()
    trained = train_demo(folder, say=out.say)
    seconds = time.monotonic() - began
    if out.json:
        paths = {run_id: str(folder / run_id) for run_id in DEMO_RUNS}
        out.result_json({"version": 1, "trained": trained, "seconds": round(seconds, 3), "runs": paths})
        return
    if trained:
        out.result(f"{len(DEMO_RUNS)} runs in {folder}, trained in {seconds:.0f} s.")
    else:
        out.result(f"{folder} already holds the demo's {len(DEMO_RUNS)} runs.")
    out.say(f"Next: bridge ls {folder}, or bridge export {folder} --to tensorboard, or --to mlflow.")

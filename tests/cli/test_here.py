"""Runs and targets share one folder, and `bridge export .` finds only the runs."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from PIL import Image

from bridge.rundir import discover
from tests.cli.calling import call
from tests.run_dirs import make_run

if TYPE_CHECKING:
    from pathlib import Path


def export(folder: Path, target: str) -> dict[str, str]:
    """Return what `bridge export .` did in `folder`, where it runs, by run directory."""
    code, out, err = call("export", ".", "--to", target, "--json", MLFLOW_TRACKING_URI="")
    assert code == 0, err
    return {os.path.relpath(run["path"], folder): run["action"] for run in json.loads(out)["runs"]}


def test_exporting_the_working_directory_twice_finds_the_runs_and_only_them(tmp_path: Path) -> None:
    """Copies of metrics.csv and sidecar.json in tb_logs and mlruns are not runs."""
    ours = make_run(tmp_path / "ours", [{"step": 0, "acc": 0.5}])
    (ours / "media" / "val").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(ours / "media" / "val" / "00000000_0.png")
    event = {"step": 0, "tag": "val", "type": "image", "path": "media/val/00000000_0.png"}
    (ours / "media.jsonl").write_text(f"{json.dumps(event)}\n")
    stock = make_run(tmp_path / "lightning_logs" / "version_0", [{"step": 0, "acc": 0.7}])
    (stock / "sidecar.json").unlink()
    for name in ("heartbeat", "metrics.csv"):
        os.utime(stock / name, (1775826000, 1775826000))
    both = {"ours": "new", "lightning_logs/version_0": "new"}
    assert (export(tmp_path, "tensorboard"), export(tmp_path, "mlflow")) == (both, both)
    assert {"tb_logs", "mlflow.db", "mlruns"} <= {path.name for path in tmp_path.iterdir()}
    assert list((tmp_path / "mlruns").rglob("sidecar.json")) != []
    again = dict.fromkeys(both, "unchanged")
    assert (export(tmp_path, "tensorboard"), export(tmp_path, "mlflow")) == (again, again)
    assert sorted(discover([tmp_path])) == [stock, ours]

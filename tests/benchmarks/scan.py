"""Scan a tree of run directories with ours and the original RegistryLogger's scanner, first and with nothing new."""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from bridge.registry.store import Store, scan
from tests.benchmarks.rows import OURS, best_in_turn, row
from tests.run_dirs import CREATED_S, write_metrics, write_sidecar
from tests.rundir.event_writing import START, write_events

ORIGINAL = "the original's way"
PROMISED = {"first scan": 1.5, "scan with nothing new": 4.0}


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure both scanners in turn over one tree of 10,000 finished runs (quick: 1,000), then one of event files."""
    # A small tree takes a tenth of a second, in which a busy machine weighs more.
    runs, rounds = (1_000, 25) if quick else (10_000, 3)
    with tempfile.TemporaryDirectory(prefix="bridge-bench-") as folder:
        root = Path(folder).resolve() / "runs"
        make_tree(root, runs)
        best: dict[tuple[str, str], float] = {}
        for round_ in range(rounds):
            ours, theirs = Path(folder) / f"runs-{round_}.sqlite", Path(folder) / f"original-{round_}.sqlite"
            for work in PROMISED:
                ways = {OURS: partial(our_scan, root, ours), ORIGINAL: partial(original_scan, root, theirs)}
                for who, seconds in best_in_turn(1, ways).items():
                    best[work, who] = min(best.get((work, who), seconds), seconds)
        return [
            *(
                row(work, who, seconds, runs, "runs", **({"at_least": PROMISED[work]} if who == ORIGINAL else {}))
                for (work, who), seconds in best.items()
            ),
            *_event_files(Path(folder).resolve()),
        ]


def _event_files(folder: Path) -> list[dict[str, Any]]:
    """Measure the scan of 2,000 folders of event files with nothing new, in turn with as many other runs."""
    points = [("loss", step, 0.5, START + step) for step in range(10)]
    for number in range(2_000):
        path = write_events(folder / "events" / f"{number // 100:03d}" / f"run-{number:05d}", 0, points)
        os.utime(path, (START, START))
    make_tree(folder / "others", 2_000)
    ways = {
        who: partial(our_scan, folder / name, folder / f"{name}.sqlite")
        for who, name in ((OURS, "events"), ("as many of RegistryLogger", "others"))
    }
    best_in_turn(1, ways)
    work = "scan of 2,000 folders of event files with nothing new"
    return [
        row(work, who, seconds, 2_000, "runs", **({} if who == OURS else {"at_least": 0.8}))
        for who, seconds in best_in_turn(5, ways).items()
    ]


def make_tree(root: Path, runs: int) -> None:
    """Write `runs` run directories, a hundred to a folder, each as a finished training leaves it."""
    names = ("epoch", "train/acc", "train/loss", "val/acc", "val/loss")
    for number in range(runs):
        path = root / f"sweep-{number // 100:03d}" / f"run-{number:05d}"
        values = dict.fromkeys(names, number / runs)
        hparams = {"lr": 0.1 / (number % 9 + 1), "model.name": "resnet18", "model.layers": 18, "seed": number}
        times = {"created_at": CREATED_S, "ended_at": CREATED_S + 3600, "updated_at": CREATED_S + 3600}
        write_sidecar(path, tags=["sweep:12"], notes="baseline", hparams=hparams, summary=values, **times)
        stats = {name: {"last": value, "min": value, "max": value, "count": 100} for name, value in values.items()}
        write_metrics(path, [*names, "step"], [])
        summary = {"schema_version": 1, "rows": 0, "step": 100, "epoch": 9, "metrics": stats}
        (path / "summary.json").write_text(json.dumps(summary))
        (path / "hparams.yaml").write_text("{}\n")
        (path / "heartbeat").touch()
        (path / "checkpoints").mkdir()
        (path / "checkpoints" / "epoch=9-step=100.ckpt").touch()
        (path / "media" / "val__samples").mkdir(parents=True)
        for step in range(3):
            (path / "media" / "val__samples" / f"{step:08d}_0.png").touch()


def our_scan(root: Path, database: Path) -> None:
    """Scan as `bridge scan` does."""
    with Store.open(database) as store:
        scan(str(root), store)


def original_scan(root: Path, database: Path) -> None:
    """Scan as the original does: rglob, stat and parse each sidecar, check liveness, upsert one by one."""
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(_ORIGINAL_TABLE)
    seen = set()
    for sidecar in root.rglob("sidecar.json"):
        mtime = sidecar.stat().st_mtime
        data = json.loads(sidecar.read_text(encoding="utf-8"))
        run_dir = str(sidecar.parent)
        seen.add(run_dir)
        heartbeat = sidecar.parent / "heartbeat"
        beat = heartbeat.stat().st_mtime if heartbeat.exists() else None
        alive = data["status"] == "running" and beat is not None and time.time() - beat < 180
        known = connection.execute("SELECT sidecar_mtime FROM runs WHERE run_dir = ?", (run_dir,)).fetchone()
        if known is not None and known[0] >= mtime:
            connection.execute("UPDATE runs SET alive = ?, heartbeat = ? WHERE run_dir = ?", (alive, beat, run_dir))
            continue
        connection.execute(_ORIGINAL_UPSERT, (run_dir, *_original_fields(data), alive, beat, mtime))
    for (run_dir,) in connection.execute("SELECT run_dir FROM runs").fetchall():
        if run_dir not in seen:
            connection.execute("UPDATE runs SET orphaned = 1 WHERE run_dir = ?", (run_dir,))
    connection.commit()
    connection.close()


_ORIGINAL_COLUMNS = (
    "run_dir", "run_id", "status", "created_at", "ended_at", "updated_at", "tags", "notes", "hparams", "summary",
    "checkpoint_path", "alive", "heartbeat", "sidecar_mtime",
)  # fmt: skip
_ORIGINAL_TABLE = (
    f"CREATE TABLE IF NOT EXISTS runs ({', '.join(_ORIGINAL_COLUMNS)}, orphaned DEFAULT 0, PRIMARY KEY (run_dir))"
)
_ORIGINAL_UPSERT = (
    f"INSERT INTO runs ({', '.join(_ORIGINAL_COLUMNS)}) VALUES ({', '.join('?' * len(_ORIGINAL_COLUMNS))})"
    f" ON CONFLICT (run_dir) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _ORIGINAL_COLUMNS[1:])}"
)


def _original_fields(data: dict[str, Any]) -> tuple[Any, ...]:
    ended_at = data["ended_at"]
    return (
        data["run_id"],
        data["status"],
        datetime.fromtimestamp(data["created_at"], UTC).isoformat(),
        ended_at and datetime.fromtimestamp(ended_at, UTC).isoformat(),
        datetime.fromtimestamp(data["updated_at"], UTC).isoformat(),
        json.dumps(data["tags"]),
        data["notes"],
        json.dumps(data["hparams"]),
        json.dumps(data["summary"]),
        data["checkpoint_path"],
    )

"""A live view of run directories on a read-only file system, watched by strace."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.live.test_tensorboard import everything, make_runs
from tests.live.test_versions import ask as answer_of
from tests.require import require
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CALLS = (
    "open,openat,creat,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,link,linkat,symlink,symlinkat,truncate"
)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def watched(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, Path]]:
    """Yield the address of `bridge view --to ...` on a read-only mount, and the log of its system calls."""
    strace, unshare = shutil.which("strace"), shutil.which("unshare")
    require(strace is not None and unshare is not None and os.geteuid() == 0, "strace, unshare and root")
    runs, here = make_runs(tmp_path), tmp_path / "here"
    here.mkdir()
    (tmp_path / "cache").mkdir()
    log, port = tmp_path / "calls", free_port()
    view = f"{sys.executable} -m bridge view {runs} --to {request.param} --no-open --port {port}"
    script = (
        f"mount --bind {runs} {runs} && mount -o remount,bind,ro {runs} && ! touch {runs}/x 2>&1 && "
        f"exec {strace} -f -y -qq -o {log} -e trace={CALLS} {view}"
    )
    environment = os.environ | {
        "BRIDGE_CACHE_DIR": str(tmp_path / "cache"),
        "TMPDIR": str(tmp_path / "cache"),  # for the lock of the port
        "HOME": str(here),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [str(unshare), "-m", "sh", "-c", script]
    with subprocess.Popen(command, cwd=here, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            lines = iter(process.stdout.readline, "")
            address = next(line for line in lines if line.startswith("http"))
            yield address.partition("#")[0].strip().rstrip("/"), log
        finally:
            _end_tracees(process.pid)
            process.wait(60)
    assert list(here.iterdir()) == []


def _end_tracees(pid: int) -> None:
    """End `bridge view` below strace as Ctrl-C does; strace ends with it."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        os.kill(int(child), signal.SIGINT)


def written(log: Path) -> set[str]:
    """Return the paths that the calls in the log opened for writing, or made, moved or removed."""
    found = set()
    for line in log.read_text(errors="replace").splitlines():
        call = re.search(r"(\w+)\((.*)\)\s+= (\d+)(?:<(.*)>)?$", line)
        if call is None:
            continue  # it failed, or another thread's line interrupts it
        name, arguments, _, opened = call.groups()
        if name not in ("open", "openat", "creat"):
            # Each path, below the folder that strace names before it.
            parts = re.findall(r'(?:<([^>]*)>, )?"([^"]*)"', arguments)
            found.update(os.path.join(folder, path) for folder, path in parts)  # noqa: PTH118 - as the kernel does it
        elif re.search(r"O_WRONLY|O_RDWR|O_CREAT", arguments) or name == "creat":
            found.add(opened or arguments)
    return found


def check(log: Path, tmp_path: Path) -> None:
    """Check that nothing was written outside of the cache, no event file, and no database with metrics."""
    cache = tmp_path / "cache"
    harmless = ("/dev/", "/proc/", "pipe:", "socket:", "anon_inode:", str(cache))
    assert sorted(path for path in written(log) if not path.startswith(harmless)) == []
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert files != []
    assert [path for path in files if "tfevents" in path.name] == []
    for path in files:
        if path.read_bytes()[:6] == b"SQLite":
            with sqlite3.connect(path) as database:
                tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
            assert "metrics" not in tables


@pytest.mark.parametrize("watched", ["tensorboard"], indirect=True)
def test_tensorboard_writes_to_the_cache_alone(watched: tuple[str, Path], tmp_path: Path) -> None:
    """Every dashboard of TensorBoard has its data, and no file outside of the cache is written."""
    address, log = watched
    shown = everything(address)
    assert shown["runs"] == ["one", "three", "two"]
    assert all(shown[kind] for kind in ("scalars", "images", "texts", "hparams"))
    with urllib.request.urlopen(address, timeout=60) as page:
        assert b"<title>TensorBoard" in page.read()
    check(log, tmp_path)


@pytest.mark.parametrize("watched", ["mlflow"], indirect=True)
def test_mlflow_writes_to_the_cache_alone(watched: tuple[str, Path], tmp_path: Path) -> None:
    """The table, a chart, a file, a picture and its preview are served, and no file outside of the cache is written."""
    address, log = watched

    ask = partial(answer_of, address)
    api = "ajax-api/2.0/mlflow"
    assert b"<title>MLflow" in ask("")
    (experiment,) = json.loads(ask(f"{api}/experiments/search", {"max_results": 10}))["experiments"]
    ids = {"experiment_ids": [experiment["experiment_id"]]}
    found = json.loads(ask(f"{api}/runs/search", {**ids, "max_results": 10}))["runs"]
    assert sorted(run["info"]["run_name"] for run in found) == ["one", "three", "two"]
    run_id = next(run["info"]["run_id"] for run in found if run["info"]["run_name"] == "one")
    chart = json.loads(
        ask(f"{api}/metrics/get-history-bulk-interval", run_ids=run_id, metric_key="loss", max_results=320)
    )
    assert len(chart["metrics"]) == 20
    files = json.loads(ask(f"{api}/artifacts/list", run_id=run_id, path="images"))["files"]
    paths = [file["path"] for file in files]
    assert len(paths) == 6
    pictures = [ask("get-artifact", run_id=run_id, path=path)[:4] for path in paths]
    assert set(pictures) == {b"RIFF", b"\x89PNG"}
    assert b"***" in ask("get-artifact", run_id=run_id, path="sidecar.json")
    check(log, tmp_path)

"""Run the commands of the documentation with real servers in place of those that it names."""

from __future__ import annotations

import atexit
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
import traceback
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.__main__ import main
from tests.fixtures.mlflow_server import start_mlflow_server
from tests.servers import free_port
from tests.zygote import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

    from tests.zygote import Zygote

OURS = Path(sys.executable).parent

SERVER = "https://mlflow.example.org"
DATABASE = "postgresql://mlflow@db/mlflow"
SCHEDULER, SCHEDULER_FILE = "tcp://scheduler:8786", "/shared/scheduler.json"
PROGRAM, DATA = "/opt/bridge/bin/bridge", "/data/"
PORT = "--port 5001"
_VIEWS = {("tensorboard", False), ("mlflow", False)}
"""The user interfaces that need no start: of which target, and with an export or live; test_view.py starts the live."""

MODEL = """
from lightning.pytorch.demos.boring_classes import BoringModel


class Model(BoringModel):
    def on_train_start(self):
        self.trainer.should_stop = True


model = Model()
"""
"""What a block that trains a `model` of the reader's own is given: it trains for one epoch."""


@contextmanager
def stand_ins(text: str, folder: Path, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Yield what stands in `folder` for each machine that `text` names.

    Only what is named is started, and it ends with the context.
    """
    found = {PORT: f"--port {free_port()}", PROGRAM: str(OURS / "bridge"), DATA: f"{folder}/"}
    if DATABASE in text:
        found[DATABASE] = request.getfixturevalue("postgres_uri")
    if SCHEDULER in text:
        cluster = request.getfixturevalue("dask_cluster")
        found |= {SCHEDULER: cluster.address, SCHEDULER_FILE: str(cluster.scheduler_file)}
    server = start_mlflow_server(found[DATABASE], folder / "server") if SERVER in text else None
    try:
        yield found | ({SERVER: server.uri} if server else {})
    finally:
        if server:
            server.stop()


def put_in(text: str, names: dict[str, str]) -> str:
    for name, real in names.items():
        text = text.replace(name, real)
    return text


def reader(programs: Path = OURS) -> dict[str, str]:
    """Return a reader's environment.

    It finds `programs`, opens pages in the browser `true`, and sets nothing of ours.
    """
    mine = {key: value for key, value in os.environ.items() if not key.startswith(("BRIDGE_", "SLURM_"))}
    return mine | {"PATH": f"{programs}{os.pathsep}{mine['PATH']}", "BROWSER": "true", "PYTHONUNBUFFERED": "1"}


def run_command(command: str, folder: Path, environment: dict[str, str], zygote: Zygote | None = None) -> None:
    """Run `command` in `folder` and assert that it succeeds; one that stays until Ctrl-C must have started its work.

    With `zygote` a command of ours runs in a child of it. Commands that set up or build the project, `pip install` and
    `make`, are tested in test_new_user.py. A server takes seconds to start, so each user interface is started once,
    those of live views in test_view.py; test_every_block_of_a_page_is_well_formed checks the options of every view.
    """
    words = shlex.split(command, comments=True)
    if words[0] in ("pip", "make"):
        return
    if words[:2] == ["bridge", "view"]:
        view = ("mlflow" if "mlflow" in words else "tensorboard", bool({"--logdir", "--tracking-uri"} & set(words)))
        if view not in _VIEWS:
            _VIEWS.add(view)
            _stay(words, folder, environment, _page_answers)
    elif "--follow" in words and "--until-done" not in words:
        _stay(words, folder, environment, _all_is_there)
    elif zygote and Path(words[0]).name in ("bridge", "python"):
        run_words(words, folder, environment, zygote)
    else:
        subprocess.run(["bash", "-c", command], cwd=folder, env=environment, check=True, timeout=200)


def run_python(text: str, folder: Path, zygote: Zygote) -> None:
    """Run a block of Python in `folder` as a script."""
    script = folder / "block.py"
    script.write_text((MODEL if re.search(r"\bmodel\b", text) else "") + text)
    run_words(["python", str(script)], folder, reader(), zygote)
    script.unlink()


def run_words(words: list[str], folder: Path, environment: dict[str, str], zygote: Zygote) -> str:
    """Run `bridge ...` or `python FILE ...` in a child of `zygote`, assert that it succeeds, and return its output."""
    log = folder / "output.log"
    (code,) = zygote.run(Task(_child, (words, folder, environment, log)))
    assert code == 0, f"{shlex.join(words)}\n{code}\n{log.read_text()}"
    return log.read_text()


def _child(words: list[str], folder: Path, environment: dict[str, str], log: Path) -> object:
    """Do what `bridge ...` or `python FILE ...` does, in a child of the zygote, and return the exit code."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    with log.open("wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    code: object = 0
    try:
        if Path(words[0]).name == "bridge":
            sys.argv = words
            main()
        else:
            sys.argv = words[1:]
            sys.path.insert(0, str(folder))
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # noqa: BLE001 - shown with the output
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()  # a child of the zygote ends without them
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _stay(words: list[str], folder: Path, environment: dict[str, str], at_work: Callable[[str], bool]) -> None:
    """Start a command that stays, wait until its output shows it `at_work`, and press Ctrl-C."""
    log = folder / "stays.log"
    with (
        log.open("w") as output,
        subprocess.Popen(words, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        try:
            end = time.monotonic() + 100
            while not at_work(log.read_text()):
                assert process.poll() is None, f"{shlex.join(words)} ended by itself\n{log.read_text()}"
                assert time.monotonic() < end, f"{shlex.join(words)} does not get to work\n{log.read_text()}"
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            assert process.returncode == (0 if words[1] == "view" else 130), log.read_text()
        finally:
            process.kill()


def _page_answers(printed: str) -> bool:
    """Assert that the address printed by `bridge view` answers."""
    found = re.search(r"^http://127\.0\.0\.1:\d+/", printed, re.M)
    if found:
        urllib.request.urlopen(found[0], timeout=30).close()
    return found is not None


def _all_is_there(printed: str) -> bool:
    """Assert that a follower has sent the runs that it found."""
    return "new" in printed

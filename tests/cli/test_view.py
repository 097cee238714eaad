"""`bridge view` starts real user interfaces, which answer over HTTP and end with it."""

from __future__ import annotations

import getpass
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

import pytest

from bridge.errors import UsageError
from bridge.exporters.contract import Interface
from bridge.exporters.mlflow.exporter import _live_environment
from bridge.live import LiveOptions
from bridge.view import free_port, serve, tunnel
from tests.cli.calling import call, spawn
from tests.run_dirs import make_run
from tests.servers import viewing

if TYPE_CHECKING:
    from pathlib import Path


def ask(address: str, path: str, body: Any = None, **headers: str) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json", **headers})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def _stop(_: float) -> None:
    raise KeyboardInterrupt


def is_gone(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except OSError:
        return True
    return False


def test_tensorboard_shows_the_runs_and_ends_with_the_command(tmp_path: Path, demo_runs: Path) -> None:
    """The page shows the demo's runs without an export, and after Ctrl-C nothing listens."""
    with viewing(tmp_path, demo_runs, "--to", "tensorboard") as (address, process):
        assert process.stdout is not None
        ssh = process.stdout.readline()
        runs = ask(address, "data/runs")
        tags = ask(address, "data/plugin/scalars/tags")
    assert {"preempted", "killed", "diverged", "lr-0.1"} <= set(runs)
    assert all("val/acc" in tags[run] for run in ("preempted", "lr-0.1"))
    port = urlsplit(address).port
    assert f"ssh -N -L {port}:127.0.0.1:{port} " in ssh
    assert is_gone(address)
    assert not any("tfevents" in path.name for path in tmp_path.rglob("*"))
    assert not (tmp_path / "cache" / "view").exists()


def test_a_selection_of_runs(tmp_path: Path, demo_runs: Path) -> None:
    """Selection options and --metrics work as in an export, and a selection of no runs is an error."""
    words = [demo_runs, "--to", "tensorboard", "--run-id"]
    with viewing(tmp_path, *words, "*diverged", "--metrics", "val/*") as (address, _):
        assert ask(address, "data/runs") == ["diverged"]
        tags = ask(address, "data/plugin/scalars/tags")["diverged"]
        assert {tag.partition("/")[0] for tag in tags} == {"val"}
    done = spawn("view", *words, "nothing", "--no-open", cwd=tmp_path, code=1)
    assert "no run has the run id 'nothing'" in done.stderr


def test_a_start_walks_the_folders_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the page is up each folder is listed once, since a walk over a slow file system takes long."""
    runs = tmp_path / "runs"
    make_run(runs / "a", [{"step": 0, "loss": 1.0}])
    listed: list[str] = []
    list_folder = os.scandir

    def count(path: Any) -> Any:
        listed.append(str(path))
        return list_folder(path)

    monkeypatch.setattr(os, "scandir", count)
    monkeypatch.setattr("bridge.cli.view.pause", _stop)
    assert call("view", runs, "--to", "tensorboard", "--no-open")[0] == 0
    assert [path for path in listed if path.startswith(str(runs))] == [str(runs), str(runs / "a")]


def test_another_host_is_a_warning(tmp_path: Path) -> None:
    """With --host the page listens for other machines, and a warning says who can see the runs."""
    make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 1.0}])
    with (tmp_path / "said").open("w+") as said:
        words = (tmp_path / "runs", "--to", "tensorboard", "--host", "0.0.0.0")
        with viewing(tmp_path, *words, stderr=said) as (address, _):
            port = urlsplit(address).port
            urllib.request.urlopen(f"http://{socket.gethostname()}:{port}/", timeout=30).close()
        said.seek(0)
        assert "! Every machine that can reach 0.0.0.0 can see the runs." in said.read()


def test_mlflow_shows_the_runs_in_the_view_for_training(tmp_path: Path, demo_runs: Path) -> None:
    """The link opens the experiment's runs, also for other machines with --host, and the server ends with the command.

    bridge.yaml may name the group's server and database; looking at runs does not write to them, or to the runs.
    `--heartbeat-timeout inf`, which shows no run as killed, is understood by MLflow's server.
    A project may have modules with the names of ours.
    """
    (tmp_path / "bridge.yaml").write_text(
        "mlflow: {tracking_uri: 'http://127.0.0.1:1', database_uri: 'sqlite:///s.db'}\n"
    )
    (tmp_path / "logger.py").write_text("raise ImportError('a module of a project')\n")
    options = ("--to", "mlflow", "--host", "0.0.0.0", "--heartbeat-timeout", "inf")
    # `python -m bridge` would find the project's module first. The command `bridge` does not.
    with viewing(tmp_path, demo_runs, *options, PYTHONSAFEPATH="1") as (link, _):
        address, _, page = link.partition("#")
        experiment = page.split("/")[2]
        others = f"http://{socket.gethostname()}:{urlsplit(address).port}/"
        asked = {"experiment_ids": [experiment], "max_results": 100}
        found = ask(others, "api/2.0/mlflow/runs/search", asked)
        for name in (socket.gethostname(), socket.gethostbyname(socket.gethostname())):
            page_there = f"http://{name}:{urlsplit(address).port}"  # a browser says which page asks
            assert ask(f"{page_there}/", "api/2.0/mlflow/runs/search", asked, Origin=page_there) == found
        with pytest.raises(HTTPError, match="403"):
            ask(others, "api/2.0/mlflow/runs/search", asked, Origin="http://elsewhere.example")
        edit = {"run_id": found["runs"][0]["info"]["run_id"], "key": "mlflow.note.content", "value": "mine"}
        with pytest.raises(HTTPError, match="403"):
            ask(others, "api/2.0/mlflow/runs/set-tag", edit)
    statuses = {run["info"]["run_name"]: run["info"]["status"] for run in found["runs"]}
    assert {"preempted", "killed", "diverged", "lr-0.1"} <= set(statuses)
    assert (statuses["killed"], statuses["diverged"]) == ("RUNNING", "FINISHED")
    assert page.endswith("workflowType=machine_learning&viewStateShareKey=bridge")
    assert is_gone(address)
    assert not (tmp_path / "s.db").exists()


@pytest.mark.parametrize(
    ("words", "environment", "opened"),
    [
        ((), {"DISPLAY": ":0"}, 1),
        ((), {"WAYLAND_DISPLAY": "wayland-0"}, 1),
        ((), {"BROWSER": "helper.sh"}, 1),
        ((), {}, 0),
        (("--open",), {}, 1),
        (("--no-open",), {"DISPLAY": ":0"}, 0),
    ],
)
def test_a_browser_opens_only_where_there_is_a_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], environment: dict[str, str], opened: int
) -> None:
    """On a node of a cluster a text browser would take over the terminal."""
    make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 1.0}])
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    launched: list[str] = []
    monkeypatch.setattr("click.launch", launched.append)
    monkeypatch.setattr("bridge.cli.view.pause", _stop)
    assert call("view", tmp_path / "runs", "--to", "tensorboard", *words)[0] == 0
    assert len(launched) == opened


def test_the_tunnel_leads_to_a_name_that_others_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ssh line never names localhost, which is another machine for the reader."""
    monkeypatch.setattr(socket, "getfqdn", lambda: "localhost.localdomain")
    monkeypatch.setattr(socket, "gethostname", lambda: "node07")
    assert tunnel(6006, "127.0.0.1").endswith("@node07")
    assert "-L 6006:127.0.0.1:6006 " in tunnel(6006, "0.0.0.0")
    assert "-L 6006:10.1.2.3:6006 " in tunnel(6006, "10.1.2.3")  # nothing listens at 127.0.0.1


def test_the_tunnel_of_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may run under a number that has no name."""

    def fail() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(getpass, "getuser", fail)
    assert " USER@" in tunnel(6006, "127.0.0.1")


@pytest.mark.parametrize("uri", ["./mlruns", "registry:///runs"])
def test_a_target_in_the_environment_does_not_concern_a_view_of_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    """The environment may name a store that nothing can be exported to, such as MLflow's old default."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    code, _, said = call("view", tmp_path, "--to", "mlflow", "--no-open")
    assert (code, "No runs in" in said) == (1, True)


def test_a_view_of_thousands_of_paths(tmp_path: Path) -> None:
    """Linux takes no variable of more than 128 KiB, so the options for MLflow's server are in a file."""
    options = LiveOptions(roots=[f"/data/runs/{number:0100}" for number in range(2000)])
    environment = _live_environment(options, "127.0.0.1", 5000, tmp_path)
    assert max(map(len, environment.values())) < 1000


def test_two_views_that_start_at_once_take_two_ports(tmp_path: Path) -> None:
    """A chosen port is reserved before anything listens on it, whatever the temporary folders of the two are."""
    usual = free_port(None, usual=0)
    program = f"from bridge.view import free_port; print(free_port(None, usual={usual}))"
    elsewhere = os.environ | {"TMPDIR": str(tmp_path)}
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=elsewhere)
    assert int(other.stdout) != usual


def test_a_port_that_cannot_be_had_is_wrong_usage(tmp_path: Path, demo_runs: Path) -> None:
    """A requested port that is taken is an error before a server starts."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = spawn("view", demo_runs, "--to", "tensorboard", "--port", port, "--no-open", cwd=tmp_path, code=2)
    assert f"Port {port} is taken." in done.stderr


def test_a_host_that_is_not_this_machine_is_wrong_usage() -> None:
    """The error names the address and what the system says of it."""
    with pytest.raises(UsageError, match=r"at 192\.0\.2\.1:\d+: Cannot assign requested address"):
        free_port(None, usual=6006, host="192.0.2.1")


SERVER = """
import atexit, http.server, pathlib, signal, sys
port, own, ends = int(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3] == "True"
own.touch()
atexit.register(own.unlink)
signal.signal(signal.SIGTERM, (lambda *_: sys.exit()) if ends else signal.SIG_IGN)
http.server.ThreadingHTTPServer(("127.0.0.1", port), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def server(own: Path, *, ends: bool) -> Interface:
    """Return a server that has the file `own`, and removes it when it is told to end, unless it ignores that."""
    port = free_port(None, usual=0)
    address = f"http://127.0.0.1:{port}/"
    argv = (sys.executable, "-c", SERVER, str(port), str(own), str(ends))
    return Interface(address=address, probe=address, argv=argv)


@pytest.mark.parametrize("ends", [True, False])
def test_a_server_ends_by_itself_or_is_killed(tmp_path: Path, ends: bool) -> None:
    """A server has time to remove its own files, as TensorBoard does; one that ignores the request is gone at once."""
    interface = server(tmp_path / "own", ends=ends)
    with serve(interface, tmp_path / "log"):
        assert (tmp_path / "own").exists()
        assert not is_gone(interface.address)
        began = time.monotonic()
    assert time.monotonic() - began < 3
    assert is_gone(interface.address)
    assert (tmp_path / "own").exists() != ends


def test_a_proxy_is_not_asked_for_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cluster whose environment names a proxy for HTTP, a page on this machine is found all the same."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port(None, usual=0)}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr("bridge.view.START_TIMEOUT", 20.0)
    interface = server(tmp_path / "own", ends=False)
    with serve(interface, tmp_path / "log"):
        assert (tmp_path / "own").exists()


def test_a_second_ctrl_c_leaves_no_server_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait for a server may be interrupted; it is killed all the same."""
    wait = subprocess.Popen.wait

    def interrupted(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if timeout is not None:
            raise KeyboardInterrupt
        return wait(process)

    interface = server(tmp_path / "own", ends=False)
    with pytest.raises(KeyboardInterrupt), serve(interface, tmp_path / "log"):
        monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    assert is_gone(interface.address)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_page_too(tmp_path: Path, demo_runs: Path, number: signal.Signals) -> None:
    """SIGTERM and SIGHUP leave no server behind."""
    with viewing(tmp_path, demo_runs / "diverged", "--to", "tensorboard") as (address, process):
        assert not is_gone(address)
        process.send_signal(number)
        assert process.wait(30) == 0
    assert is_gone(address)

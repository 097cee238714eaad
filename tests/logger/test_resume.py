"""A new start continues the run in its directory and keeps what people and earlier starts wrote."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from logger import RegistryLogger, RegistryLoggerWarning
from logger.media import Encoded
from logger.open_run import Settings
from logger.run_writer import open_writer
from logger.session import git_commit
from tests.logger.rows import edit_sidecar, media, read_rows, sidecar, start, steps, summary, without_time
from tests.run_dirs import CREATED, CREATED_S


def test_a_resumed_run_is_one_run(tmp_path: Path) -> None:
    """A resume keeps rows, columns, start, uid, hparams, checkpoint, unknown fields and later format numbers.

    It adds a session and sets the status to running. Only a start after the first says what it found.
    """
    for name in ("config.yaml", ".mine.tmp", ".sidecar.json.0123abcd.tmp"):
        (tmp_path / name).write_text("a: 1\n")
    (tmp_path / ".kept.0123abcd.tmp").mkdir()  # cannot be removed as a file
    options: dict[str, Any] = {"run_dir": tmp_path, "run_id": "r", "tags": ["a"], "notes": "n"}
    said: list[str] = []
    first = open_writer(Settings.make(**options), log_info=said.append)
    first.log_hparams({"lr": 0.1, "net": {"depth": 2}})
    first.log_metrics({"z": 1.0, "a": 2.0}, 7)
    first.set_checkpoint("/c/last.ckpt")
    first.finalize("failed")
    session = sidecar(tmp_path)["sessions"][0] | {"cpu": "fast"}
    edit_sidecar(tmp_path, unknown=[1], display_name="mine", schema_version=9, sessions=[session])
    (tmp_path / "summary.json").write_text(json.dumps(summary(tmp_path) | {"unknown": 1, "schema_version": 9}))
    before = sidecar(tmp_path)
    second = open_writer(Settings.make(**options), log_info=said.append)
    second.log_hparams({"net": {"width": 8}})
    second.log_metrics({"a": 3.0, "b": 4.0}, 5)
    second.save()
    after = sidecar(tmp_path)
    kept = {"run_id": "r", "tags": ["a"], "notes": "n", "checkpoint_path": "/c/last.ckpt", "time_column": "wall_time"}
    kept |= {"unknown": [1], "display_name": "mine", "schema_version": 9}
    kept |= {name: before[name] for name in ("uid", "created_at")}
    assert {name: after[name] for name in kept} == kept
    second.set_checkpoint("/c/last.ckpt")  # writes both files at once
    assert {name: summary(tmp_path)[name] for name in ("unknown", "schema_version", "step")} == {
        "unknown": 1, "schema_version": 9, "step": 5
    }  # fmt: skip
    assert (after["status"], after["ended_at"]) == ("running", None)
    assert after["hparams"] == {"lr": 0.1, "net.width": 8}
    assert yaml.safe_load((tmp_path / "hparams.yaml").read_text()) == {"lr": 0.1, "net": {"width": 8}}
    assert [session["rows"] for session in after["sessions"]] == [0, 1]
    assert after["sessions"][0] == before["sessions"][0]
    assert without_time(read_rows(tmp_path)) == [
        {"step": "7", "z": "1.0", "a": "2.0"},
        {"step": "5", "a": "3.0", "b": "4.0"},
    ]
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == "step,wall_time,z,a,b"
    assert said == [f"{tmp_path} is resumed: it holds 1 row, the last at step 7."]
    assert {path.name for path in tmp_path.glob("*.tmp")} == {".mine.tmp", ".kept.0123abcd.tmp"}  # a kill leaves files
    second.release()


def test_a_session_says_where_it_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each session's entry has host, user, pid, SLURM ids, restart count, command and commit."""
    for name, value in {"JOB_ID": "77", "ARRAY_JOB_ID": "70", "ARRAY_TASK_ID": "3", "RESTART_COUNT": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr(
        sys, "orig_argv", ["python", "train.py", "--api-key", "xyz", "--wandb_api_key=xyz", "--max_tokens=5"]
    )
    start(tmp_path).release()
    (entry,) = sidecar(tmp_path)["sessions"]
    assert entry["slurm"] == {"job_id": "77", "array_job_id": "70", "array_task_id": "3"}
    assert (entry["restart_count"], entry["rows"], entry["host"]) == (2, 0, socket.gethostname())
    assert entry["command"] == "python train.py --api-key ... --wandb_api_key=... --max_tokens=5"
    assert {"started_at", "user", "pid"} <= entry.keys()


def test_the_commit_is_that_of_the_working_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit is found from a folder below the work tree, also in a hook; None without a commit or a repository."""

    def git(*arguments: str) -> str:
        author = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *author, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    (tmp_path / "src").mkdir()
    assert git_commit(tmp_path) is None
    git("init", "--quiet")
    assert git_commit(tmp_path) is None
    git("commit", "--quiet", "--allow-empty", "-m", "one")
    commit = git("rev-parse", "HEAD")
    git("worktree", "add", "--quiet", "other")
    if os.getuid() == 0:  # as in a container, where the repository is another user's
        os.chown(tmp_path, 4321, -1)
        os.chown(tmp_path / ".git", 4321, -1)
    monkeypatch.setenv("GIT_DIR", ".git")  # as in a hook
    assert git_commit(tmp_path / "src") == commit
    monkeypatch.delenv("GIT_DIR")
    assert git_commit(tmp_path / "other") == commit
    (tmp_path / "other" / ".git").write_bytes(b"gitdir: /nowhere/caf\xe9\n")  # git complains in no encoding at all
    assert git_commit(tmp_path / "other") is None
    monkeypatch.setenv("PATH", str(tmp_path))  # without git
    assert git_commit(tmp_path) is None


def test_a_start_without_a_working_directory_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook whose folder was deleted can open a run."""
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    start(tmp_path / "run").release()
    (entry,) = sidecar(tmp_path / "run")["sessions"]
    assert "git_commit" not in entry


@pytest.mark.parametrize(
    ("field", "first", "edited", "given", "expected"),
    [
        ("tags", ["a", "b"], ["a", "b"], ["a", "b"], ["a", "b"]),
        ("tags", ["a", "b"], ["b"], ["a", "b"], ["b"]),  # a person took a tag away: it stays away
        ("tags", ["a", "b"], ["b", "mine"], ["a", "b", "c"], ["b", "mine", "c"]),  # one that is given anew comes
        ("tags", ["a", "b"], [], ["a", "b"], []),
        ("tags", [], "base", ["more"], ["base", "more"]),  # one text is one tag, as for readers
        ("notes", "n", "n", "n", "n"),
        ("notes", "n", "edited", "n", "edited"),
        ("notes", "n", "edited", "new", "edited"),
        ("notes", "n", "n", "new", "new"),
        ("notes", "n", "", "n", ""),
        ("notes", "n", "n", "", "n"),
    ],
)
def test_tags_and_notes_that_people_changed_stay(
    tmp_path: Path, field: str, first: Any, edited: Any, given: Any, expected: Any
) -> None:
    """A start adds its tags and notes once: a later start restores none that people removed or rewrote."""
    start(tmp_path, **{field: first}).release()
    edit_sidecar(tmp_path, **{field: edited})
    start(tmp_path, **{field: given}).release()
    assert sidecar(tmp_path)[field] == expected


GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("completed", (5, 0.1, 0.8999999761581421, 1)),
        ("requeued", (11, 0.1, 1.0, 0)),
        ("killed", (4, 0.1, 1.0, 0)),
        ("without-summary", (4, 0.1, 1.0, 0)),
    ],
)
def test_a_directory_of_the_original_goes_on_under_its_own_identity(
    tmp_path: Path, name: str, loss: tuple[int, float, float, int]
) -> None:
    """It gets no uid, its facts stay, new rows get times, and ISO times become floats.

    Rows are counted again, because the original's summary covers one start only or has NaN.
    """
    run_dir = tmp_path / name
    shutil.copytree(GOLDEN / f"original-{name}" / "run", run_dir)
    edit_sidecar(run_dir, created_at=CREATED)
    before, rows = sidecar(run_dir), read_rows(run_dir)
    writer = start(run_dir, run_id=before["run_id"])
    writer.log_metrics({"train/loss": 0.1}, 99)
    writer.finalize("completed")
    stats = summary(run_dir)["metrics"]["train/loss"]
    assert (stats["count"], stats["min"], stats["max"], stats["nan_count"]) == loss
    after = sidecar(run_dir)
    kept = {name: before[name] for name in ("run_id", "tags", "notes", "hparams")}
    assert {name: after[name] for name in kept} == kept
    assert ("uid" in after, after["created_at"], after["time_column"]) == (False, CREATED_S, "wall_time")
    assert after["sessions"][0]["rows"] == len(rows)
    *held, new = read_rows(run_dir)
    assert (held, new["train/loss"], float(new["wall_time"]) > 1e9) == (rows, "0.1", True)


def test_a_stock_csvlogger_directory_is_continued(tmp_path: Path) -> None:
    """Rows and hparams of Lightning's CSVLogger stay, also hparams that need Python's YAML tags."""
    (tmp_path / "metrics.csv").write_bytes(b"a,epoch,step\r\n1.0,0,4\r\n")
    (tmp_path / "hparams.yaml").write_text(
        "lr: 0.1\nkind: !!python/object/apply:collections.OrderedDict\n- - - a\n    - 1\n"
    )
    writer = start(tmp_path)
    writer.log_metrics({"a": 2.0}, None)
    writer.finalize("completed")
    assert sidecar(tmp_path)["hparams"] == {"lr": 0.1, "kind.a": 1}
    assert steps(tmp_path) == [4, 5]


@pytest.mark.parametrize(("name", "content"), [("sidecar.json", '{"uid": '), ("hparams.yaml", "a: [")])
def test_a_file_that_cannot_be_read_is_kept_aside(tmp_path: Path, name: str, content: str) -> None:
    """A torn file is renamed with a warning, and the run continues with what the others hold."""
    first = start(tmp_path)
    first.log_hparams({"a": 1})
    first.release()
    (tmp_path / name).write_text(content)
    with pytest.warns(RegistryLoggerWarning, match="cannot be read"):
        writer = start(tmp_path)
    writer.log_hparams({"b": 2})
    writer.release()
    assert (tmp_path / f"{name}.1").read_text() == content
    found = sidecar(tmp_path)
    assert (found["status"], found["hparams"]) == ("running", {"a": 1, "b": 2})


@pytest.mark.parametrize(
    ("host", "pid", "beat", "warned"),
    [("elsewhere", 1, None, True), (None, 1, None, True), (None, 2**22 + 1, None, False), (None, 1, 1.0, False)],
)
def test_a_fresh_heartbeat_of_another_process_is_reported(
    tmp_path: Path, host: str | None, pid: int, beat: float | None, warned: bool
) -> None:
    """A start warns of another host or living process that may be writing, not of a dead one or an old heartbeat."""
    start(tmp_path).release()
    edit_sidecar(
        tmp_path, sessions=[sidecar(tmp_path)["sessions"][0] | {"pid": pid} | ({"host": host} if host else {})]
    )
    if beat is not None:
        os.utime(tmp_path / "heartbeat", (beat, beat))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        start(tmp_path).release()
    assert [f"process {pid} on {host or socket.gethostname()}" in str(warning.message) for warning in told] == [
        True
    ] * warned


def test_a_run_of_another_id_keeps_its_own(tmp_path: Path) -> None:
    """A start with another run_id warns, and the run keeps its id."""
    start(tmp_path, run_id="one").release()
    with pytest.warns(RegistryLoggerWarning, match="'one'"):
        start(tmp_path, run_id="two").release()
    assert sidecar(tmp_path)["run_id"] == "one"


def test_a_torn_line_of_media_does_not_swallow_the_next_event(tmp_path: Path) -> None:
    """A torn last line is cut off, and later items get new lines and files."""
    first = start(tmp_path)
    first.log_media("a", "image", lambda: Encoded("png", b"1"), step=3, caption=None)
    first.release()
    whole = (tmp_path / "media.jsonl").read_text()
    (tmp_path / "media.jsonl").write_text(whole + '{"step": 3, "tag": "a", "pa')
    second = start(tmp_path)
    second.log_media("a", "image", lambda: Encoded("jpg", b"2"), step=3, caption="c")
    second.release()
    assert [(event["path"], event["session"], event["caption"]) for event in media(tmp_path)] == [
        ("media/a/00000003_0.png", 0, None),
        ("media/a/00000003_1.jpg", 1, "c"),
    ]
    assert (tmp_path / "media/a/00000003_0.png").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("text", "stats", "rows"),
    [
        pytest.param(
            b"step,a,b\r\n0,1,\r\n3.5,2,\r\n1,3\r\n2,4,,5\r\n,6,\r\n99999999999999999999,7,\r\n"
            b'7,8\r9,\r\n8,"1\r\n2",5" x\r\n9,,10\r\n',
            {"a": (1, 1), "b": (1, 10)},
            9,
            id="rows with a wrong number of cells, a bad step or no CSV, and one in a quoted cell",
        ),
        pytest.param(
            b"step,a\r\n0,1\r\nstep,a,bbbbbbbbbbbbbbbbbbb\r\n2,3,5\r\n9,4,6\r\n",
            {"a": (3, 4), "bbbbbbbbbbbbbbbbbbb": (2, 6)},
            3,
            id="two files that were put together",
        ),
    ],
)
def test_statistics_count_what_readers_count(
    tmp_path: Path, text: bytes, stats: dict[str, tuple[int, float]], rows: int
) -> None:
    """Statistics cover the metrics of all headers, and only the cells that readers take."""
    (tmp_path / "metrics.csv").write_bytes(text)
    start(tmp_path).finalize("completed")
    found = summary(tmp_path)
    assert {name: (of["count"], of["last"]) for name, of in found["metrics"].items()} == stats
    assert (found["step"], found["rows"], sidecar(tmp_path)["sessions"][0]["rows"]) == (9, rows, rows)


@pytest.mark.parametrize("covered", [300, 200])
def test_a_start_does_not_read_the_rows_that_the_summary_covers(tmp_path: Path, covered: int) -> None:
    """Hundreds of thousands of rows would take seconds. A row that somebody edited shows which ones were read."""
    writer = start(tmp_path)
    for step in range(300):
        writer.log_metrics({"a": 1.0}, step)
    writer.release()
    data = (tmp_path / "metrics.csv").read_bytes()
    (tmp_path / "metrics.csv").write_bytes(data.replace(b",1.0\r\n", b",9.0\r\n", 1))
    held = summary(tmp_path)
    held["rows"] = held["metrics"]["a"]["count"] = covered
    (tmp_path / "summary.json").write_text(json.dumps(held))
    start(tmp_path).finalize("completed")
    found = summary(tmp_path)["metrics"]["a"]
    assert (found["count"], found["max"]) == (300, 1.0)


def test_a_second_start_in_one_process_takes_over(tmp_path: Path) -> None:
    """A second logger writes the first one's rows before it continues, and the first stays usable."""
    first, second = (RegistryLogger(tmp_path / "run", "r") for _ in range(2))
    for number, logger in enumerate((first, second, first)):
        logger.log_metrics({"a": float(number)})
    first.finalize("success")
    assert steps(tmp_path / "run") == [0, 1, 2]
    assert len(sidecar(tmp_path / "run")["sessions"]) == 2

"""Discovery enters the right folders, in order, and names what it skips."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from bridge.errors import UsageError
from bridge.rundir import discover, runs_within
from tests.fixtures.permissions import unprivileged
from tests.run_dirs import write_sidecar

if TYPE_CHECKING:
    from pathlib import Path


def found(*roots: Path) -> list[str]:
    """Return the run directories below the first root, relative to it."""
    return [str(path.relative_to(roots[0])) for path in discover(roots)]


def skipped(*roots: Path) -> list[tuple[str, str]]:
    """Return (path relative to the first root, reason) of the skipped folders."""
    return [(one.path.removeprefix(f"{roots[0]}/"), one.reason) for one in discover(roots).skipped]


def test_order_and_depth(tmp_path: Path) -> None:
    """Run directories come in order of their names, and a run does not hide runs below it."""
    for name in ("b/2", "b/10", "a", "c/d/e", "a/inner"):
        write_sidecar(tmp_path / name)
    assert found(tmp_path) == ["a", "a/inner", "b/10", "b/2", "c/d/e"]


def test_media_and_checkpoints_hide_runs_only_inside_a_run(tmp_path: Path) -> None:
    """Folders called media or checkpoints are entered except in a run, where hidden runs are named."""
    for name in ("media/a", "checkpoints", "run", "run/media/x", "run/checkpoints/y/z", "run/checkpoints/1/2/3"):
        write_sidecar(tmp_path / name)
    assert found(tmp_path) == ["checkpoints", "media/a", "run"]
    reason = f"of the run {tmp_path}/run; to read it, give its path"
    assert [(one.path.removeprefix(f"{tmp_path}/"), one.reason) for one in runs_within(tmp_path / "run")] == [
        ("run/checkpoints/y/z", f"is in the checkpoints {reason}"),
        ("run/media/x", f"is in the media {reason}"),
    ]
    assert found(tmp_path / "run" / "media") == ["x"]


def test_what_is_never_entered(tmp_path: Path) -> None:
    """MLflow's folders, hidden ones and those marked by an exporter are not entered."""
    for name in ("mlruns/a", "mlartifacts/a", ".hidden/a", "tb_logs/copy", "good"):
        write_sidecar(tmp_path / name)
    (tmp_path / "tb_logs" / "copy" / ".bridge-target").touch()
    assert (found(tmp_path), skipped(tmp_path)) == (["good"], [])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("loss,step\n", None),
        ("step\n", None),
        ("\ufeffstep,loss\n", None),
        ("created_at,epoch,loss\n", None),
        ("created_at,loss\n", "metrics.csv has no column step, and so is not a logger's"),
        ("loss,steps\n", "metrics.csv has no column step, and so is not a logger's"),
        ("", "metrics.csv is empty"),
        ("\n", "metrics.csv is empty"),
        ("step,loss", "metrics.csv ends within its header line"),
        ("step" + ",loss" * 50_000 + "\n", "metrics.csv: the header line has 50,001 columns, more than 50,000"),
        (
            "version https://git-lfs.github.com/spec/v1\n",
            "metrics.csv is a Git LFS pointer; `git lfs pull` fetches the file",
        ),
    ],
)
def test_lightnings_own_logs(tmp_path: Path, content: str, reason: str | None) -> None:
    """A metrics.csv with a logger's columns makes a run without hparams.yaml; any other is named with the reason."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "metrics.csv").write_text(content, encoding="utf-8")
    assert found(tmp_path) == ["logs"] * (reason is None)
    assert skipped(tmp_path) == [("logs", reason)] * (reason is not None)


def test_files_that_are_none(tmp_path: Path) -> None:
    """A metrics.csv that is a folder, a pipe or a link outside makes no run, and is named."""
    for name in ("folder", "pipe", "link"):
        (tmp_path / "root" / name).mkdir(parents=True)
    (tmp_path / "metrics.csv").write_text("step\n")
    (tmp_path / "root" / "folder" / "metrics.csv").mkdir()
    os.mkfifo(tmp_path / "root" / "pipe" / "metrics.csv")
    (tmp_path / "root" / "link" / "metrics.csv").symlink_to(tmp_path / "metrics.csv")
    assert skipped(tmp_path / "root") == [
        ("folder", "metrics.csv is not a regular file"),
        ("link", "metrics.csv is a link that leads out of the run directory"),
        ("pipe", "metrics.csv is not a regular file"),
    ]


def test_what_may_not_be_read_is_named(public: Path) -> None:
    """An unreadable folder or metrics.csv is named with the reason."""
    (public / "closed").mkdir(mode=0)
    (public / "file").mkdir()
    (public / "file" / "metrics.csv").touch(mode=0)
    with unprivileged():
        assert skipped(public) == [
            ("closed", "cannot be listed: Permission denied"),
            ("file", "metrics.csv cannot be read: Permission denied"),
        ]


def test_links(tmp_path: Path) -> None:
    """Links are followed, loops end, and each real path comes once."""
    write_sidecar(tmp_path / "outside" / "one")
    write_sidecar(tmp_path / "root" / "two")
    (tmp_path / "root" / "loop").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "to-outside").symlink_to(tmp_path / "outside")
    (tmp_path / "root" / "to-one").symlink_to(tmp_path / "outside" / "one")
    (tmp_path / "root" / "broken").symlink_to(tmp_path / "nowhere")
    roots = [tmp_path / "root", tmp_path / "root" / "two", tmp_path / "outside"]
    assert discover(roots).runs == [tmp_path / "outside" / "one", tmp_path / "root" / "two"]


def test_a_missing_root_is_a_usage_error(tmp_path: Path) -> None:
    """A root that is missing or a file is an error before the walk."""
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="nowhere does not exist"):
        discover([tmp_path, tmp_path / "nowhere"])
    with pytest.raises(UsageError, match="file is not a folder"):
        discover([tmp_path / "file"])


def test_each_folder_is_listed_once(tmp_path: Path) -> None:
    """The walk lists each folder once."""
    for number in range(2000):
        folder = tmp_path / f"{number // 100:02d}" / f"{number:04d}"
        folder.mkdir(parents=True)
        (folder / "sidecar.json").touch()
    listed = 0

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal listed
        listed += event == "os.scandir" and str(tmp_path) in str(args[0])

    sys.addaudithook(hook)
    assert len(discover([tmp_path]).runs) == 2000
    assert listed == 2021

"""Finding run directories: what is entered, what is not, and in which order."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from bridge.errors import UsageError
from bridge.rundir import discover
from tests.run_dirs import write_sidecar

if TYPE_CHECKING:
    from pathlib import Path


def found(*roots: Path) -> list[str]:
    """What is found below the first root, relative to it."""
    return [str(path.relative_to(roots[0])) for path in discover(roots)]


def test_order_and_depth(tmp_path: Path) -> None:
    """Run directories come in the order of their names; what lies within one is its own."""
    for name in ("b/2", "b/10", "a", "c/d/e", "a/inner"):
        write_sidecar(tmp_path / name)
    assert found(tmp_path) == ["a", "b/10", "b/2", "c/d/e"]


def test_a_run_directory_is_its_own_root(tmp_path: Path) -> None:
    """A root that is a run directory is found, also one whose name a walk would not enter."""
    write_sidecar(tmp_path / "media")
    assert list(discover([tmp_path / "media"])) == [tmp_path / "media"]
    assert found(tmp_path) == []


def test_what_is_never_entered(tmp_path: Path) -> None:
    """Targets, media, checkpoints and hidden folders are not entered, nor what an exporter marked as its own."""
    for name in ("mlruns/a", "mlartifacts/a", "media/a", "checkpoints/a", ".hidden/a", "tb_logs/copy", "good"):
        write_sidecar(tmp_path / name)
    (tmp_path / "tb_logs" / "copy" / ".bridge-target").touch()
    assert found(tmp_path) == ["good"]


def test_lightnings_own_logs(tmp_path: Path) -> None:
    """metrics.csv with a column `step` beside hparams.yaml is a run directory; without either it is none."""
    for name, header, hparams in (
        ("yes", "loss,step", True),
        ("no-step", "loss,steps", True),
        ("no-yaml", "step", False),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "metrics.csv").write_text(f"{header}\n")
        if hparams:
            (folder / "hparams.yaml").touch()
    assert found(tmp_path) == ["yes"]


def test_links(tmp_path: Path) -> None:
    """Links are followed, loops end, and each real path comes once."""
    write_sidecar(tmp_path / "outside" / "one")
    write_sidecar(tmp_path / "root" / "two")
    (tmp_path / "root" / "loop").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "to-outside").symlink_to(tmp_path / "outside")
    (tmp_path / "root" / "to-one").symlink_to(tmp_path / "outside" / "one")
    (tmp_path / "root" / "broken").symlink_to(tmp_path / "nowhere")
    roots = [tmp_path / "root", tmp_path / "root" / "two", tmp_path / "outside"]
    assert list(discover(roots)) == [tmp_path / "outside" / "one", tmp_path / "root" / "two"]


def test_a_missing_root_is_a_usage_error(tmp_path: Path) -> None:
    """A root that is not there, or is a file, is said before anything is walked."""
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="nowhere does not exist"):
        discover([tmp_path, tmp_path / "nowhere"])
    with pytest.raises(UsageError, match="file is not a folder"):
        discover([tmp_path / "file"])


def test_nothing_is_listed_below_a_run_directory(tmp_path: Path) -> None:
    """Of two thousand run directories none is listed, only the folders above them."""
    for number in range(2000):
        folder = tmp_path / f"{number // 100:02d}" / f"{number:04d}"
        folder.mkdir(parents=True)
        (folder / "sidecar.json").touch()
    listed = 0

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal listed
        listed += event == "os.scandir" and str(tmp_path) in str(args[0])

    sys.addaudithook(hook)
    assert len(list(discover([tmp_path]))) == 2000
    assert listed == 21

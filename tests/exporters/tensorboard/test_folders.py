"""A run gets a folder, keeps it, and is found in it again."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bridge.errors import TargetRefusedError
from bridge.exporters.tensorboard import TensorBoardExporter
from bridge.exporters.tensorboard.exporter import assign_folders, clean_folder
from bridge.options import ContentOptions
from bridge.sync.export import export_runs
from tests.deltas import make_block, make_delta, make_model_run
from tests.exporters.tensorboard.event_files import events, file_of
from tests.run_dirs import make_run

if TYPE_CHECKING:
    from bridge.model import Run

SHAPE = ContentOptions()


def suffix(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()[:6]


def run_of(tmp_path: Path, run_id: str, identity: str | None = None, start: float = 100.0) -> Run:
    identity = identity or f"uid-{run_id}"
    return make_model_run(tmp_path / "runs" / "x", run_id=run_id, name=run_id, identity=identity, start=start)


def export(logdir: Path, *runs: Run) -> list[str]:
    """Export the runs and return each one's folder."""
    exporter = TensorBoardExporter(logdir)
    exporter.prepare(runs, SHAPE)
    for run in runs:
        exporter.open(run, SHAPE).apply(make_delta(run, [make_block([0], {"loss": [1.0]})]))
    return [exporter.open(run, SHAPE).where().removeprefix(f"{logdir}/") for run in runs]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("20260410/120000/abc", "20260410/120000/abc"),
        ("a//b/./c/", "a/b/c"),
        ("../../etc/passwd", "_/_/etc/passwd"),
        ("/home/me/runs/one", "home/me/runs/one"),
        ("..", "_"),
        ("", "run"),
        ("///", "run"),
        (".hidden/x", "_hidden/x"),
        ("a\\..\\b", "a/_/b"),
        ("a\x00b\nc", "a_b_c"),
        ("größe 1 %", "größe 1 %"),
        ("tfevents/bridge-state.json", "_tf_events/_bridge-state.json"),
    ],
)
def test_a_name_as_a_folder(name: str, folder: str) -> None:
    """A name with slashes is a path that can neither leave the log directory nor hide in it."""
    assert clean_folder(name) == folder


def test_a_long_part_is_cut() -> None:
    """A part longer than file systems allow is cut, with a digest that keeps it distinct."""
    one, other = clean_folder("ä" * 300), clean_folder("ä" * 301)
    assert one != other
    assert len(one.encode()) <= 200


@pytest.mark.parametrize(
    ("younger", "older", "folders"),
    [
        (("abc", "uid-1"), ("abc", "uid-2"), [f"abc-{suffix('uid-1')}", "abc"]),
        (("A/aBC", "uid-1"), ("a/Abc", "uid-2"), [f"A/aBC-{suffix('uid-1')}", "a/Abc"]),
        (("a//b", "uid-1"), ("a/b", "uid-2"), [f"a/b-{suffix('uid-1')}", "a/b"]),
    ],
    ids=["equal", "case", "cleaned"],
)
def test_names_that_clash(tmp_path: Path, younger: tuple[str, str], older: tuple[str, str], folders: list[str]) -> None:
    """Of runs whose names are equal, also once cleaned and whatever their case, the older one keeps the name."""
    assert export(tmp_path / "logs", run_of(tmp_path, *younger, 2.0), run_of(tmp_path, *older, 1.0)) == folders


def test_a_folder_stays_with_its_run(tmp_path: Path) -> None:
    """The run that came first keeps the folder, also against an older run that comes later."""
    late = run_of(tmp_path, "abc", "uid-late", start=2.0)
    early = run_of(tmp_path, "abc", "uid-early", start=1.0)
    assert export(tmp_path / "logs", late) == ["abc"]
    assert export(tmp_path / "logs", early, late) == [f"abc-{suffix('uid-early')}", "abc"]
    assert export(tmp_path / "logs", early) == [f"abc-{suffix('uid-early')}"]


def test_a_renamed_folder_is_found_again(tmp_path: Path) -> None:
    """A folder that a person moved within the log directory still belongs to its run.

    The next export updates the trial's name in HPARAMS and writes no points.
    """
    path = make_run(tmp_path / "runs" / "abc", [{"step": 0, "loss": 1.0}], hparams={"lr": 0.1})
    logdir, moved = tmp_path / "logs", tmp_path / "logs" / "best" / "one"

    def exported() -> tuple[str, str, str]:
        (line,) = export_runs([path], TensorBoardExporter(logdir)).runs
        return str(line.action), line.reason, line.where

    assert exported() == ("new", "", str(logdir / "abc"))
    assert group_of(logdir / "abc") == "abc"
    moved.parent.mkdir()
    (logdir / "abc").rename(moved)
    scalars = file_of(moved, "scalars").stat()
    assert exported() == ("changed", "changed: folder", str(moved))
    assert group_of(moved) == "best/one"
    assert file_of(moved, "scalars").stat().st_mtime_ns == scalars.st_mtime_ns
    assert exported() == ("unchanged", "", str(moved))


def group_of(folder: Path) -> str:
    """Return the name of the session in the facts' file, as the HPARAMS page parses it."""
    from tensorboard.plugins.hparams import metadata

    (group,) = [
        metadata.parse_session_start_info_plugin_data(value.metadata.plugin_data.content).group_name
        for event in events(file_of(folder, "facts"))
        for value in event.summary.value
        if value.tag == metadata.SESSION_START_INFO_TAG
    ]
    return str(group)


def test_a_run_is_found_by_its_marker_alone(tmp_path: Path) -> None:
    """A folder without its state file is found by its marker."""
    one, two = run_of(tmp_path, "abc", "uid-1", start=1.0), run_of(tmp_path, "abc", "uid-2", start=2.0)
    export(tmp_path / "logs", one, two)
    folder = f"abc-{suffix('uid-2')}"
    (tmp_path / "logs" / folder / "bridge-state.json").unlink()
    assert assign_folders(tmp_path / "logs", [two])["uid-2"].path == folder


def test_a_copied_folder_is_an_extra(tmp_path: Path) -> None:
    """A second folder with the same marker is named and left unchanged."""
    run = run_of(tmp_path, "abc")
    export(tmp_path / "logs", run)
    shutil.copytree(tmp_path / "logs" / "abc", tmp_path / "logs" / "copy")
    known = TensorBoardExporter(tmp_path / "logs").cursors([run])[run.identity]
    assert known.cursor is not None
    assert tuple(known.extras) == (str(tmp_path / "logs" / "copy"),)


@pytest.mark.parametrize("name", ["events.out.tfevents.1700000000.host.1.0", "metrics.csv", "sidecar.json"])
def test_other_peoples_files_are_left_alone(tmp_path: Path, name: str) -> None:
    """A run gets another folder if somebody else's event files are in its own, or it is another run directory."""
    theirs = tmp_path / "logs" / "abc" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    assert export(tmp_path / "logs", run_of(tmp_path, "abc")) == [f"abc-{suffix('uid-abc')}"]
    assert list(theirs.parent.iterdir()) == [theirs]
    assert theirs.read_bytes() == b"theirs"


def test_event_files_that_others_add_stay(tmp_path: Path) -> None:
    """Event files that others add to a run's folder survive exports and rebuilds."""
    run = run_of(tmp_path, "abc")
    export(tmp_path / "logs", run)
    theirs = tmp_path / "logs" / "abc" / "events.out.tfevents.1700000000.host.1.0"
    theirs.write_bytes(b"theirs")
    exporter = TensorBoardExporter(tmp_path / "logs")
    exporter.open(run, SHAPE).rebuild([make_delta(run, [make_block([0], {"loss": [2.0]})])])
    assert theirs.read_bytes() == b"theirs"
    assert exporter.cursors([run])[run.identity].cursor is not None


def test_the_run_directory_itself_is_never_written_into(tmp_path: Path) -> None:
    """A log directory that would put event files into the run directory is refused."""
    path = tmp_path / "runs" / "abc"
    path.mkdir(parents=True)
    run = make_model_run(path)
    for logdir in (path, path / "tb"):
        with pytest.raises(TargetRefusedError, match="run directory itself"):
            export(logdir, run)
    assert list(path.iterdir()) == []


def test_a_relative_log_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative log directory is resolved when the exporter is made."""
    monkeypatch.chdir(tmp_path)
    exporter = TensorBoardExporter(Path("logs"))
    monkeypatch.chdir("/")
    assert exporter.open(run_of(tmp_path, "abc"), SHAPE).where() == str(tmp_path / "logs" / "abc")


def test_a_folder_has_and_keeps_the_runs_name(tmp_path: Path) -> None:
    """A folder has the run's name as every other place shows it. A new display name does not move it."""
    path = tmp_path / "runs" / "x"
    for name in ("best one", "another"):
        make_run(path, [{"step": 0, "loss": 1.0}], run_id="20261128/x", display_name=name)
        (line,) = export_runs([path], TensorBoardExporter(tmp_path / "logs")).runs
        assert (line.failed, line.where) == (False, str(tmp_path / "logs" / "best one"))

"""Verify over real event files: damage on disk is found, and an undamaged export is not."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from bridge.exporters import find_exporter
from bridge.verbs.export import export_runs
from bridge.verbs.verify import verify_runs
from tests.contract.test_media import run_with_images
from tests.run_dirs import make_run

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.exporters.contract import Exporter
    from bridge.verbs.verdicts import VerifyReport

ROWS = [{"step": step, "loss": 0.1 * step, "acc": step} for step in range(50)]


@pytest.fixture
def exporter(tmp_path: Path) -> Exporter:
    return find_exporter("tensorboard")(logdir=tmp_path / "tb")


@pytest.fixture
def run(tmp_path: Path, exporter: Exporter) -> Path:
    """A run with points, text, params and images, exported."""
    path = run_with_images(tmp_path / "runs" / "a")
    make_run(path, [*ROWS, {"step": 50, "phase": "done"}], hparams={"lr": 0.1, "n": 3}, tags=["t"], notes="n")
    export_runs([path], exporter)
    return path


def verify(path: Path, exporter: Exporter) -> VerifyReport:
    return verify_runs([path], exporter)


def signs(report: VerifyReport) -> list[str]:
    return [str(line.verdict) for line in report.runs]


def event_files(logdir: Path) -> list[Path]:
    return sorted(file for file in logdir.rglob("*tfevents*") if file.is_file())


def test_an_exported_run_is_the_same(run: Path, exporter: Exporter) -> None:
    """After an export every point, text and image is found equal."""
    (line,) = verify(run, exporter).runs
    assert (str(line.verdict), line.reason, line.first) == ("=", "", ())
    assert (line.compared.series, line.compared.points, line.compared.texts, line.compared.media) == (2, 100, 1, 3)
    assert not line.behind


def test_a_flipped_bit_is_found(run: Path, exporter: Exporter, tmp_path: Path) -> None:
    """A bit that changed anywhere in an event file is found: its checksum, or what it says, is wrong."""
    for file in event_files(tmp_path / "tb"):
        whole = file.read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 12)):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << (place % 8)
            file.write_bytes(damaged)
            report = verify(run, exporter)
            assert report.exit_code == 4, f"byte {place} of {file.name}"
            assert signs(report) in (["!"], ["*"])
        file.write_bytes(whole)
    assert signs(verify(run, exporter)) == ["="]


def test_a_cut_event_file_is_found(run: Path, exporter: Exporter, tmp_path: Path) -> None:
    """An event file that has lost its end is found."""
    for file in event_files(tmp_path / "tb"):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        assert signs(verify(run, exporter)) in (["!"], ["*"])
        file.write_bytes(whole)


def test_a_missing_event_file_is_found(run: Path, exporter: Exporter, tmp_path: Path) -> None:
    """An event file that is gone (scalars, or images) is found."""
    for file in event_files(tmp_path / "tb"):
        aside = file.rename(tmp_path / "aside")
        assert signs(verify(run, exporter)) in (["!"], ["*"]), file.name
        aside.rename(file)


def test_a_missing_run_is_found(run: Path, exporter: Exporter, tmp_path: Path) -> None:
    """A run whose folder is gone is only in the source."""
    shutil.rmtree(tmp_path / "tb" / "a")
    assert signs(verify(run, exporter)) == ["+"]


def test_a_second_target_of_one_run_is_found(run: Path, exporter: Exporter, tmp_path: Path) -> None:
    """A copy of a run's folder within the logdir is a second target."""
    shutil.copytree(tmp_path / "tb" / "a", tmp_path / "tb" / "b")
    report = verify(run, exporter)
    assert sorted(signs(report)) == ["-", "="]
    assert report.exit_code == 4


def test_other_people_s_files_are_never_looked_at(run: Path, exporter: Exporter, tmp_path: Path) -> None:
    """Event files that are not ours do not matter, whatever they hold."""
    other = tmp_path / "tb" / "theirs" / "events.out.tfevents.1.host"
    other.parent.mkdir()
    other.write_bytes(b"nonsense")
    assert signs(verify(run, exporter)) == ["="]

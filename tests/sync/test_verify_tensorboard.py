"""Verify over real event files finds damage on disk, and none in an undamaged export."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams.metadata import SESSION_END_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer.record_writer import RecordWriter

from bridge.exporters.contract import find_exporter
from bridge.sync.export import export_runs
from bridge.sync.verify import verify_runs
from tests.contract.test_media import run_with_images
from tests.exporters.tensorboard.event_files import events, file_of
from tests.pictures import log_image, png
from tests.run_dirs import CREATED_S, make_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bridge.exporters.contract import Exporter
    from bridge.sync.report import VerifyReport

ROWS = [{"step": step, "loss": 0.1 * step, "acc": step} for step in range(50)]


@pytest.fixture
def exporter(tmp_path: Path) -> Exporter:
    return find_exporter("tensorboard")(logdir=tmp_path / "tb")


@pytest.fixture
def run(tmp_path: Path, exporter: Exporter) -> Path:
    """Make and export a run with points, text, params and images."""
    path = run_with_images(tmp_path / "runs" / "a")
    make_run(path, ROWS, hparams={"lr": 0.1, "n": 3}, tags=["t"], notes="n")
    export_runs([path], exporter)
    return path


def verify(path: Path, exporter: Exporter) -> VerifyReport:
    return verify_runs([path], exporter)


def signs(report: VerifyReport) -> list[str]:
    return [str(line.verdict) for line in report.runs]


def event_files(logdir: Path) -> list[Path]:
    """Return the three event files of the run."""
    found = sorted(file for file in logdir.rglob("*tfevents*") if file.is_file())
    assert len(found) == 3
    return found


def test_a_flipped_bit_is_found(run: Path, exporter: Exporter, tmp_path: Path) -> None:
    """A flipped bit anywhere in an event file is found by a checksum or by its content."""
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


def test_an_event_file_that_is_cut_or_missing_is_found(run: Path, exporter: Exporter, tmp_path: Path) -> None:
    """Every file of a run counts, those of scalars, images and facts."""
    for file in event_files(tmp_path / "tb"):
        aside = shutil.copy2(file, tmp_path / "aside")
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        assert signs(verify(run, exporter)) in (["!"], ["*"]), file.name
        file.unlink()
        assert signs(verify(run, exporter)) in (["!"], ["*"]), file.name
        shutil.copy2(aside, file)


def rewrite(file: Path, change: Callable[[Any], bool]) -> None:
    """Rewrite an event file with valid checksums, without the events for which `change` returns none.

    Its mtime stays, so that only its content can reveal the change.
    """
    before = file.stat()
    kept = []
    for raw in RawEventFileLoader(str(file)).Load():
        event = Event.FromString(raw)
        if change(event):
            kept.append(raw if event == Event.FromString(raw) else event.SerializeToString())
    with file.open("wb") as stream:
        writer = RecordWriter(stream)
        for record in kept:
            writer.write(record)
        writer.flush()
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def named(report: VerifyReport) -> list[tuple[str, int | None]]:
    return [(one.what, one.step) for line in report.runs for one in line.differences.first]


def without_a_point(event: Any) -> bool:
    return event.step != 7 or not event.HasField("summary")


def without_an_image(event: Any) -> bool:
    return bool(event.step != 5)


def with_another_value(event: Any) -> bool:
    """Change a value in the last of its 32 bits."""
    for value in event.summary.value:
        if event.step == 7 and value.tag == "acc":
            value.simple_value = float(np.nextafter(np.float32(value.simple_value), np.float32(9)))
    return True


def with_another_image(event: Any) -> bool:
    """Change a byte of an image, which keeps its length."""
    for value in event.summary.value:
        if value.tag == "val/samples/1":
            data = value.tensor.string_val[2]
            value.tensor.string_val[2] = data[:-1] + bytes([data[-1] ^ 1])
    return True


def with_another_end(event: Any) -> bool:
    for value in event.summary.value:
        if value.tag == SESSION_END_INFO_TAG:
            data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
            data.session_end_info.end_time_secs += 1
            value.metadata.plugin_data.content = data.SerializeToString()
    return True


@pytest.mark.parametrize(
    ("name", "change", "sign", "expected"),
    [
        ("scalars", without_a_point, "!", []),
        ("media", without_an_image, "!", []),
        ("scalars", with_another_value, "*", [("acc", 7)]),
        ("media", with_another_image, "*", [("media val/samples (media/b.png)", 0)]),
        ("facts", with_another_end, "*", [("end", None)]),
    ],
)
def test_another_event_with_a_valid_checksum_is_found(
    run: Path, exporter: Exporter, tmp_path: Path, name: str, change: Callable[[Any], bool], sign: str, expected: Any
) -> None:
    """A missing event is found by the recorded length, and a changed one is named with its step."""
    file = file_of(tmp_path / "tb" / "a", name)
    before = len(events(file))
    rewrite(file, change)
    assert len(events(file)) == before - (sign == "!")
    report = verify(run, exporter)
    assert (report.exit_code, signs(report), named(report)) == (4, [sign], expected)


def test_another_time_of_an_image_is_found(exporter: Exporter, tmp_path: Path) -> None:
    """An image has the time in media.jsonl; a time that is not there is not compared."""
    path = make_run(tmp_path / "runs" / "a", ROWS)
    log_image(path, 0, "timed.png", png(1), time=CREATED_S + 5)
    log_image(path, 1, "other.png", png(2))
    export_runs([path], exporter)
    assert signs(verify(path, exporter)) == ["="]

    def change(event: Any) -> bool:
        if event.summary.value:
            event.wall_time += 1.0
        return True

    rewrite(file_of(tmp_path / "tb" / "a", "media"), change)
    assert named(verify(path, exporter)) == [("time of media val/samples (media/timed.png)", 0)]


def test_a_missing_run_is_found(run: Path, exporter: Exporter, tmp_path: Path) -> None:
    """A run without its folder is only in the source."""
    shutil.rmtree(tmp_path / "tb" / "a")
    assert signs(verify(run, exporter)) == ["+"]


def test_a_second_target_of_one_run_is_found(run: Path, exporter: Exporter, tmp_path: Path) -> None:
    """A copy of a run's folder in the logdir is a second target."""
    shutil.copytree(tmp_path / "tb" / "a", tmp_path / "tb" / "b")
    report = verify(run, exporter)
    assert sorted(signs(report)) == ["-", "="]
    assert report.exit_code == 4


def test_files_of_others_are_never_looked_at(run: Path, exporter: Exporter, tmp_path: Path) -> None:
    """Event files of others are ignored, whatever they hold."""
    other = tmp_path / "tb" / "theirs" / "events.out.tfevents.1.host"
    other.parent.mkdir()
    other.write_bytes(b"nonsense")
    assert signs(verify(run, exporter)) == ["="]

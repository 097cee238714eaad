"""Media of a growing run: new, superseded, and of what format."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any

import pytest

from bridge.model import Delta, DeltaKind, MediaType
from bridge.options import ContentOptions
from bridge.rundir import ReadOptions, read_run, read_whole
from tests.pictures import log_image
from tests.run_dirs import make_run
from tests.rundir.targets import look

if TYPE_CHECKING:
    from pathlib import Path

PNG = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + struct.pack(">II", 2, 3) + b"\x08\2\0\0\0"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Make a run with one row."""
    return make_run(tmp_path / "run", [{"a": 1.0, "step": 0}])


def log(path: Path, tag: str, step: int, name: str, **fields: Any) -> None:
    """Log an image of a known time."""
    log_image(path, step, name, PNG, **{"tag": tag, "time": 5.0} | fields)


def names(delta: Delta) -> list[tuple[str, int, int]]:
    """Return (path, step, index) of the new events."""
    return [(event.path, event.step, event.index) for event in delta.media]


def test_new_lines_are_new_events(run_dir: Path) -> None:
    """Only new complete lines give events."""
    log(run_dir, "v", 0, "a.png")
    first = look(run_dir)
    assert names(first) == [("media/a.png", 0, 0)]
    assert look(run_dir, first.after).kind is DeltaKind.SAME
    log(run_dir, "v", 0, "b.png")
    with (run_dir / "media.jsonl").open("a") as file:
        file.write('{"step": 1, "tag"')
    second = look(run_dir, first.after)
    assert (second.kind, names(second), second.notices) == (DeltaKind.APPEND, [("media/b.png", 0, 1)], ())
    assert (second.after.media_lines, look(run_dir, second.after).kind) == (2, DeltaKind.SAME)


def test_a_later_session_supersedes_a_picture(run_dir: Path) -> None:
    """A requeued run that logs a step again replaces its images, so the target is rebuilt."""
    log(run_dir, "v", 0, "a.png", session=0)
    log(run_dir, "v", 0, "b.png", session=0)
    log(run_dir, "v", 1, "c.png", session=0)
    first = look(run_dir)
    log(run_dir, "v", 0, "d.png", session=1)
    second = look(run_dir, first.after)
    assert (second.kind, second.after, names(second)) == (DeltaKind.CHANGED, first.after, [])
    assert second.reason == "media.jsonl:1: v at step 0 is superseded by a later line (2 media no longer count)"
    log(run_dir, "v", 0, "e.png", session=1)
    *_, last = read_whole(read_run(run_dir), ContentOptions(), ReadOptions())
    assert names(last) == [("media/c.png", 1, 0), ("media/d.png", 0, 0), ("media/e.png", 0, 1)]
    assert look(run_dir, last.after).kind is DeltaKind.SAME


def test_media_come_with_the_last_portion(tmp_path: Path) -> None:
    """Media come once, with the last portion of points."""
    path = make_run(tmp_path / "run", [{"a": 1.0, "step": step} for step in range(9)])
    log(path, "v", 0, "a.png")
    deltas = [look(path, limit=3)]
    while deltas[-1].more:
        deltas.append(look(path, deltas[-1].after, limit=3))
    assert [len(delta.media) for delta in deltas] == [0, 0, 1]


def test_no_media_means_that_nothing_is_read(run_dir: Path) -> None:
    """Without media their lines are not read."""
    (run_dir / "media.jsonl").write_text("nonsense\n")
    first = look(run_dir, None, ContentOptions(media=False))
    assert (first.media, first.notices, first.after.media_lines) == ((), (), 0)
    log(run_dir, "v", 0, "a.png")
    assert look(run_dir, first.after, ContentOptions(media=False)).kind is DeltaKind.SAME


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        ("w", "media.jsonl: lines that are in the target have changed"),
        ("", "media.jsonl has 0 lines, the target was made of 1"),
        (None, "media.jsonl is gone"),
    ],
)
def test_lines_that_changed_are_a_change(run_dir: Path, tag: str | None, reason: str) -> None:
    """Changed or missing lines that the target holds lead to a rebuild."""
    log(run_dir, "v", 0, "a.png")
    cursor = look(run_dir).after
    (run_dir / "media.jsonl").unlink()
    if tag:
        log(run_dir, tag, 0, "a.png")
        os.utime(run_dir / "media.jsonl", (1, 1))
    elif tag is not None:
        (run_dir / "media.jsonl").touch()
    delta = look(run_dir, cursor)
    assert (delta.kind, delta.reason) == (DeltaKind.CHANGED, reason)


def test_links_that_lead_out_are_refused(run_dir: Path, tmp_path: Path) -> None:
    """A media link that leaves the run directory is refused; one inside is followed."""
    for name in ("real", "out", "in", "pipe"):
        log(run_dir, "v", 0, f"{name}.png")
    for name in ("out", "in", "pipe"):
        (run_dir / "media" / f"{name}.png").unlink()
    (tmp_path / "secret.png").write_bytes(PNG)
    (run_dir / "media" / "out.png").symlink_to(tmp_path / "secret.png")
    (run_dir / "media" / "in.png").symlink_to("real.png")
    os.mkfifo(run_dir / "media" / "pipe.png")
    delta = look(run_dir)
    assert names(delta) == [("media/real.png", 0, 0), ("media/in.png", 0, 2)]
    assert [(notice.kind.value, notice.detail) for notice in delta.notices] == [
        ("refused path", "v: media/out.png is a link that leads out of the run directory"),
        ("refused path", "v: media/pipe.png is not a regular file"),
    ]


def test_many_bad_lines_are_counted(run_dir: Path) -> None:
    """Twenty bad lines are named, and the rest is one notice with their number."""
    (run_dir / "media.jsonl").write_text("x\n" * 50)
    notices = look(run_dir).notices
    assert [notice.count for notice in notices] == [1] * 20 + [30]


@pytest.mark.parametrize(
    ("head", "form"),
    [
        (PNG, "png"),
        (b"GIF89a" + struct.pack("<HH", 4, 5), "gif"),
        (b"\xff\xd8\xff\xe0", "jpeg"),
        (b"BM" + b"\0" * 24, "bmp"),
        (b"RIFF\0\0\0\0WEBPVP8X", "webp"),
        (b"II*\0", "tiff"),
        (b"\0\0\0\x1cftypisom", "mp4"),
        (b"\0\0\0\x1cftypqt  ", "mov"),
        (b"\0\0\0\x1cftypavif", "avif"),
        (b"\x1aE\xdf\xa3\x9fB\x82\x84webm", "webm"),
        (b"\x1aE\xdf\xa3\x9fB\x82\x88matroska", "mkv"),
        (b"RIFF\0\0\0\0AVI LIST", "avi"),
        (b"OggS", "ogv"),
    ],
)
def test_the_true_format(run_dir: Path, head: bytes, form: str) -> None:
    """The first bytes of a file decide its format, and that it is a video, whatever its name and its line say."""
    log(run_dir, "v", 0, "a.png")
    (run_dir / "media" / "a.png").write_bytes(head)
    kind = MediaType.VIDEO if form in ("mp4", "mov", "webm", "mkv", "avi", "ogv") else MediaType.IMAGE
    assert [(event.format, event.type) for event in look(run_dir).media] == [(form, kind)]

"""The contract of exporters for images: all of each step, byte for byte where declared."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from bridge.options import ContentOptions
from bridge.rundir import read_run
from tests.deltas import notices_of
from tests.pictures import log_image, png
from tests.run_dirs import make_run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.contract.bench import Bench


def held_media(bench: Bench, path: Path) -> list[tuple[str, int, str]]:
    """Return tag, step and digest of the held media, by step and index."""
    items = sorted(bench.read(path).media, key=lambda item: (item.step, item.index))
    return [(item.tag, item.step, item.digest) for item in items]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def run_with_images(path: Path) -> Path:
    make_run(path, [{"step": 0, "loss": 1.0}])
    log_image(path, 0, "a.png", png(1), caption="first")
    log_image(path, 0, "b.png", png(2))
    log_image(path, 5, "c.png", png(3))
    return path


EXPECTED = [
    ("val/samples", 0, sha(png(1))),
    ("val/samples", 0, sha(png(2))),
    ("val/samples", 5, sha(png(3))),
]


def test_images_are_held_as_they_are(bench: Bench, tmp_path: Path) -> None:
    """A target holds every image of every step byte for byte, in order, with its caption."""
    path = run_with_images(tmp_path / "runs" / "a")
    bench.export(path)
    assert held_media(bench, path) == EXPECTED
    captions = {item.caption for item in bench.read(path).media}
    assert captions <= {"first", "", None}
    bench.assert_verified(path)


def test_images_that_come_later(bench: Bench, tmp_path: Path) -> None:
    """The next export adds images logged since, each once."""
    path = make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 1.0}])
    log_image(path, 0, "a.png", png(1), caption="first")
    bench.export(path)
    log_image(path, 0, "b.png", png(2))
    log_image(path, 5, "c.png", png(3))
    bench.export(path)
    bench.export(path)
    assert held_media(bench, path) == EXPECTED
    bench.assert_verified(path)


def test_an_image_at_an_earlier_step(bench: Bench, tmp_path: Path) -> None:
    """An image of a tag that is logged at a lower step than the last one is added too, without any other loss."""
    path = make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 1.0}])
    log_image(path, 5, "c.png", png(3))
    bench.export(path)
    log_image(path, 0, "a.png", png(1), caption="first")
    log_image(path, 0, "b.png", png(2))
    bench.export(path)
    assert held_media(bench, path) == EXPECTED
    bench.assert_verified(path)


def test_images_applied_twice(bench: Bench, tmp_path: Path) -> None:
    """Applying a delta with images twice duplicates none."""
    path = run_with_images(tmp_path / "runs" / "a")
    run = read_run(path)
    for _ in range(2):
        target = bench.open(run)
        for delta in bench.whole(run):
            target.apply(delta)
    assert held_media(bench, path) == EXPECTED


def test_a_superseded_image_goes(bench: Bench, tmp_path: Path) -> None:
    """After a requeue the images of a step are those of the last session."""
    path = make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 1.0}])
    log_image(path, 0, "a.png", png(1), session=0)
    log_image(path, 0, "b.png", png(2), session=0)
    bench.export(path)
    log_image(path, 0, "c.png", png(3), session=1)
    bench.export(path)
    assert held_media(bench, path) == [("val/samples", 0, sha(png(3)))]
    bench.assert_verified(path)


def test_media_can_be_left_out(bench: Bench, tmp_path: Path) -> None:
    """With --no-media a target holds no image, and verify accepts that."""
    bench.content = ContentOptions(media=False)
    path = run_with_images(tmp_path / "runs" / "a")
    bench.export(path)
    assert held_media(bench, path) == []
    bench.assert_verified(path)


def test_a_missing_image_is_a_notice(bench: Bench, tmp_path: Path) -> None:
    """A missing image file is a notice, and the target holds the others."""
    path = run_with_images(tmp_path / "runs" / "a")
    (path / "media" / "b.png").unlink()
    report = bench.export(path)
    assert held_media(bench, path) == [EXPECTED[0], EXPECTED[2]]
    assert [str(notice.kind) for notice in notices_of(report) if "b.png" in notice.what + notice.detail] == [
        "missing file"
    ]
    bench.assert_verified(path)

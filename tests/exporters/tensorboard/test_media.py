"""Images, videos and captions in TensorBoard."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from bridge.errors import RebuildNeededError
from bridge.exporters.tensorboard import TensorBoardExporter, media
from bridge.model import Notice, NoticeKind
from bridge.options import ContentOptions
from tests.deltas import make_block, make_delta, make_model_run
from tests.exporters.tensorboard.event_files import content, events, file_of
from tests.pictures import draw, film, media_event
from tests.require import require
from tests.security.harms import png_of

if TYPE_CHECKING:
    from bridge.exporters.tensorboard.target import TensorBoardTarget
    from bridge.model import MediaEvent

SHAPE = ContentOptions()


@pytest.fixture
def target(tmp_path: Path) -> TensorBoardTarget:
    run = make_model_run(tmp_path / "runs" / "abc")
    return TensorBoardExporter(tmp_path / "logs").open(run, SHAPE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "abc"


def notices_of(target: TensorBoardTarget, *media: MediaEvent) -> list[Notice]:
    """Apply the events as a new run and return the notices."""
    return list(target.apply(make_delta(make_model_run(Path("/runs/abc")), media=media)).notices)


def values(folder: Path) -> dict[tuple[str, int], Any]:
    """Return the values in the media file of the run folder by tag and step, in its order."""
    found = [(value, event.step) for event in events(file_of(folder, "media")) for value in event.summary.value]
    assert len({(value.tag, step) for value, step in found}) == len(found)
    return {(value.tag, step): value for value, step in found}


def held(target: TensorBoardTarget) -> dict[tuple[int, int], str | None]:
    """Return the captions that are read back, by step and index."""
    return {(item.step, item.index): item.caption for item in target.read().media}


def test_several_pictures_and_captions_of_a_step(tmp_path: Path, target: TensorBoardTarget, folder: Path) -> None:
    """Each index has its own tag, and captions are texts and descriptions. A picture without one has none."""
    path = draw(tmp_path / "a.png")
    media = [
        media_event(path, step=step, index=index, caption=None if index == 2 else f"{step}-{index}")
        for step in (0, 5)
        for index in (0, 1, 2)
    ]
    assert notices_of(target, *media) == []
    found = values(folder)
    assert list(found) == [
        (f"val/samples/{tag}", step) for step in (0, 5) for tag in ("0", "caption", "1", "caption (1)", "2")
    ]
    assert list(found["val/samples/caption (1)", 5].tensor.string_val) == [b"5-1"]
    assert [found[f"val/samples/{index}", 0].metadata.summary_description for index in range(3)] == ["0-0", "0-1", ""]
    assert held(target) == {(0, 0): "0-0", (0, 1): "0-1", (0, 2): None, (5, 0): "5-0", (5, 1): "5-1", (5, 2): None}


def test_a_lower_step_needs_a_rebuild(tmp_path: Path, target: TensorBoardTarget, folder: Path) -> None:
    """For an image at an earlier step the folder is rebuilt, so that steps increase per tag.

    Until then it holds what it held.
    """
    run = make_model_run(tmp_path / "runs" / "abc")
    path = draw(tmp_path / "a.png")
    logged = [media_event(path, step=3, caption="3"), media_event(path, step=9, tag="other")]
    first = make_delta(run, media=logged)
    target.apply(first)
    before = content(folder)
    logged += [media_event(path, step=1, caption="1"), media_event(path, step=4)]
    with pytest.raises(RebuildNeededError, match="val/samples at step 1 comes after step 3"):
        target.apply(make_delta(run, media=logged[2:], before=first.after))
    assert content(folder) == before
    target.rebuild([make_delta(run, media=logged)])
    found = values(folder)
    assert [(tag, step) for tag, step in found if not tag.endswith("caption")] == [
        ("val/samples/0", 1),
        ("val/samples/0", 3),
        ("val/samples/0", 4),
        ("other/0", 9),
    ]
    assert [step for tag, step in found if tag.endswith("caption")] == [1, 3]
    assert found["val/samples/0", 1].metadata.summary_description == "1"
    assert file_of(folder, "media").name.endswith(".g001")


def test_a_metric_takes_its_name_back(tmp_path: Path, target: TensorBoardTarget, folder: Path) -> None:
    """A metric keeps its name even if it appears after an image of that tag.

    The image gets a suffix, as in a clean export, and a notice once.
    """
    run = make_model_run(tmp_path / "runs" / "abc")
    event = media_event(draw(tmp_path / "a.png"), tag="loss", caption="c")
    first = make_delta(run, media=[event])
    assert target.apply(first).notices == ()
    columns = {"loss/0": [1.0], "loss/caption": [2.0]}
    block = make_block([0], columns)
    with pytest.raises(RebuildNeededError, match="a metric has the tag of pictures or captions: loss/0"):
        target.apply(make_delta(run, [block], before=first.after))
    second = make_delta(run, [block], media=[event])
    why = "since a metric has that name"
    notices = [
        Notice(NoticeKind.RENAMED, "loss/0", f"stored as 'loss/0 (image)', {why}"),
        Notice(NoticeKind.RENAMED, "loss/caption", f"stored as 'loss/caption (text)', {why}"),
    ]
    assert list(target.rebuild([second]).notices) == notices
    assert set(values(folder)) == {("loss/0 (image)", 0), ("loss/caption (text)", 0)}
    third = make_delta(run, media=[media_event(draw(tmp_path / "b.png"), tag="loss", step=1)], before=second.after)
    assert target.apply(third.with_(metrics=second.metrics)).notices == ()
    assert {name: series.value.tolist() for name, series in target.read().series.items()} == {
        "loss/0": [1.0],
        "loss/caption": [2.0],
    }
    assert held(target) == {(0, 0): "c", (1, 0): None}
    clean = TensorBoardExporter(tmp_path / "clean").open(run, SHAPE)
    assert list(clean.apply(make_delta(run, second.blocks, media=first.media + third.media)).notices) == notices
    ours, theirs = (file_of(tmp_path / name / "abc", "media").read_bytes() for name in ("logs", "clean"))
    assert ours == theirs


def test_what_cannot_be_shown(tmp_path: Path, target: TensorBoardTarget, folder: Path) -> None:
    """An unsupported format, a broken or giant image, a broken video and a missing file are notices.

    All other images are shown. A giant is known by its header, without decoding.
    """
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 100)
    lost = {
        draw(tmp_path / "a.tiff"): NoticeKind.NOT_SHOWABLE,
        tmp_path / "broken.png": NoticeKind.UNREADABLE_MEDIA,
        tmp_path / "broken.mp4": NoticeKind.UNREADABLE_MEDIA if media.can_convert() else NoticeKind.NOT_SHOWABLE,
        draw(tmp_path / "gone.png"): NoticeKind.MISSING_FILE,
        bomb(tmp_path / "large.png", 12_000): NoticeKind.TOO_LARGE,
        bomb(tmp_path / "giant.png", 60_000): NoticeKind.TOO_LARGE,
    }
    shown = [media_event(path, tag=path.stem) for path in [*lost, draw(tmp_path / "ok.png")]]
    (tmp_path / "gone.png").unlink()
    found = notices_of(target, *shown)
    assert [(notice.kind, notice.what) for notice in found] == [
        (kind, f"{path.stem}: media/{path.name}") for path, kind in lost.items()
    ]
    assert list(values(folder)) == [("ok/0", 0)]
    assert target.read().unsupported >= {f"media.{path.stem}" for path in lost}


def test_a_file_that_cannot_be_opened_for_a_moment_is_listed_later(tmp_path: Path) -> None:
    """A live list leaves such a picture out and does not remember that."""
    event = media_event(draw(tmp_path / "a.png"))
    (tmp_path / "a.png").rename(tmp_path / "away.png")
    before = media.is_shown(event)
    (tmp_path / "away.png").rename(tmp_path / "a.png")
    assert (before, media.is_shown(event)) == (False, True)


def bomb(path: Path, edge: int) -> Path:
    """Return a PNG of a few bytes whose header declares a giant."""
    path.write_bytes(png_of(edge, edge, zlib.compress(bytes(10))))
    return path


def test_a_video_becomes_a_gif(tmp_path: Path, target: TensorBoardTarget, folder: Path) -> None:
    """A video becomes a GIF with all frames at its speed."""
    require(media.can_convert(), "PyAV")
    assert notices_of(target, media_event(tmp_path / "a.mp4", film(), caption="a film")) == []
    width, height, data = values(folder)["val/samples/0", 0].tensor.string_val
    assert (width, height) == (b"96", b"64")
    with Image.open(io.BytesIO(data)) as gif:
        assert (gif.format, gif.n_frames, gif.info["duration"]) == ("GIF", 12, 100)


def test_a_long_video_is_thinned(
    tmp_path: Path, target: TensorBoardTarget, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A video with too many or too large frames is reduced, with a notice."""
    require(media.can_convert(), "PyAV")
    monkeypatch.setattr(media, "GIF_FRAMES", 4)
    monkeypatch.setattr(media, "GIF_EDGE", 48)
    (notice,) = notices_of(target, media_event(tmp_path / "a.mp4", film()))
    assert (notice.kind, notice.detail) == (NoticeKind.CUT, "a GIF of 4 of its 12 frames")
    with Image.open(io.BytesIO(values(folder)["val/samples/0", 0].tensor.string_val[2])) as gif:
        assert (gif.size, gif.n_frames, gif.info["duration"]) == ((48, 32), 4, 300)


def test_an_endless_video(tmp_path: Path, target: TensorBoardTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding stops at a limit, with a notice that the rest is missing."""
    require(media.can_convert(), "PyAV")
    monkeypatch.setattr(media, "MAX_DECODED_PIXELS", 5 * 96 * 64)
    (notice,) = notices_of(target, media_event(tmp_path / "a.mp4", film()))
    assert (notice.kind, notice.detail) == (NoticeKind.CUT, "a GIF of 5 of its first 5 frames")


def test_a_video_that_breaks_off(tmp_path: Path, target: TensorBoardTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """A video whose end cannot be decoded is shown up to there, with a notice."""
    require(media.can_convert(), "PyAV")
    shrink, left = media._shrink, [None] * 5

    def broken_at_last(frame: object) -> object:
        left.pop()  # IndexError is among what PyAV raises
        return shrink(frame)

    monkeypatch.setattr(media, "_shrink", broken_at_last)
    (notice,) = notices_of(target, media_event(tmp_path / "a.mp4", film()))
    assert (notice.kind, notice.detail.partition(":")[0]) == (NoticeKind.CUT, "a GIF of 5 of its first 5 frames")


def test_a_video_without_pyav(tmp_path: Path, target: TensorBoardTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra `video` a video is a notice with the pip line."""
    monkeypatch.setattr(media, "can_convert", lambda: False)
    path = tmp_path / "a.mp4"
    path.write_bytes(b"no matter what")
    delta = make_delta(make_model_run(tmp_path / "runs" / "abc"), media=[media_event(path)])
    (notice,) = target.apply(delta).notices
    assert (notice.kind, notice.detail) == (
        NoticeKind.NOT_SHOWABLE,
        'mp4 becomes a GIF with: pip install "registry-bridge[video]"',
    )
    assert TensorBoardExporter(tmp_path / "logs").capabilities.media_converted == frozenset()

"""Images, videos and captions in TensorBoard."""

from __future__ import annotations

import hashlib
import io
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from bridge.exporters.tensorboard import TensorBoardExporter, media
from bridge.model import NoticeKind
from bridge.options import ContentOptions
from tests.deltas import make_block, make_delta, make_model_run
from tests.exporters.tensorboard.event_files import events, file_of, rows
from tests.exporters.tensorboard.pictures_by_hand import draw, film, media_event
from tests.require import require
from tests.security.harms import png_of

if TYPE_CHECKING:
    from bridge.exporters.tensorboard.target import TensorBoardTarget
    from bridge.model import MediaEvent, Notice

SHAPE = ContentOptions()


@pytest.fixture
def target(tmp_path: Path) -> TensorBoardTarget:
    run = make_model_run(tmp_path / "runs" / "abc")
    return TensorBoardExporter(tmp_path / "logs").open(run, SHAPE)


def notices_of(target: TensorBoardTarget, *media: MediaEvent) -> list[Notice]:
    """Apply the events as a new run and return the notices."""
    return list(target.apply(make_delta(make_model_run(Path("/runs/abc")), media=media)).notices)


def shown(tmp_path: Path) -> list[tuple[str, int]]:
    """Return tag and step of each record of the media file, in its order."""
    return [
        (value.tag, event.step)
        for event in events(file_of(tmp_path / "logs" / "abc", "media"))
        for value in event.summary.value
    ]


def tensors(tmp_path: Path) -> dict[tuple[str, int], list[bytes]]:
    return {
        (value.tag, event.step): list(value.tensor.string_val)
        for event in events(file_of(tmp_path / "logs" / "abc", "media"))
        for value in event.summary.value
    }


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp"])
def test_pictures_are_held_as_they_are(tmp_path: Path, target: TensorBoardTarget, suffix: str) -> None:
    """A record holds the bytes of the file with its width and height."""
    path = draw(tmp_path / f"a.{suffix}")
    assert notices_of(target, media_event(path)) == []
    assert tensors(tmp_path) == {("val/samples/0", 0): [b"64", b"48", path.read_bytes()]}
    (item,) = target.read().media
    assert (item.tag, item.step, item.index) == ("val/samples", 0, 0)
    assert item.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_several_pictures_and_captions_of_a_step(tmp_path: Path, target: TensorBoardTarget) -> None:
    """Each index has its own tag, and captions are texts and the image's description."""
    path = draw(tmp_path / "a.png")
    media = [
        media_event(path, step=step, index=index, caption=f"{step}-{index}") for step in (0, 5) for index in (0, 1)
    ]
    assert notices_of(target, *media) == []
    assert shown(tmp_path) == [
        ("val/samples/0", 0),
        ("val/samples/caption", 0),
        ("val/samples/1", 0),
        ("val/samples/caption (1)", 0),
        ("val/samples/0", 5),
        ("val/samples/caption", 5),
        ("val/samples/1", 5),
        ("val/samples/caption (1)", 5),
    ]
    found = tensors(tmp_path)
    assert found["val/samples/caption (1)", 5] == [b"5-1"]
    first = events(file_of(tmp_path / "logs" / "abc", "media"))[1].summary.value[0]
    assert first.metadata.summary_description == "0-0"
    held = {(item.step, item.index): item.caption for item in target.read().media}
    assert held == {(0, 0): "0-0", (0, 1): "0-1", (5, 0): "5-0", (5, 1): "5-1"}


def descriptions(folder: Path) -> list[tuple[str, int, str]]:
    """Return tag, step and description of each image's record, in the file's order."""
    return [
        (value.tag, event.step, value.metadata.summary_description)
        for event in events(file_of(folder, "media"))
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "images"
    ]


@pytest.mark.parametrize(
    ("captions", "description"),
    [
        ([(0, None), (1, "first"), (2, "second")], "first"),
        ([(0, None), (1, None), (2, "only")], "only"),
        ([(0, "own"), (1, None), (2, "second")], "own"),
        ([(3, None), (5, "later"), (4, "earlier")], "earlier"),
        ([(3, "later"), (1, None), (2, "earlier")], "earlier"),
        ([(3, "later"), (1, None), (0, None)], "later"),
        ([(0, None), (1, None), (2, None)], ""),
    ],
)
@pytest.mark.parametrize("cuts", [(), (1,), (2,), (1, 2)])
def test_the_first_caption_is_the_description(
    tmp_path: Path,
    target: TensorBoardTarget,
    captions: list[tuple[int, str | None]],
    description: str,
    cuts: tuple[int, ...],
) -> None:
    """The first record of a tag has its first caption by step, however exports were cut."""
    run = make_model_run(tmp_path / "runs" / "abc")
    path = draw(tmp_path / "a.png")
    media = [media_event(path, step=step, caption=caption) for step, caption in captions]
    media = [one for event in media for one in (event, media_event(path, step=event.step, index=1))]
    before = None
    for begin, end in zip((0, *cuts), (*cuts, 3), strict=True):
        delta = make_delta(run, media=media[2 * begin : 2 * end], before=before)
        target.apply(delta)
        before = delta.after
    found = descriptions(tmp_path / "logs" / "abc")
    first, *others = [item for item in found if item[0] == "val/samples/0"]
    assert first == ("val/samples/0", min(step for step, _ in captions), description)
    assert [text for _, _, text in others] == ["", ""]
    assert {text for tag, _, text in found if tag == "val/samples/1"} == {""}
    held = {(item.step, item.index): item.caption for item in target.read().media}
    assert held == {(step, 0): caption for step, caption in captions} | {(step, 1): None for step, _ in captions}


def test_a_lower_step_rewrites_the_file_in_order(tmp_path: Path, target: TensorBoardTarget) -> None:
    """An image at an earlier step rewrites the file, so that steps increase per tag."""
    run = make_model_run(tmp_path / "runs" / "abc")
    path = draw(tmp_path / "a.png")
    first = make_delta(run, media=[media_event(path, step=3), media_event(path, step=9, tag="other")])
    target.apply(first)
    target.apply(make_delta(run, media=[media_event(path, step=1), media_event(path, step=4)], before=first.after))
    assert shown(tmp_path) == [
        ("val/samples/0", 1),
        ("val/samples/0", 3),
        ("val/samples/0", 4),
        ("other/0", 9),
    ]
    assert file_of(tmp_path / "logs" / "abc", "media").name.endswith(".g001")


def test_a_metric_takes_its_name_back(tmp_path: Path, target: TensorBoardTarget) -> None:
    """A metric keeps its name even if it appears after an image of that tag.

    The image gets a suffix, as in a clean export.
    """
    run = make_model_run(tmp_path / "runs" / "abc")
    event = media_event(draw(tmp_path / "a.png"), tag="loss", caption="c")
    first = make_delta(run, media=[event])
    target.apply(first)
    columns = {"loss/0": [1.0], "loss/caption": [2.0]}
    second = make_delta(run, [make_block([0], columns)], before=first.after)
    target.apply(second)
    assert set(shown(tmp_path)) == {("loss/0 (image)", 0), ("loss/caption (text)", 0)}
    held = target.read()
    assert {name: series.value.tolist() for name, series in held.series.items()} == {
        "loss/0": [1.0],
        "loss/caption": [2.0],
    }
    assert [(item.tag, item.index, item.caption) for item in held.media] == [("loss", 0, "c")]
    clean = TensorBoardExporter(tmp_path / "clean").open(run, SHAPE)
    clean.apply(make_delta(run, second.blocks, media=first.media))
    ours, theirs = (file_of(tmp_path / name / "abc", "media").read_bytes() for name in ("logs", "clean"))
    assert sorted(ours) == sorted(theirs)


def test_a_suffix_is_a_named_loss(tmp_path: Path, target: TensorBoardTarget) -> None:
    """An image or text that gets another name is a notice."""
    run = make_model_run(tmp_path / "runs" / "abc")
    event = media_event(draw(tmp_path / "a.png"), tag="loss")
    delta = make_delta(
        run,
        [make_block([0], {"loss/0": [1.0]})],
        media=[event, media_event(draw(tmp_path / "b.png"), tag="loss", step=1)],
    )
    done = target.apply(delta)
    assert [(notice.kind, notice.what, notice.detail) for notice in done.notices] == [
        (NoticeKind.RENAMED, "loss", "stored as 'loss/0 (image)', since a metric has that name")
    ]


def test_what_cannot_be_shown(tmp_path: Path, target: TensorBoardTarget) -> None:
    """An unsupported format, a broken image and a missing file are notices.

    All other images are shown.
    """
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    gone = media_event(draw(tmp_path / "gone.png"), tag="gone")
    gone.file.path.unlink()
    found = notices_of(
        target,
        media_event(draw(tmp_path / "a.tiff"), tag="tiff"),
        media_event(broken, tag="broken"),
        gone,
        media_event(draw(tmp_path / "ok.png"), tag="ok"),
    )
    assert [(notice.kind, notice.what) for notice in found] == [
        (NoticeKind.NOT_SHOWABLE, "tiff: media/a.tiff"),
        (NoticeKind.UNREADABLE_MEDIA, "broken: media/broken.png"),
        (NoticeKind.MISSING_FILE, "gone: media/gone.png"),
    ]
    assert shown(tmp_path) == [("ok/0", 0)]
    assert {"media.tiff", "media.broken", "media.gone"} <= target.read().unsupported


@pytest.mark.parametrize("size", [(12_000, 12_000), (60_000, 60_000)])
def test_a_giant_picture(tmp_path: Path, target: TensorBoardTarget, size: tuple[int, int]) -> None:
    """An image too large for a browser is left out by its header, without decoding."""
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png_of(*size, zlib.compress(bytes(10))))
    (notice,) = notices_of(target, media_event(bomb))
    assert (notice.kind, notice.what) == (NoticeKind.TOO_LARGE, "val/samples: media/bomb.png")


def test_a_video_becomes_a_gif(tmp_path: Path, target: TensorBoardTarget) -> None:
    """A video becomes a GIF with all frames at its speed."""
    require(media.can_convert(), "PyAV")
    assert notices_of(target, media_event(film(tmp_path / "a.mp4", 12), caption="a film")) == []
    width, height, data = tensors(tmp_path)["val/samples/0", 0]
    assert (width, height) == (b"96", b"64")
    with Image.open(io.BytesIO(data)) as gif:
        assert (gif.format, gif.n_frames, gif.info["duration"]) == ("GIF", 12, 100)


def test_a_long_video_is_thinned(tmp_path: Path, target: TensorBoardTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """A video with too many or too large frames is reduced, with a notice."""
    require(media.can_convert(), "PyAV")
    monkeypatch.setattr(media, "GIF_FRAMES", 4)
    monkeypatch.setattr(media, "GIF_EDGE", 48)
    (notice,) = notices_of(target, media_event(film(tmp_path / "a.mp4", 12)))
    assert (notice.kind, notice.detail) == (NoticeKind.CUT, "a GIF of 4 of its 12 frames")
    with Image.open(io.BytesIO(tensors(tmp_path)["val/samples/0", 0][2])) as gif:
        assert (gif.size, gif.n_frames, gif.info["duration"]) == ((48, 32), 4, 300)


def test_an_endless_video(tmp_path: Path, target: TensorBoardTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding stops at a limit, with a notice that the rest is missing."""
    require(media.can_convert(), "PyAV")
    monkeypatch.setattr(media, "MAX_DECODED_PIXELS", 5 * 96 * 64)
    (notice,) = notices_of(target, media_event(film(tmp_path / "a.mp4", 12)))
    assert (notice.kind, notice.detail) == (NoticeKind.CUT, "a GIF of 5 of its first 5 frames")


def test_a_video_that_breaks_off(tmp_path: Path, target: TensorBoardTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """A video whose end cannot be decoded is shown up to there, with a notice."""
    require(media.can_convert(), "PyAV")
    shrink, left = media._shrink, [None] * 5

    def broken_at_last(frame: object) -> object:
        left.pop()  # IndexError is among what PyAV raises
        return shrink(frame)

    monkeypatch.setattr(media, "_shrink", broken_at_last)
    (notice,) = notices_of(target, media_event(film(tmp_path / "a.mp4", 12)))
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


def test_a_broken_video(tmp_path: Path, target: TensorBoardTarget) -> None:
    """A file that is no video is a notice."""
    require(media.can_convert(), "PyAV")
    path = tmp_path / "a.mp4"
    path.write_bytes(b"no video" * 100)
    (notice,) = notices_of(target, media_event(path))
    assert notice.kind is NoticeKind.UNREADABLE_MEDIA


def test_pictures_do_not_touch_the_scalars(tmp_path: Path, target: TensorBoardTarget) -> None:
    """Media have their own file, so many images do not slow the curves down."""
    run = make_model_run(tmp_path / "runs" / "abc")
    target.apply(make_delta(run, [make_block([0], {"loss": [1.0]})], media=[media_event(draw(tmp_path / "a.png"))]))
    folder = tmp_path / "logs" / "abc"
    assert len(rows(file_of(folder, "scalars"))) == 1
    assert len(events(file_of(folder, "scalars"))) == 2

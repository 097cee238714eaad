"""Images and videos of any kind get distinct files, and failures never end a training."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from logger import RegistryLoggerWarning
from logger.media import MediaError, encode_image, encode_video, safe_tag
from tests.logger.rows import media

if TYPE_CHECKING:
    from logger import RegistryLogger


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


RGB = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)
RGBA = np.arange(2 * 5 * 4, dtype=np.uint8).reshape(2, 5, 4)
GRAY = np.arange(10, dtype=np.uint8).reshape(2, 5)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (GRAY, GRAY),
        (GRAY[:, :, None], GRAY),
        (GRAY[None], GRAY),
        (RGB, RGB),
        (RGB.transpose(2, 0, 1), RGB),
        (RGBA, RGBA),
        (RGBA.transpose(2, 0, 1), RGBA),
        (torch.from_numpy(RGB).permute(2, 0, 1), RGB),
        (torch.from_numpy(RGB).permute(2, 0, 1)[None], RGB),
        (torch.from_numpy(RGB / 255.0).permute(2, 0, 1).requires_grad_(), RGB),
        (torch.full((1, 2, 2), 0.5, dtype=torch.bfloat16), np.full((2, 2), 128, np.uint8)),
        (RGB / 255.0, RGB),
        (GRAY > 4, (GRAY > 4).astype(np.uint8) * 255),
        (GRAY.astype(np.int64), GRAY),
        (GRAY.tolist(), GRAY),
        (np.array([[0.0, np.nan], [1.0, 0.2]]), np.array([[0, 0], [255, 51]], np.uint8)),
        (Image.fromarray(RGB), RGB),
        (Image.fromarray(GRAY).convert("I"), GRAY),
        (Image.fromarray(GRAY.astype(np.uint16)), GRAY.astype(np.uint16)),
        (Image.fromarray(RGB).convert("CMYK"), np.asarray(Image.fromarray(RGB).convert("CMYK").convert("RGB"))),
    ],
)
def test_pixels_stay_what_they_are(image: Any, expected: np.ndarray) -> None:
    """Arrays, tensors, PIL images and lists of any number type become a PNG of exactly these pixels."""
    encoded = encode_image(image)
    assert encoded.ending == "png"
    np.testing.assert_array_equal(pixels(encoded.data), expected)


def test_floats_outside_of_one_are_clipped_with_a_warning() -> None:
    """Pixels outside [0, 1] are clipped with a warning that names their range."""
    with pytest.warns(UserWarning, match="from -1 to 2"):
        encoded = encode_image(np.array([[-1.0, 2.0]]))
    np.testing.assert_array_equal(pixels(encoded.data), [[0, 255]])


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((2, 3, 5)),
        np.zeros((0, 3)),
        np.array([[300]]),
        np.array([["a"]]),
        Image.new("I", (2, 2), 70_000),
        Image.new("I", (2, 2), -1),
        object(),
        "nowhere.png",
        b"",
        b"nonsense",
        None,
    ],
)
def test_what_is_no_image_says_why(image: object) -> None:
    """Wrong shapes, numbers over 255, missing files and unknown bytes raise MediaError with a reason."""
    with pytest.raises(MediaError, match=r"\w+"):
        encode_image(image)


@pytest.mark.parametrize("ending", ["jpg", "webp", "gif", "png"])
def test_files_and_bytes_keep_their_format(tmp_path: Path, ending: str) -> None:
    """A file is copied under its own ending, and bytes get the ending of their format."""
    path = tmp_path / f"image.{ending.upper()}"
    Image.fromarray(RGB).save(path, format={"jpg": "jpeg"}.get(ending, ending))
    assert (encode_image(path).ending, encode_image(str(path)).source) == (ending, path)
    for stored in (path.read_bytes(), io.BytesIO(path.read_bytes())):
        encoded = encode_image(stored)
        assert (encoded.ending, encoded.data) == (ending, path.read_bytes())
    for given, expected in ((None, "bin"), ("xyz", "xyz")):  # a video may have a format that nobody knows
        odd = encode_video(b"odd bytes", fps=None, format=given)
        assert (odd.ending, odd.data) == (expected, b"odd bytes")


def test_a_figure_is_drawn() -> None:
    """A matplotlib figure becomes a PNG."""
    from matplotlib.figure import Figure

    encoded = encode_image(Figure(figsize=(1, 1), dpi=50))
    assert pixels(encoded.data).shape == (50, 50, 4)


@pytest.mark.parametrize("shape", [(4, 3, 8, 6), (4, 8, 6, 3), (1, 4, 3, 8, 6), (4, 8, 6)])
def test_arrays_become_moving_pictures(shape: tuple[int, ...]) -> None:
    """An array of frames becomes an animated GIF with these frames and the given speed."""
    video = np.zeros(shape, np.uint8)
    frames = video[0] if video.ndim == 5 else video
    frames[...] = np.arange(4).reshape(4, *[1] * (frames.ndim - 1)) * 60
    encoded = encode_video(video, fps=10, format=None)
    image: Any = Image.open(io.BytesIO(encoded.data))
    assert (encoded.ending, encoded.fps, image.n_frames, image.size, image.info["duration"]) == (
        "gif",
        10.0,
        4,
        (6, 8),
        100,
    )


@pytest.mark.parametrize("format", ["mp4", "webm"])
def test_arrays_become_films_where_av_is_installed(format: str) -> None:  # noqa: A002 - WandbLogger's name
    """With `format` an array becomes a video of that format."""
    av = pytest.importorskip("av")
    encoded = encode_video(np.zeros((5, 3, 16, 17), np.uint8), fps=5, format=format)
    with av.open(io.BytesIO(encoded.data)) as film:
        assert sum(1 for _ in film.decode(video=0)) == 5
    assert encoded.ending == format


def test_no_two_tags_share_a_file(logger: RegistryLogger) -> None:
    """Any two tags, empty, long, climbing or in any script, have distinct folders."""
    strange = ["a/b", "a__b", "a%2Fb", "потеря", "損失", "", "..", "../../x", ".hidden", "a b", "a\nb"]
    tags = [*strange, "x" * 300, "x" * 299 + "y"]
    for tag in tags:
        logger.log_image(tag, [GRAY], step=1)
    events = media(logger.run_dir)
    folders = [Path(event["path"]).parent for event in events]
    assert [event["tag"] for event in events] == tags
    assert len(set(folders)) == len(tags)
    root = logger.run_dir / "media"
    assert all((logger.run_dir / event["path"]).resolve().parent.parent == root.resolve() for event in events)
    assert all(len(os.fsencode(folder.name)) <= 255 for folder in folders)
    assert (safe_tag("a/b"), safe_tag("потеря"), safe_tag("val samples_1.2")) == ("a%2Fb", "потеря", "val samples_1.2")


def test_a_later_call_at_the_same_step_overwrites_nothing(logger: RegistryLogger) -> None:
    """Each item gets a new index at its step, whatever its ending."""
    jpeg = io.BytesIO()
    Image.fromarray(RGB).save(jpeg, format="JPEG")
    logger.log_image("t", [GRAY, RGB], step=5, caption=["one", "two"])
    logger.log_image("t", [jpeg.getvalue()], step=5)
    logger.log_image("t", [GRAY], step=6)
    logger.log_image("t", RGBA, step=5, caption="four")
    events = media(logger.run_dir)
    assert [(event["path"], event["caption"]) for event in events] == [
        ("media/t/00000005_0.png", "one"),
        ("media/t/00000005_1.png", "two"),
        ("media/t/00000005_2.jpg", None),
        ("media/t/00000006_0.png", None),
        ("media/t/00000005_3.png", "four"),
    ]
    np.testing.assert_array_equal(pixels((logger.run_dir / events[0]["path"]).read_bytes()), GRAY)
    assert not list(logger.run_dir.glob("media/**/*.tmp"))


def test_an_event_says_all_of_its_item(logger: RegistryLogger, tmp_path: Path) -> None:
    """An event holds step, tag, type, path, caption, fps, format, time and session."""
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    logger.log_metrics({"a": 1.0}, 41)
    logger.log_video("clip", [tmp_path / "clip.mp4", b"\x1aE\xdf\xa3B\x82\x84webm"], caption=["é"], fps=[24, 12])
    first, second = media(logger.run_dir)
    time = first.pop("time")
    assert isinstance(time, float)
    assert first == {
        "step": 41,
        "tag": "clip",
        "type": "video",
        "path": "media/clip/00000041_0.mp4",
        "caption": "é",
        "fps": 24,
        "format": "mp4",
        "session": 0,
    }
    assert (second["path"], second["caption"], second["fps"]) == ("media/clip/00000041_1.webm", None, 12)
    assert (logger.run_dir / first["path"]).read_bytes() == (tmp_path / "clip.mp4").read_bytes()


def test_an_item_that_fails_costs_itself_only(logger: RegistryLogger) -> None:
    """A failing item is warned about, and the others of the call are stored."""
    with pytest.warns(RegistryLoggerWarning, match=r"'t' at step 1 .*no file nowhere\.png"):
        logger.log_image("t", [GRAY, "nowhere.png", RGB], step=1, caption=["a", "b", "c"])
    logger.log_image("t", [object()], step=2)
    assert [event["caption"] for event in media(logger.run_dir)] == ["a", "c"]


def test_wandbs_options_are_taken(logger: RegistryLogger) -> None:
    """Options of wandb.Image that are not stored are warned about."""
    with pytest.warns(RegistryLoggerWarning, match="'masks'"):
        logger.log_image(key="t", images=[GRAY], step=1, caption=["a"], masks=[{}])
    logger.log_video(key="v", videos=[np.zeros((2, 3, 4, 4), np.uint8)], step=1, caption=["b"], fps=[2], format=["gif"])
    assert [(event["tag"], event["caption"]) for event in media(logger.run_dir)] == [("t", "a"), ("v", "b")]


def test_warnings_as_errors_do_not_end_a_training(logger: RegistryLogger) -> None:
    """With warnings as errors the hooks still return."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logger.log_image("t", ["nowhere.png"], step=1, masks=[1])
        logger.log_image("t", [np.array([[7.0]])], step=1)
    logger.log_image("t", [GRAY], step=1)
    assert len(media(logger.run_dir)) == 1

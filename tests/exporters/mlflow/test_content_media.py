"""A run's images, videos, captions and files as artifacts in MLflow."""

from __future__ import annotations

import errno
import hashlib
import io
import json
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace
from PIL import Image

from bridge.exporters.mlflow import pictures
from bridge.model import NoticeKind, Status
from bridge.options import ContentOptions
from bridge.rundir import read_run
from tests.deltas import file_of, make_model_run
from tests.pictures import encoded, media_event
from tests.run_dirs import make_run
from tests.security.harms import png_of

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.model import MediaEvent, Run
    from tests.exporters.mlflow.conftest import Store

ROWS = [{"step": 0, "loss": 1.0}]


def _images(store: Store) -> list[str]:
    """Return the names of all files of the image grid, without the ids at their ends."""
    return [path.rpartition("+bridge-")[0] + path[path.rindex(".") :] for path in store.files("images")]


def test_a_picture_that_fails_to_be_read_once_counts_as_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file server that fails for a moment takes no picture out of a live view; what is gone or broken is left out."""
    good, gif, broken = (tmp_path / name for name in ("a.png", "b.gif", "c.png"))
    good.write_bytes(encoded("png"))
    gif.write_bytes(encoded("gif", "red", "green"))
    broken.write_bytes(encoded("png")[:40])

    def fail(*_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patched:
        patched.setattr(pictures, "open_file", fail)
        forms = [pictures.picture_extension(file_of(path), path.suffix[1:]) for path in (good, gif)]
        assert forms == ["png", "png"]
    forms = [pictures.picture_extension(file_of(path), path.suffix[1:]) for path in (good, gif, broken)]
    assert forms == ["png", "webp", None]
    file = file_of(good)
    good.unlink()
    gone = replace(file, mtime_ns=1)
    assert pictures.picture_extension(gone, "png") is None


def test_every_picture_has_its_place_in_the_image_grid(store: Store, tmp_path: Path) -> None:
    """Each image has two files under its index's key, with step and time, and the tag that the UI looks for."""
    png = encoded("png")
    events = [media_event(tmp_path / f"{index}.png", png, step=5, index=index) for index in (0, 1)]
    store.export(make_model_run(), ROWS, media=tuple(events))
    assert _images(store) == [
        "images/val~samples~0+step+5+timestamp+1775822405000.webp",
        "images/val~samples~0+step+5+timestamp+1775822405000.png",
        "images/val~samples~1+step+5+timestamp+1775822405000.webp",
        "images/val~samples~1+step+5+timestamp+1775822405000.png",
    ]
    assert store.run().data.tags["mlflow.loggedImages"] == "True"
    full = next(path for path in store.files("images") if path.endswith(".png"))
    assert store.artifact(full) == png


@pytest.mark.parametrize(
    ("form", "frames", "shown"), [("jpeg", 1, "PNG"), ("bmp", 1, "PNG"), ("webp", 1, "WEBP"), ("gif", 3, "WEBP")]
)
def test_other_formats_are_shown_too(store: Store, tmp_path: Path, form: str, frames: int, shown: str) -> None:
    """WebP stays as it is, a GIF becomes an animated WebP, full size and small, and other formats become PNG."""
    data = encoded(form, *["red", "green", "blue"][:frames], size=(300, 20))
    store.export(make_model_run(), ROWS, media=(media_event(tmp_path / f"a.{form}", data),))
    pictures = [Image.open(io.BytesIO(store.artifact(path))) for path in store.files("images")]
    assert sorted((picture.format, getattr(picture, "n_frames", 1), picture.size) for picture in pictures) == sorted(
        [("WEBP", frames, (256, 17)), (shown, frames, (300, 20))]
    )


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16"])
def test_every_kind_of_pixel_has_a_small_picture(store: Store, tmp_path: Path, mode: str) -> None:
    """16-bit greys, palettes and transparency all have previews."""
    colour = {"LA": (9, 9), "RGBA": (1, 2, 3, 4)}.get(mode, 1)
    store.export(make_model_run(), ROWS, media=(media_event(tmp_path / "a.png", encoded("png", colour, mode=mode)),))
    assert len(store.files("images")) == 2


@pytest.mark.parametrize(("data", "form"), [(encoded("png")[:40], "png"), (encoded("tiff"), "tiff")])
def test_a_picture_that_cannot_be_shown_is_kept_as_a_file(store: Store, tmp_path: Path, data: bytes, form: str) -> None:
    """A broken image and a TIFF are kept as files with a notice, outside of the grid."""
    applied = store.export(make_model_run(), ROWS, media=(media_event(tmp_path / f"a.{form}", data),))
    assert [notice.kind for notice in applied.notices] == [NoticeKind.NOT_SHOWABLE]
    assert [store.artifact(path) for path in store.files("media")] == [data]
    assert "images" not in {path.partition("/")[0] for path in store.files()}


def test_a_picture_with_broken_pixels_has_a_grey_preview(store: Store, tmp_path: Path) -> None:
    """A PNG whose checksums are right is in the grid as it is, although its pixels cannot be decoded."""
    data = png_of(40, 20, b"right checksums")
    applied = store.export(make_model_run(), ROWS, media=(media_event(tmp_path / "a.png", data),))
    assert applied.notices == ()
    full, small = (store.artifact(path) for path in sorted(store.files("images"), key=lambda path: path[-3:] != "png"))
    assert full == data
    with Image.open(io.BytesIO(small)) as preview:
        assert (preview.size, preview.convert("RGB").getcolors()) == ((256, 128), [(1 << 15, (128, 128, 128))])


def test_media_are_read_back_with_tag_step_index_digest_and_caption(store: Store, tmp_path: Path) -> None:
    """Media are read back under any tag, step, index, digest and caption."""
    png = encoded("png")
    events = (
        media_event(tmp_path / "a.png", png, step=5, caption="a cat"),
        media_event(tmp_path / "b.png", png, tag="odd ~tag#1+é", step=7, index=2),
        media_event(tmp_path / "c.mp4", b"\0\0\0\x18ftypmp42", tag="vid/eo", step=9, caption="run"),
    )
    run = make_model_run()
    applied = store.export(run, ROWS, media=events)
    assert [(notice.kind, notice.what) for notice in applied.notices] == [(NoticeKind.RENAMED, "media odd ~tag#1+é")]
    held = sorted((item.tag, item.step, item.index, item.digest, item.caption) for item in store.read(run).media)
    assert store.files("media/vid") == ["media/vid/eo/00000009_0.mp4"]
    digest = hashlib.sha256(png).hexdigest()
    assert held == [
        ("odd ~tag#1+é", 7, 2, digest, ""),
        ("val/samples", 5, 0, digest, "a cat"),
        ("vid/eo", 9, 0, hashlib.sha256(b"\0\0\0\x18ftypmp42").hexdigest(), "run"),
    ]


def test_captions_are_one_table_that_grows(any_store: Store, tmp_path: Path) -> None:
    """Captions are one growing table with the image in each row, listed among the UI's tables."""
    store = any_store

    def caption(step: int, text: str) -> MediaEvent:
        return media_event(tmp_path / f"{step}.png", encoded("png"), step=step, caption=text)

    store.export(make_model_run(), ROWS, media=(caption(7, "seven"),))
    store.export(make_model_run(), [{"step": 1, "loss": 1.0}], media=(caption(3, "three"), caption(7, "seven, again")))
    table = json.loads(store.artifact("bridge/captions.json"))
    assert table["columns"] == ["tag", "index", "step", "caption", "image"]
    assert [row[:4] for row in table["data"]] == [
        ["val/samples", 0, 3, "three"],
        ["val/samples", 0, 7, "seven, again"],
    ]
    image = table["data"][0][4]
    assert image["type"] == "image"
    assert {image["filepath"], image["compressed_filepath"]} <= set(store.files("images"))
    assert json.loads(store.run().data.tags["mlflow.loggedArtifacts"]) == [
        {"path": "bridge/captions.json", "type": "table"}
    ]


def _run_with_files(folder: Path, status: Status = Status.COMPLETED) -> Run:
    folder.mkdir(exist_ok=True)
    texts = {
        "hparams.yaml": "lr: 0.1\napi_key: abc\n",
        "sidecar.json": '{"hparams": {"api_key": "abc"}}',
        "metrics.csv": "loss,step\r\n1.0,0\r\n",
        "summary.json": "{}",
        "media.jsonl": "",
    }
    for name, text in texts.items():
        if not (folder / name).exists():
            (folder / name).write_text(text)
    files = {name: file_of(folder / name) for name in texts}
    end = None if status is Status.RUNNING else 1775826000.0
    return make_model_run(folder, status=status, end=end, files=files)


def test_a_running_run_has_its_settings_and_an_ended_one_all_its_files(store: Store, tmp_path: Path) -> None:
    """Growing files are sent once at the end, with the mark that keeps copies from being taken for runs."""
    store.export(_run_with_files(tmp_path / "r", Status.RUNNING), ROWS)
    assert store.files() == [".bridge-target", "hparams.yaml", "sidecar.json"]
    run = _run_with_files(tmp_path / "r")
    assert store.stale(run) == ["status", "end", "metrics.csv", "media.jsonl", "summary.json"]
    store.export(run)
    assert store.files() == [
        ".bridge-target",
        "hparams.yaml",
        "media.jsonl",
        "metrics.csv",
        "sidecar.json",
        "summary.json",
    ]
    assert store.stale(run) == []


def test_a_file_that_changed_is_sent_again(store: Store, tmp_path: Path) -> None:
    """Only a changed file is sent again. Secrets in the copies are masked."""
    folder = tmp_path / "r"
    store.export(_run_with_files(folder), ROWS)
    assert store.artifact("hparams.yaml") == b"lr: 0.1\napi_key: '***'\n"
    assert json.loads(store.artifact("sidecar.json")) == {"hparams": {"api_key": "***"}}
    (folder / "summary.json").write_text('{"step": 1}')
    run = _run_with_files(folder)
    assert store.stale(run) == ["summary.json"]
    store.export(run)
    assert store.artifact("summary.json") == b'{"step": 1}'


@pytest.mark.parametrize(
    ("artifacts", "files"), [("none", []), ("now", ["media.jsonl", "metrics.csv", "summary.json"])]
)
def test_artifacts_go_at_once_or_never(store: Store, tmp_path: Path, artifacts: str, files: list[str]) -> None:
    """--artifacts decides when files are sent, if at all."""
    store.export(_run_with_files(tmp_path / "r", Status.RUNNING), ROWS, content=ContentOptions(artifacts=artifacts))
    known = {".bridge-target", "hparams.yaml", "sidecar.json"}
    assert [file for file in store.files() if file not in known] == files


def test_configurations_of_lightning_and_hydra_are_artifacts(store: Store, tmp_path: Path) -> None:
    """config.yaml and .hydra/*.yaml are sent masked, and a large one is left out with a notice."""
    folder = make_run(tmp_path / "r", ROWS, hparams={"lr": 0.1})
    (folder / "config.yaml").write_text("trainer:\n  max_epochs: 3\napi_key: abc\n")
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text("- lr=0.1\n")
    (folder / ".hydra" / "hydra.yaml").write_text(f"a: {'x' * (1 << 20)}\n")
    (folder / ".hydra" / "notes.txt").write_text("not a configuration")
    run = read_run(folder)
    assert [(notice.kind, notice.what) for notice in run.notices] == [(NoticeKind.TOO_LARGE, ".hydra/hydra.yaml")]
    store.export(run, ROWS)
    assert store.artifact("config.yaml") == b"trainer:\n  max_epochs: 3\napi_key: '***'\n"
    assert store.artifact(".hydra/overrides.yaml") == b"- lr=0.1\n"
    assert store.files(".hydra") == [".hydra/overrides.yaml"]


def test_a_file_that_became_a_link_is_not_followed(store: Store, tmp_path: Path) -> None:
    """A file swapped for a link before the upload is not followed."""
    run = _run_with_files(tmp_path / "r")
    (tmp_path / "key").write_text("private")
    (tmp_path / "r" / "metrics.csv").unlink()
    (tmp_path / "r" / "metrics.csv").symlink_to(tmp_path / "key")
    applied = store.export(run, ROWS)
    assert "metrics.csv" not in store.files()
    assert [(notice.kind, notice.what) for notice in applied.notices] == [(NoticeKind.MISSING_FILE, "metrics.csv")]


def test_checkpoints_are_uploaded_when_asked(store: Store, tmp_path: Path) -> None:
    """A tag names the checkpoint. --checkpoints uploads all inside the run, and names links that lead out."""
    folder = tmp_path / "r"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "epoch=1-step=40.ckpt").write_bytes(b"x" * 17)
    (folder / "checkpoints" / "last.ckpt").symlink_to("epoch=1-step=40.ckpt")
    (folder / "checkpoints" / "out.ckpt").symlink_to("/etc/hostname")
    run = replace(_run_with_files(folder), checkpoint="/elsewhere/checkpoints/epoch=1-step=40.ckpt")
    store.export(run, ROWS)
    assert store.run().data.tags["bridge.checkpoint"] == "/elsewhere/checkpoints/epoch=1-step=40.ckpt"
    assert store.files("checkpoints") == []
    content = ContentOptions(checkpoints=True)
    applied = store.export(run, [{"step": 1, "loss": 1.0}], content=content)
    assert store.files("checkpoints") == ["checkpoints/epoch=1-step=40.ckpt", "checkpoints/last.ckpt"]
    assert [(str(notice.kind), notice.what) for notice in applied.notices] == [("refused path", "checkpoints/out.ckpt")]
    assert store.stale(run, content) == []


@pytest.mark.parametrize("checkpoints", [False, True])
def test_a_checkpoint_outside_the_run_directory_is_named(store: Store, tmp_path: Path, *, checkpoints: bool) -> None:
    """A checkpoint outside of the run directory is only named, with and without --checkpoints."""
    run = replace(_run_with_files(tmp_path / "r"), checkpoint="/elsewhere/last.ckpt")
    applied = store.export(run, ROWS, content=ContentOptions(checkpoints=checkpoints))
    told = [(notice.kind, notice.what, notice.detail) for notice in applied.notices]
    detail = "/elsewhere/last.ckpt is not in the run directory, so only its path is kept"
    assert told == [(NoticeKind.LEFT_OUT, "checkpoint", detail)]
    assert store.run().data.tags["bridge.checkpoint"] == "/elsewhere/last.ckpt"

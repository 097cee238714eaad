"""The contract of exporters for content options, and for content that a target holds only in part."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from bridge.model import NoticeKind
from bridge.options import ContentOptions
from tests.contract.bench import points_of
from tests.deltas import notices_of
from tests.pictures import encoded, log_image, png
from tests.run_dirs import CREATED_S, make_run, write_metrics

if TYPE_CHECKING:
    from pathlib import Path

    from tests.contract.bench import Bench


@pytest.mark.parametrize("names", [("train/loss", "val/acc"), ("acc", "loss")])
def test_renamed_metrics_come_back(bench: Bench, tmp_path: Path, names: tuple[str, str]) -> None:
    """A renamed metric is read back under its logged name, and grows under it; it can take the name of another."""
    bench.content = ContentOptions(rename=(("loss", names[0]), ("acc", names[1])))
    path = make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 1.0, "acc": 2.0}])
    bench.export(path)
    write_metrics(path, ["acc", "loss", "step", "wall_time"], [(3.0, 4.0, 1, CREATED_S + 1)], append=True)
    bench.export(path)
    assert points_of(bench.read(path), "loss") == [(0, 1.0), (1, 4.0)]
    assert points_of(bench.read(path), "acc") == [(0, 2.0), (1, 3.0)]
    bench.assert_verified(path)


def test_text_cells(bench: Bench, tmp_path: Path) -> None:
    """Text cells are no points, and the numbers in their column stay."""
    path = make_run(tmp_path / "runs" / "a")
    rows = [(cell, step, CREATED_S + step) for step, cell in enumerate(("warm-up", 2.5, '"done, almost\nhere"'))]
    write_metrics(path, ["phase", "step", "wall_time"], rows)
    bench.export(path)
    assert points_of(bench.read(path), "phase") == [(1, 2.5)]
    bench.assert_verified(path)


FACTS: dict[str, dict[str, Any]] = {
    "long": {
        "notes": "n" * 100_000,
        "hparams": {"long": "x" * 50_000, "k" * 400: 1, "tree": {"deep": [1, 2, {"a": None}]}},
        "tags": ["t" * 9_000, "key:" + "v" * 9_000],
        "display_name": "d" * 1_000,
    },
    "odd": {
        "notes": "# Größe\n\n<b>精度</b> \U0001f600 \x1b[31m `code` | table |",
        "hparams": {"größe": "ä", "a b": "c'd\"e", "x=y": "[1]", "empty": "", "nan": "NaN", "big": 2**70, "-": -0.5},
        "tags": ["ключ:значение", "a:b:c", ":", "plain", 1, "mlflow.user:me", "bridge.uid:x"],
        "display_name": "a name / with * signs",
        "archived": True,
        "future": {"x": [1]},
    },
}


@pytest.mark.parametrize("kind", FACTS)
def test_facts_of_any_kind(bench: Bench, tmp_path: Path, kind: str) -> None:
    """Facts of any length and in any script arrive as far as the target can hold them, and verify knows how far."""
    path = make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 1.0}], **FACTS[kind])
    bench.export(path)
    bench.assert_verified(path)


def test_pictures_of_other_formats(bench: Bench, tmp_path: Path) -> None:
    """A target holds an image of any format as it is, or converted as declared."""
    path = make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 1.0}])
    formats = ("jpeg", "gif", "webp", "bmp", "png")
    for step, form in enumerate(formats):
        log_image(path, step, f"{step}.{form}", encoded(form, (step * 9, 99, 0)))
    bench.export(path)
    kept, converted = bench.exporter.capabilities.media_kept, bench.exporter.capabilities.media_converted
    shown = {form for form in formats if kept is None or form in kept or form in converted}
    assert {formats[item.step] for item in bench.read(path).media} == shown
    bench.assert_verified(path)


BROKEN = {
    "cut": png(3)[:-30],
    "no header": b"\x89PNG\r\n\x1a\n" + b"not much of a picture",
    "only a signature": b"\xff\xd8\xff",
    "flipped": png(3)[:45] + b"\0\0\0\0" + png(3)[49:],
}


def test_a_broken_picture_is_a_notice(bench: Bench, tmp_path: Path) -> None:
    """A broken image is held as it is or is a notice, and the others of its step are held."""
    path = make_run(tmp_path / "runs" / "a", [{"step": 0, "loss": 1.0}])
    for tag, data in BROKEN.items():
        log_image(path, 0, f"{tag}/good.png", png(1), tag=tag)
        log_image(path, 0, f"{tag}/broken.png", data, tag=tag)
        log_image(path, 1, f"{tag}/alone.png", data, tag=tag)
    report = bench.export(path)
    kinds = (NoticeKind.UNREADABLE_MEDIA, NoticeKind.TOO_LARGE)
    for tag in BROKEN:
        held = sum(item.tag == tag for item in bench.read(path).media)
        lost = [
            notice for notice in notices_of(report) if notice.kind in kinds and f"{tag}/" in notice.what + notice.detail
        ]
        assert (held in (1, 3), len(lost)) == (True, 3 - held), tag
    bench.assert_verified(path)


def test_a_metric_and_an_image_of_one_name(bench: Bench, tmp_path: Path) -> None:
    """A target holds a metric and an image tag that share a name."""
    path = make_run(tmp_path / "runs" / "a", [{"step": 0, "val/samples": 1.0, "val/samples/0": 2.0}])
    log_image(path, 0, "a.png", png(0))
    bench.export(path)
    held = bench.read(path)
    assert points_of(held, "val/samples") == [(0, 1.0)]
    assert points_of(held, "val/samples/0") == [(0, 2.0)]
    assert [(item.tag, item.step) for item in held.media] == [("val/samples", 0)]
    bench.assert_verified(path)


def test_a_run_of_the_stock_csv_logger(bench: Bench, tmp_path: Path) -> None:
    """A directory without a sidecar is a run with the params of its hparams.yaml."""
    path = tmp_path / "runs" / "version_0"
    path.mkdir(parents=True)
    (path / "hparams.yaml").write_text("lr: 0.1\nmodel:\n  name: big\n  sizes: [1, 2]\n")
    write_metrics(path, ["loss", "step"], [(1.0, 0), (0.5, 1)])
    os.utime(path / "metrics.csv", (CREATED_S, CREATED_S))
    bench.export(path)
    assert points_of(bench.read(path), "loss") == [(0, 1.0), (1, 0.5)]
    bench.assert_verified(path)

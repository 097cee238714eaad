"""What only MLflow's exporter decodes, cleans, masks or cuts stays within measured bounds too."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

import pytest

from bridge.exporters.mlflow.facts import keys_of
from tests.security.harms import MB, gif, huge_png, picture, sidecar, tiff
from tests.security.measured import MEMORY_MB, MLFLOW_MB, assert_bounded, measure
from tests.security.scene import GOOD, Scene, plain_run, points_of, target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.property.zygote import Zygote

KEPT = "too large to be decoded; kept as media/val/00000000_0."
IN_MLFLOW: dict[str, tuple[Callable[[Path], None], str]] = {
    "greys of 16 bits": (picture(lambda: huge_png(4_900, bits=16)), ""),
    "colours with alpha": (picture(lambda: huge_png(4_900, bits=8, kind=6)), ""),
    "more pixels": (picture(lambda: huge_png(8_000)), f"8000 x 8000, 1 frames: {KEPT}png"),
    "pages": (picture(lambda: tiff(30_000)), f"1 x 1, 2001 frames: {KEPT}tiff"),
    "frames": (picture(lambda: gif(1_900)), f"1 x 1, 1900 frames: {KEPT}gif"),
    "many tags": (sidecar(tags=[f"t{n}" for n in range(40_000)]), "of 40000 tags are sent; sidecar.json has all"),
    "long texts": (
        sidecar(
            notes="n" * MB,
            display_name="d" * MB,
            tags=["t" * MB],
            checkpoint_path="c" * MB,
            hparams={"p" * MB: "v" * MB},
        ),
        "of 1000000 characters the first 500 are kept, with a digest as their end",
    ),
}


@pytest.mark.parametrize("name", IN_MLFLOW)
def test_memory_and_time_are_bounded_in_mlflow(tmp_path: Path, heavy: Zygote, sqlite_template: Path, name: str) -> None:
    """The export to MLflow stays within bounds.

    The report names what it cannot show, and the good run is complete.
    """
    scene, to = Scene(tmp_path), target("mlflow")
    shutil.copy(sqlite_template, tmp_path / "mlflow.db")
    harm, told = IN_MLFLOW[name]
    plain_run(scene.runs / "good")
    harm(plain_run(scene.runs / "bad"))
    measured = measure(
        heavy,
        tmp_path,
        ("export", "runs", "--workers", 1, *to, "--json"),
        ("verify", "runs", *to, "--json"),
    )
    export, verify = measured.seen
    assert_bounded(measured, megabytes=MEMORY_MB + MLFLOW_MB)
    bad, good = sorted(export.data["runs"], key=lambda line: line["path"])
    assert (good["action"], good["points"], good["media"], good["notices"]) == ("new", 3, 1, [])
    details = [one["detail"] for entry in bad["notices"] for one in entry["examples"]]
    assert (bad["action"], bad["points"]) == ("new", 3)
    assert any(told in detail for detail in details) if told else details == [], details
    assert [line["verdict"] for line in verify.data["runs"]] == ["=", "="]
    assert points_of(scene, "mlflow", "good") == GOOD


def test_names_that_clean_to_one_take_no_square_of_time() -> None:
    """Each of 20,000 names that MLflow has one key for gets its own: counted on, not looked for from the first."""
    names = ["".join("#@&$"[number >> 2 * place & 3] for place in range(8)) for number in range(20_000)]
    began = time.perf_counter()
    keys = keys_of(names)
    assert time.perf_counter() - began < 3
    assert [keys[names[number]] for number in (0, 1, 19_999)] == ["_" * 8, "_" * 8 + "_2", "_" * 8 + "_20000"]

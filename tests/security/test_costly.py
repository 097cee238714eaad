"""Files made to fill the memory or to never end.

They are refused or cut within measured bounds, and the run beside them is complete.
"""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from bridge.exporters.mlflow.facts import keys_of
from tests.require import require
from tests.run_dirs import CREATED_S
from tests.security.harms import (
    MB,
    aliases,
    content,
    gif,
    huge_png,
    merges,
    params_in_yaml,
    picture,
    sidecar,
    sparse,
    sparse_picture,
    video,
)  # fmt: skip
from tests.security.measured import MEMORY_MB, MLFLOW_MB, assert_bounded, measure
from tests.security.scene import GOOD, Case, Scene, assert_good, plain_run, points_of, target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.security.scene import Seen
    from tests.zygote import Zygote

HEADER = "loss,step,wall_time\r\n"
ROW = f"1.0,0,{CREATED_S}\r\n"
EVENT = '{"step": 0, "tag": "v", "type": "image", "path": "media/own.png"}\n'
REPAIR = "the file"

ROWS = [
    Case("gigabyte-row", sparse("metrics.csv", HEADER + ROW), (), "metrics.csv:3 is longer than 8 MiB", "quote"),
    Case("gigabyte-header", sparse("metrics.csv"), (), "metrics.csv: the header line is longer than 8 MiB", REPAIR),
    Case(
        "open-quote",
        content("metrics.csv", HEADER, '"', "1.0,1,2.0\r\n" * 2 * MB),
        reason="metrics.csv:2 is longer than 8 MiB",
        hint="quote",
    ),
    Case(
        "columns",
        content("metrics.csv", ",".join(f"m{n}" for n in range(60_000)), ",step\r\n"),
        reason="has 60,001 columns, more than 50,000",
        hint=REPAIR,
    ),
    Case(
        "bad-rows",
        content("metrics.csv", HEADER, ROW, "x\n" * 100_000),
        (("bad row", "metrics.csv:3", 100_000),),
        points=1,
    ),
]

FACTS = [
    Case("gigabyte-sidecar", sparse("sidecar.json"), (), "8 MiB; such a file has some kilobytes", "Repair the file"),
    Case("full-sidecar", sidecar(tags="json:[" + "{}," * 2_700_000 + "0]"), (("left out", "sidecar.json: tags"),)),
    Case("deep-sidecar", content("sidecar.json", "[" * 100_000), (), "sidecar.json", "Repair the file"),
    Case("gigabyte-summary", sparse("summary.json"), (("too large", "summary.json"),)),
    Case(
        "gigabyte-yaml",
        lambda run: (params_in_yaml("")(run), sparse("hparams.yaml")(run)),
        (("too large", "hparams.yaml"),),
    ),
    Case("yaml-bomb", params_in_yaml(aliases()), (("bad line", "hparams.yaml"),)),
    Case("yaml-merge-bomb", params_in_yaml(merges()), (("bad line", "hparams.yaml"),)),
    Case("deep-yaml", params_in_yaml("a: " + "[" * 800), (("bad line", "hparams.yaml"),)),
    Case(
        "names-within-names",
        sidecar(hparams={"k" * MB: {str(n): 1 for n in range(10_000)}}),
        (("too large", "sidecar.json: hparams"),),
    ),
    Case(
        "aliased-text",
        params_in_yaml(f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 5_000)}]\n"),
        (("too large", "hparams.yaml"),),
    ),
    Case("notes-like-addresses", sidecar(notes="://a:" * 100_000)),
    Case("long-command", sidecar(sessions=[{"command": "a" * 2 * MB}])),
]

MEDIA = [
    Case("gigabyte-event", sparse("media.jsonl", EVENT), (("too large", "media.jsonl"),)),
    Case(
        "long-event",
        content("media.jsonl", EVENT.replace("own", "x" * 8 * MB), append=True),
        (("bad line", "media.jsonl:2"),),
    ),
    Case(
        "many-events",
        content("media.jsonl", *(EVENT.replace("media/own", f"../{'x' * 68}") for _ in range(150_000)), append=True),
        (
            ("too large", "media.jsonl"),
            ("refused path", "media.jsonl:131072"),
        ),
    ),
    Case("zip-bomb", picture(lambda: huge_png(60_000)), (("too large", "val: media/x.png"),)),
    Case("video-of-large-frames", picture(lambda: video(3_200)), (("too large", "val: media/x.png"),)),
    Case("video", picture(lambda: video(200)), media=2),
    Case("gigabyte-picture", sparse_picture, (("too large", "media.jsonl:2"),)),
]

KEPT = "too large to be decoded; kept as media/val/00000000_0."
IN_MLFLOW: dict[str, tuple[Callable[[Path], None], str]] = {
    "greys of 16 bits": (picture(lambda: huge_png(4_900, bits=16)), ""),
    "colours with alpha": (picture(lambda: huge_png(4_900, bits=8, kind=6)), ""),
    "more pixels": (picture(lambda: huge_png(8_000)), f"8000 x 8000, 1 frames: {KEPT}png"),
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
"""What only MLflow's exporter decodes, cleans, masks or cuts, and a part of the notice."""

CASES = {case.name: case for case in (*ROWS, *FACTS, *MEDIA)}


def export_and_verify(
    zygote: Zygote, root: Path, to: str, *more: tuple[str, ...]
) -> tuple[Seen, Seen, *tuple[Seen, ...]]:
    """Measure an export of `runs`, a verify and `more` commands within the bounds, and return what they say."""
    runs = ("runs", *target(to), "--json")
    measured = measure(zygote, root, ("export", *runs, "--workers", 1), ("verify", *runs), *more)
    assert_bounded(measured, megabytes=MEMORY_MB + (MLFLOW_MB if to == "mlflow" else 0))
    export, verify, *others = measured.seen
    return export, verify, *others


@pytest.mark.parametrize("name", CASES)
def test_memory_and_time_are_bounded(tmp_path: Path, light: Zygote, name: str) -> None:
    """Export, verify, ls and show stay within their bounds and name the fault, and the good run is complete."""
    require("video" not in name or find_spec("av") is not None, "PyAV")
    case, scene = CASES[name], Scene.make(tmp_path)
    case.harm(plain_run(scene.runs / "bad"))
    show = [("show", "runs/bad")] if case in FACTS and not case.reason else []
    export, verify, ls, *_ = export_and_verify(light, tmp_path, "tensorboard", ("ls", "runs"), *show)
    assert export.code == (3 if case.reason else 0)
    bad, good = sorted(export.data["runs"], key=lambda line: line["path"])
    assert_good(good)
    case.assert_told(bad)
    assert {line["run_id"]: line["verdict"] for line in verify.data["runs"]}["good"] == "="
    assert any(line.startswith("good ") for line in ls.out.splitlines())
    assert points_of(scene, "tensorboard", "good") == GOOD


@pytest.mark.parametrize("name", IN_MLFLOW)
def test_memory_and_time_are_bounded_in_mlflow(tmp_path: Path, heavy: Zygote, sqlite_template: Path, name: str) -> None:
    """The export to MLflow stays within bounds and names what it cannot show, and the good run is complete."""
    scene = Scene.make(tmp_path, sqlite_template)
    harm, told = IN_MLFLOW[name]
    harm(plain_run(scene.runs / "bad"))
    export, verify = export_and_verify(heavy, tmp_path, "mlflow")
    bad, good = sorted(export.data["runs"], key=lambda line: line["path"])
    assert_good(good)
    details = [one["detail"] for entry in bad["notices"] for one in entry["examples"]]
    assert (bad["action"], bad["points"]) == ("new", 3)
    assert any(told in detail for detail in details) if told else details == [], details
    assert [line["verdict"] for line in verify.data["runs"]] == ["=", "="]
    assert points_of(scene, "mlflow", "good") == GOOD


def test_names_that_clean_to_one_take_no_square_of_time() -> None:
    """Each of 20,000 names that MLflow has one key for gets its own: counted on, not looked for from the first."""
    names = ["".join("#@&$"[number >> 2 * place & 3] for place in range(8)) for number in range(20_000)]
    began = time.process_time()
    keys = keys_of(names)
    assert time.process_time() - began < 3
    assert [keys[names[number]] for number in (0, 1, 19_999)] == ["_" * 8, "_" * 8 + "_2", "_" * 8 + "_20000"]


def test_a_file_that_turned_bad_after_its_export(tmp_path: Path, light: Zygote) -> None:
    """An unclosed quote behind exported rows is named by export and verify alike."""
    scene = Scene.make(tmp_path)
    plain_run(scene.runs / "bad")
    assert scene.export("tensorboard").code == 0
    content("metrics.csv", '"', "1.0,1,2.0\r\n" * 1_600_000, append=True)(scene.runs / "bad")
    export, verify = export_and_verify(light, tmp_path, "tensorboard")
    assert [(line["action"], line["reason"]) for line in export.data["runs"]] == [
        ("unreadable", f"{scene.runs}/bad/metrics.csv:5 is longer than 8 MiB."),
        ("unchanged", ""),
    ]
    assert [(line["verdict"], line["reason"]) for line in verify.data["runs"]] == [
        ("!", f"{scene.runs}/bad/metrics.csv:5 is longer than 8 MiB."),
        ("=", ""),
    ]
    assert (export.code, verify.code) == (3, 4)

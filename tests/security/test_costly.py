"""Files made to fill the memory or to never end.

They are refused or cut within measured bounds, and the run beside them is complete.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from tests.require import require
from tests.run_dirs import CREATED_S
from tests.security.harms import (
    MB,
    aliases,
    content,
    huge_png,
    merges,
    params_in_yaml,
    picture,
    sidecar,
    sparse,
    sparse_picture,
    video,
)
from tests.security.measured import assert_bounded, measure
from tests.security.scene import GOOD, Scene, plain_run, points_of, target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.property.zygote import Zygote


@dataclass(frozen=True)
class Costly:
    """One hostile run directory, which `harm` makes of a plain one.

    It is unreadable for a `reason` with these words, or has these `notices` (kind, what, count); `hint` is part of the
    remedy.
    """

    name: str
    harm: Callable[[Path], None]
    notices: tuple[tuple[str, str, int], ...] = ()
    reason: str = ""
    hint: str = ""
    points: int = 3
    media: int = 1


HEADER = "loss,step,wall_time\r\n"
ROW = f"1.0,0,{CREATED_S}\r\n"
EVENT = '{"step": 0, "tag": "v", "type": "image", "path": "media/own.png"}\n'
REPAIR = "the file"

ROWS = [
    Costly(
        "gigabyte-row", sparse("metrics.csv", HEADER + ROW), reason="metrics.csv:3 is longer than 8 MiB", hint="quote"
    ),
    Costly(
        "gigabyte-header",
        sparse("metrics.csv"),
        reason="metrics.csv: the header line is longer than 8 MiB",
        hint=REPAIR,
    ),
    Costly(
        "open-quote",
        content("metrics.csv", HEADER, '"', "1.0,1,2.0\r\n" * 2 * MB),
        reason="metrics.csv:2 is longer than 8 MiB",
        hint="quote",
    ),
    Costly(
        "columns",
        content("metrics.csv", ",".join(f"m{n}" for n in range(60_000)), ",step\r\n"),
        reason="has 60,001 columns, more than 50,000",
        hint=REPAIR,
    ),
    Costly(
        "bad-rows",
        content("metrics.csv", HEADER, ROW, "x\n" * 100_000),
        (("bad row", "metrics.csv:3", 100_000),),
        points=1,
    ),
]

FACTS = [
    Costly(
        "gigabyte-sidecar", sparse("sidecar.json"), reason="sidecar.json is larger than 8 MiB", hint="some kilobytes"
    ),
    Costly("full-sidecar", sidecar(tags="json:[" + "{}," * 2_700_000 + "0]"), (("left out", "sidecar.json: tags", 1),)),
    Costly("deep-sidecar", content("sidecar.json", "[" * 100_000), reason="sidecar.json", hint="Repair the file"),
    Costly("gigabyte-summary", sparse("summary.json"), (("too large", "summary.json", 1),)),
    Costly(
        "gigabyte-yaml",
        lambda run: (params_in_yaml("")(run), sparse("hparams.yaml")(run)),
        (("too large", "hparams.yaml", 1),),
    ),
    Costly("yaml-bomb", params_in_yaml(aliases()), (("bad line", "hparams.yaml", 1),)),
    Costly("yaml-merge-bomb", params_in_yaml(merges()), (("bad line", "hparams.yaml", 1),)),
    Costly("deep-yaml", params_in_yaml("a: " + "[" * 800), (("bad line", "hparams.yaml", 1),)),
    Costly(
        "names-within-names",
        sidecar(hparams={"k" * MB: {str(n): 1 for n in range(10_000)}}),
        (("too large", "sidecar.json: hparams", 1),),
    ),
    Costly(
        "aliased-text",
        params_in_yaml(f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 5_000)}]\n"),
        (("too large", "hparams.yaml", 1),),
    ),
    Costly("notes-like-addresses", sidecar(notes="://a:" * 100_000)),
    Costly("long-command", sidecar(sessions=[{"command": "a" * 2 * MB}])),
]

MEDIA = [
    Costly("gigabyte-event", sparse("media.jsonl", EVENT), (("too large", "media.jsonl", 1),)),
    Costly(
        "long-event",
        content("media.jsonl", EVENT.replace("own", "x" * 8 * MB), append=True),
        (("bad line", "media.jsonl:2", 1),),
    ),
    Costly(
        "many-events",
        content("media.jsonl", *(EVENT.replace("media/own", f"../{'x' * 68}") for _ in range(150_000)), append=True),
        (
            ("too large", "media.jsonl", 1),
            ("left out", "media.jsonl:2", 131_070),
            ("refused path", "media.jsonl:131072", 1),
        ),
    ),
    Costly("zip-bomb", picture(lambda: huge_png(60_000)), (("too large", "val: media/x.png", 1),)),
    Costly("video-of-large-frames", picture(lambda: video(3_200)), (("too large", "val: media/x.png", 1),)),
    Costly("video", picture(lambda: video(200)), media=2),
    Costly("gigabyte-picture", sparse_picture, (("too large", "media.jsonl:2", 1),)),
]

CASES = {case.name: case for case in (*ROWS, *FACTS, *MEDIA)}


def stage(root: Path, case: Costly) -> Scene:
    scene = Scene(root)
    plain_run(scene.runs / "good")
    case.harm(plain_run(scene.runs / "bad"))
    return scene


def assert_refused_or_cut(case: Costly, report: Any) -> None:
    """Assert that the report names the hostile run's fault and that the good run is complete."""
    bad, good = sorted(report["runs"], key=lambda line: line["path"])
    assert (good["action"], good["points"], good["media"], good["notices"]) == ("new", 3, 1, [])
    if case.reason:
        assert (bad["action"], case.reason in bad["reason"], case.hint in bad["hint"]) == ("unreadable", True, True), (
            bad
        )
        assert "runs/bad/" in bad["reason"]
        return
    notices = [(entry["kind"], entry["examples"][0]["what"], entry["count"]) for entry in bad["notices"]]
    assert (bad["action"], bad["points"], bad["media"], tuple(notices)) == (
        "new",
        case.points,
        case.media,
        case.notices,
    )


@pytest.mark.parametrize("name", CASES)
def test_memory_and_time_are_bounded(tmp_path: Path, light: Zygote, name: str) -> None:
    """Export, verify, ls and show stay within their bounds and name the fault, and the good run is complete."""
    require("video" not in name or find_spec("av") is not None, "PyAV")
    case, scene = CASES[name], stage(tmp_path, CASES[name])
    to = target("tensorboard")
    measured = measure(
        light,
        tmp_path,
        ("export", "runs", "--workers", 1, *to, "--json"),
        ("verify", "runs", *to, "--json"),
        ("ls", "runs"),
        *([("show", "runs/bad")] if case in FACTS and not case.reason else []),
    )
    export, verify, ls = measured.seen[:3]
    assert_bounded(measured)
    assert export.code == (3 if case.reason else 0)
    assert_refused_or_cut(case, export.data)
    verdicts = {line["run_id"]: line["verdict"] for line in verify.data["runs"]}
    assert verdicts["good"] == "="
    assert any(line.startswith("good ") for line in ls.out.splitlines())
    assert points_of(scene, "tensorboard", "good") == GOOD


def test_a_file_that_turned_bad_after_its_export(tmp_path: Path, light: Zygote) -> None:
    """An unclosed quote behind exported rows is named by export and verify alike."""
    scene, to = Scene(tmp_path), target("tensorboard")
    for name in ("bad", "good"):
        plain_run(scene.runs / name)
    assert scene.export("tensorboard").code == 0
    content("metrics.csv", '"', "1.0,1,2.0\r\n" * 1_600_000, append=True)(scene.runs / "bad")
    measured = measure(
        light,
        tmp_path,
        ("export", "runs", "--workers", 1, *to, "--json"),
        ("verify", "runs", *to, "--json"),
    )
    export, verify = measured.seen
    assert_bounded(measured)
    assert [(line["action"], line["reason"]) for line in export.data["runs"]] == [
        ("unreadable", f"{scene.runs}/bad/metrics.csv:5 is longer than 8 MiB."),
        ("unchanged", ""),
    ]
    assert [(line["verdict"], line["reason"]) for line in verify.data["runs"]] == [
        ("!", f"{scene.runs}/bad/metrics.csv:5 is longer than 8 MiB."),
        ("=", ""),
    ]
    assert (export.code, verify.code) == (3, 4)

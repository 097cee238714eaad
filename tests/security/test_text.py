"""Text that tries to steer a terminal, forge a line, act as markup, or is no valid text.

It is shown as text.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import sqlite3
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.calling import on_a_terminal
from tests.exporters.tensorboard.event_files import events, file_of
from tests.pictures import png
from tests.run_dirs import CREATED
from tests.security.scene import GOOD, TARGETS, Scene, add_media, plain_run, points_of

if TYPE_CHECKING:
    from pathlib import Path

FORGED = "+ good: rebuild, 99 points, 0 media"

TEXTS = {
    "escape": "e\x1b]0;owned\x07\x1b[2J\x1b[31mred\x1b]8;;http://evil\x07",
    "eight-bit": "c\x9b31mred\x9d0;owned\x9c\x85\x7f\x08\x08",
    "forged": f"f\n{FORGED}\r{FORGED}\u2028{FORGED}\x0b{FORGED}",
    "bidi": "b\u202etxt.exe\u2066\u200f",
    "markup": "[red]m[/red][link=file:///etc/passwd]x[/link][/]:smile:",
    "markdown": "# h\n<script>alert(1)</script> [m](javascript:alert(1)) | `x` ![i](http://evil/i.png)",
    "nul": "n\0ul\x01",
    "surrogate": "s\ud800\udfff\udc80",
    "path": "../../../../p/./../x/../../..",
    "windows": "..\\..\\p\\CON:<>|?*",
    "format": "%s%n{0}{x.__class__}$(id)`id`;'\"--",
    "nothing": "",
    "blank": " ",
    "dot": ".",
    "long": "\U0001f600" * 600,
}
STEERS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What no output may hold: control characters but for newlines, and what turns the order of letters round."""


def hostile(path: Path, text: str) -> None:
    """Write a run whose every text is `text`."""
    plain_run(path)
    sidecar: dict[str, Any] = json.loads((path / "sidecar.json").read_text())
    session = dict.fromkeys(("host", "user", "command", "git_commit"), text)
    sidecar |= {
        "uid": f"{path.name} {text}",
        "run_id": f"{path.name}{text}",
        "display_name": text,
        "status": "completed",
        "tags": [text, f"k:{text}", f"sweep:{text}"],
        "notes": text,
        "hparams": {text: text, f"{text}.a": [text]},
        "summary": {text: 1.0},
        "checkpoint_path": text,
        "sessions": [session | {"started_at": CREATED, "slurm": {text: text}}],
    }
    (path / "sidecar.json").write_text(json.dumps(sidecar))
    (path / "summary.json").write_text(json.dumps({"metrics": {text: {"last": 1.0, "max": 2.0}}}))
    name = text.encode("utf-8", "replace").decode()
    with (path / "metrics.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([name, "loss", "step", "wall_time"])
        table.writerows([[n, value, step, time] for n, (step, time, value) in enumerate(GOOD)])
        table.writerow([name, "bad", name, name])
    (path / "media" / "caption.png").write_bytes(png())
    line = {"step": 1, "tag": text, "type": "image", "path": "media/caption.png", "caption": text}
    with (path / "media.jsonl").open("a") as lines:
        lines.write(json.dumps(line) + "\n" + json.dumps({"type": text, "tag": text, "step": text}) + "\n")
    add_media(path, f"media/{text}.png", tag=text)
    add_media(path, text, tag=text)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Scene:
    """Make a good run, one run for each hostile text, and run directories with hostile names."""
    scene = Scene.make(tmp_path_factory.mktemp("text"), sqlite_template)
    for name, text in TEXTS.items():
        hostile(scene.runs / name, text)
    for name in ("escape", "eight-bit", "forged", "bidi", "markup"):
        called = TEXTS[name].replace("/", ":")
        plain_run(scene.runs / f"called {called}")
        (plain_run(scene.runs / f"broken {called}") / "sidecar.json").write_text("{")
    if UNDECODABLE:
        plain_run(scene.runs / os.fsdecode(b"called \xff\x9b"))
    return scene


UNDECODABLE = sys.platform == "linux"
"""Other file systems take no name that is no text."""

RUNS = 1 + len(TEXTS) + 5 + UNDECODABLE


@pytest.fixture(scope="module")
def exported(scene: Scene) -> dict[str, Any]:
    """Return the report of the export into each target."""
    reports = {}
    for to in TARGETS:
        assert scene.export(to, "--dry-run", "-v").code == 3
        reports[to] = scene.export(to, "--json").data
        assert scene.export(to, "-v").code == 3
    return reports


@pytest.mark.parametrize("to", TARGETS)
def test_all_that_can_be_read_arrives(scene: Scene, exported: dict[str, Any], to: str) -> None:
    """No text keeps a run from its target or harms the good one."""
    totals = exported[to]["totals"]
    assert (totals["new"], totals["unreadable"], totals["failed"]) == (RUNS, 5, 0)
    assert points_of(scene, to, "good") == GOOD
    seen = scene.verify(to, "--json")
    verdicts = [line["verdict"] for line in seen.data["runs"]]
    assert (verdicts.count("="), verdicts.count("!"), len(verdicts)) == (RUNS, 5, RUNS + 5)


def test_no_name_leads_out_of_a_target(scene: Scene, exported: dict[str, Any]) -> None:
    """Any names of runs and media lead to visible files inside the targets' folders."""
    assert {path.name for path in scene.root.iterdir()} <= {"runs", "tb", "mlflow.db", "mlartifacts", "cache"}
    for line in exported["tensorboard"]["runs"]:
        if line["where"]:
            parts = (scene.root / line["where"]).resolve().relative_to(scene.root / "tb").parts
            assert parts
            assert not any(part.startswith(".") for part in parts)


def test_a_strict_database_takes_all(scene: Scene, postgres_uri: str) -> None:
    """PostgreSQL allows no NUL and no text longer than its column.

    Runs with such texts arrive, in experiments named by them.
    """
    runs = [f"runs/{name}" for name in ("good", "nul", "long", "surrogate", "escape")]
    to = ("--to", "mlflow", "--tracking-uri", postgres_uri, "--experiment", "{tags.k}", "--experiment-default", "other")
    export = scene.call("export", *runs, *to, "--workers", 1, "--json")
    verify = scene.call("verify", *runs, *to, "--json")
    assert [line["action"] for line in export.data["runs"]] == ["new"] * len(runs)
    assert [line["verdict"] for line in verify.data["runs"]] == ["="] * len(runs)


def test_cursors_stay_short(scene: Scene, exported: dict[str, Any]) -> None:
    """An identity of 600 emojis, each twelve characters in JSON, fits a cursor."""
    with contextlib.closing(sqlite3.connect(scene.root / "mlflow.db")) as connection:
        (longest,) = connection.execute(
            "SELECT max(length(value)) FROM tags WHERE key = 'mlflow.bridge.cursor'"
        ).fetchone()
    assert 1000 < longest < 4000


COMMANDS = [
    ["ls", "runs"],
    ["ls", "runs", "--json"],
    ["ls", "runs", "--columns", "run_id,name,notes,tags,checkpoint_path,hparams.x"],
    ["best", "loss", "runs"],
    ["best", "loss", "runs", "--json"],
    ["scan", "runs", "--full"],
    ["scan", "runs", "--full", "--json"],
    *(["show", f"runs/{name}", *json_] for name in TEXTS for json_ in ([], ["--json"])),
    *(
        ["export", "runs", "--to", "tensorboard", "--logdir", "tb", *more]
        for more in (["-v"], ["--rebuild"], ["--json", "--rebuild"])
    ),
    *(["verify", "runs", "--to", "tensorboard", "--logdir", "tb", *more] for more in (["-v"], ["--json"])),
    ["verify", "runs", "--to", "tensorboard", "--logdir", "empty", "-v"],
    ["config"],
]


def assert_harmless(text: str) -> None:
    """Assert that there are no control characters except newlines, and no line forged by a run."""
    assert STEERS.findall(text) == []
    assert not any(line.startswith(FORGED) for line in text.splitlines())


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_nothing_printed_steers_a_terminal(scene: Scene, exported: dict[str, Any], words: list[str]) -> None:
    """The output of a command is harmless, and --json parses."""
    seen = scene.call(*words)
    assert_harmless(seen.out + seen.err)
    if "--json" in words:
        assert seen.data["version"] == 1


def test_nothing_an_export_prints_steers_a_terminal(scene: Scene, exported: dict[str, Any]) -> None:
    """The plan and the report of every target are harmless."""
    for said in scene.said:
        assert_harmless(said)


def test_a_terminal_is_not_steered(scene: Scene) -> None:
    """A terminal receives no control sequences except colours, and markup is text."""
    commands = [["ls", "runs"], *(["show", f"runs/{name}"] for name in TEXTS)]
    code = f"from bridge.cli import bridge\nfor words in {commands}: bridge.main(words, standalone_mode=False)"
    own = {"COLUMNS": "300", "TERM": "xterm-256color", "BRIDGE_CACHE_DIR": str(scene.root / "cache")}
    drawn = on_a_terminal("-c", code, cwd=scene.root, env=own)
    text = re.sub(r"\x1b\[[0-9;]*m", "", drawn).replace("\r\n", "\n")
    assert len(drawn) > len(text)  # there were colours
    assert_harmless(text)
    assert "[red]m[/red][link=file:///etc/passwd]x[/link][/]:smile:" in text


def test_what_pages_show(scene: Scene, exported: dict[str, Any]) -> None:
    """Notes are Markdown, which TensorBoard sanitizes; tags and hyperparameters are shown as text."""
    from tensorboard.plugin_util import markdown_to_safe_html

    (folder,) = (line["where"] for line in exported["tensorboard"]["runs"] if line["path"].endswith("/runs/markdown"))
    found = {
        value.tag: value.tensor.string_val[0].decode()
        for event in events(file_of(scene.root / folder, "facts"))
        for value in event.summary.value
        if value.tensor.string_val
    }
    shown = {tag: markdown_to_safe_html(text) for tag, text in found.items()}
    assert shown.keys() == {"run/notes", "run/hparams", "run/tags"}
    for html in shown.values():
        assert "<script" not in html
        assert 'href="javascript' not in html
    tag = "# h\n&lt;script&gt;alert(1)&lt;/script&gt; [m](javascript:alert(1)) | `x` ![i](http://evil/i.png)"
    assert f"<li>{tag.replace(chr(10), '<br>')}</li>" in shown["run/tags"]
    with contextlib.closing(sqlite3.connect(scene.root / "mlflow.db")) as connection:
        query = "SELECT value FROM tags WHERE key = 'mlflow.note.content' AND value LIKE '# h%'"
        assert connection.execute(query).fetchall() == [(TEXTS["markdown"],)]

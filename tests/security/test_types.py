"""Values of any wrong type in a sidecar, and files of the wrong kind, are named and left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bridge.rundir import read_run
from tests.security.scene import GOOD, TARGETS, Scene, plain_run, points_of, target

VALUES: dict[str, Any] = {
    "true": True,
    "a number": 10**4000,
    "a text": "text",
    "a list": [[]],
    "an object": {"a": {"b": [1]}, "c": None},
}
"""A value of each JSON type; the number is huge."""

FIELDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "run_id": ("a text", ("a text", "a number")),
    "uid": ("a text", ("a text", "a number")),
    "display_name": ("a text", ("a text", "a number")),
    "status": ("a text", ("a text", "a number")),
    "notes": ("a text", ("a text", "a number")),
    "checkpoint_path": ("a text", ("a text", "a number")),
    "time_column": ("a text", ("a text", "a number")),
    "created_at": ("a time", ()),
    "ended_at": ("a time", ()),
    "tags": ("a list", ("a text", "a list")),
    "hparams": ("an object", ("an object",)),
    "summary": ("an object", ("an object",)),
    "archived": ("true or false", ("true",)),
    "sessions": ("a list", ("a text", "a list")),
}
"""What each field must be, and the types that are taken for it; a text may look like a number."""

SESSION: dict[str, tuple[str, tuple[str, ...]]] = {
    "started_at": ("a time", ()),
    "host": ("a text", ("a text", "a number")),
    "pid": ("a whole number", ("a number",)),
    "restart_count": ("a whole number", ("a number",)),
    "slurm": ("an object", ("an object",)),
}


def notices_of(path: Path, **sidecar: Any) -> dict[str, str]:
    """Return the notice on each field of a plain run with this sidecar, without its size."""
    run = read_run(plain_run(path, **sidecar))
    assert [run.files["metrics.csv"].size > 0, run.summary_stats["loss"]["last"]] == [True, 0.25]
    return {notice.what: notice.detail for notice in run.notices if notice.kind.value == "left out"}


@pytest.mark.parametrize("field", [*FIELDS, *(f"sessions.{name}" for name in SESSION)])
def test_a_wrong_type_is_named_and_left_out(tmp_path: Path, field: str) -> None:
    """The notice gives the field's type and the expected one, and the run, or the rest of a session, is read."""
    _, _, inner = field.partition(".")
    wanted, taken = SESSION[inner] if inner else FIELDS[field]
    for kind, value in VALUES.items():
        sidecar = {"sessions": [{inner: value, "user": "ada"}]} if inner else {field: value}
        found = notices_of(tmp_path / kind, **sidecar)
        if kind in taken:
            assert f"is {kind}, not {wanted}" not in found.values()
        else:
            assert found == {f"sidecar.json: {field}": f"is {kind}, not {wanted}"}
        if (field, kind) == ("tags", "a text"):
            assert read_run(tmp_path / kind).tags == ("text",)
        if inner:
            assert [session.user for session in read_run(tmp_path / kind).sessions] == ["ada"]


@pytest.mark.parametrize("to", TARGETS)
def test_runs_in_which_all_is_wrong(tmp_path: Path, sqlite_template: Path, to: str) -> None:
    """Runs with only wrong fields arrive, verify as equal, and are listed; the good run is complete."""
    scene = Scene.make(tmp_path, sqlite_template)
    for number, value in enumerate(VALUES.values()):
        session = dict.fromkeys(SESSION, value)
        own = {"uid": f"all-{number}", "run_id": f"all-{number}", "sessions": [session, value]}
        own |= {"archived": False} if value is True else {}  # the one value that would leave the run out
        plain_run(scene.runs / f"all-{number}", **dict.fromkeys(FIELDS, value) | own)
    export = scene.call("export", "runs", "--workers", 1, *target(to), "--json")
    verify = scene.call("verify", "runs", *target(to), "--json")
    assert [line["action"] for line in export.data["runs"]] == ["new"] * (len(VALUES) + 1)
    assert [line["verdict"] for line in verify.data["runs"]] == ["="] * (len(VALUES) + 1)
    assert (export.code, verify.code) == (0, 0)
    assert points_of(scene, to, "good") == GOOD
    assert len(scene.call("ls", "runs", "--json").data["runs"]) == len(VALUES) + 1


LONG = b"0" * 5000
WHOLE_FILE = {
    "sidecar.json": [b"[1]", b"7", b'"text"', b"null", b"{", b"\xff\xfe{}", b'{"a": 1' + LONG + b"}", b"{}{}", b""],
    "summary.json": [b"[1]", b"7", b"null", b"{", b"\xff", b'{"metrics": 1' + LONG + b"}", b"", b'{"metrics": []}'],
    "hparams.yaml": [
        *(b"[1]", b"7", b"{", b"\xff", b"a: &a [*a]", b"? [a]\n: 1\n"),
        b"a: !!python/object/apply:os.system [exit 1]",
    ],
    "media.jsonl": [b"[1]\n", b"7\n", b"null\n", b"{\n", b"\xff\n", b'{"step": 1' + LONG + b"}\n", b"\0\n"],
    "metrics.csv": [b"\xff\xfe\n", b'"\n', b"\0,step\n\0,\0\n", b"step\n9" + LONG + b"\n", b"\n\n\n"],
}


def test_files_of_a_wrong_kind(tmp_path: Path) -> None:
    """A run with a file of the wrong kind arrives without it, or is unreadable by name."""
    scene = Scene.make(tmp_path)
    for name, contents in WHOLE_FILE.items():
        for number, content in enumerate(contents):
            run = plain_run(scene.runs / f"{name}-{number}", hparams={} if name == "hparams.yaml" else {"lr": 0.5})
            (run / name).write_bytes(content)
    seen = scene.export("tensorboard", "--json")
    lines = {Path(line["path"]).name: line for line in seen.data["runs"]}
    unreadable = {name: line["reason"] for name, line in lines.items() if line["action"] != "new"}
    assert unreadable.keys() == {f"sidecar.json-{number}" for number in range(len(WHOLE_FILE["sidecar.json"]))}
    assert all(f"runs/{name}/sidecar.json" in reason for name, reason in unreadable.items())
    assert points_of(scene, "tensorboard", "good") == GOOD
    verdicts = {Path(line["path"]).name: line["verdict"] for line in scene.verify("tensorboard", "--json").data["runs"]}
    assert verdicts == {name: "!" if name in unreadable else "=" for name in lines}

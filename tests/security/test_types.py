"""Every field of a sidecar with values of every wrong type: the run arrives without that field, and the report names it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.security.scene import GOOD, TARGETS, Scene, plain_run, points_of, target

VALUES: dict[str, Any] = {
    "bool": True,
    "int": 10**4000,
    "float": float("nan"),
    "str": "text",
    "list": [1, "a", None, [], {"a": []}],
    "dict": {"a": {"b": [1]}, "c": None},
}
"""A value of each JSON type, by its name in Python; the number is huge, and the NaN and the list of all sorts are no JSON."""

TEXT, NUMBER = ("str",), ("int", "float")
FIELDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "run_id": ("a text", TEXT + NUMBER),
    "uid": ("a text", TEXT + NUMBER),
    "display_name": ("a text", TEXT + NUMBER),
    "status": ("a text", TEXT + NUMBER),
    "notes": ("a text", TEXT + NUMBER),
    "checkpoint_path": ("a text", TEXT + NUMBER),
    "time_column": ("a text", TEXT + NUMBER),
    "created_at": ("a time", ()),
    "ended_at": ("a time", ()),
    "tags": ("a list", ("str", "list")),
    "hparams": ("an object", ("dict",)),
    "summary": ("an object", ("dict",)),
    "archived": ("true or false", ("bool",)),
    "sessions": ("a list", ("list",)),
}
"""What each field must be, and the types that are taken for it; a text may look like a number."""

SESSION: dict[str, tuple[str, tuple[str, ...]]] = {
    "started_at": ("a time", ()),
    "host": ("a text", ("bool", *TEXT, *NUMBER)),
    "command": ("a text", ("bool", *TEXT, *NUMBER)),
    "pid": ("a whole number", ()),
    "rows": ("a whole number", ()),
    "restart_count": ("a whole number", ()),
    "slurm": ("an object", ("dict",)),
}
WITHIN = {
    "tags": ["sidecar.json: tags: 1", "sidecar.json: tags: []", "sidecar.json: tags: {'a': []}"],
    "sessions": ["sidecar.json: sessions: 1", "sidecar.json: sessions: 'a'", "sidecar.json: sessions: []"],
    "summary": ["sidecar.json: summary.a"],
}
"""What is named of the list, or the object, that such a field may be."""

WRONG = [
    *((field, kind, "") for field in FIELDS for kind in VALUES),
    *((field, kind, "sessions: ") for field in SESSION for kind in VALUES),
]


def run_of(field: str, kind: str, within: str) -> str:
    return f"{within.strip(': ')}{field}-{kind}"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Scene:
    """A good run, one for each wrong field, and for each type one in which every field is of it."""
    scene = Scene(tmp_path_factory.mktemp("types"))
    shutil.copy(sqlite_template, scene.root / "mlflow.db")
    plain_run(scene.runs / "good")
    for field, kind, within in WRONG:
        fields = {"sessions": [{field: VALUES[kind]}]} if within else {field: VALUES[kind]}
        plain_run(scene.runs / run_of(field, kind, within), **fields)
    for kind, value in VALUES.items():
        session = dict.fromkeys(SESSION, value)
        own = {"uid": f"all-{kind}", "run_id": f"all-{kind}", "sessions": [session, value]}
        plain_run(scene.root / "mixed" / f"all-{kind}", **dict.fromkeys(FIELDS, value) | own)
    plain_run(scene.root / "mixed" / "fine")
    return scene


@pytest.fixture(scope="module")
def report(scene: Scene) -> dict[str, Any]:
    """The lines of an export into TensorBoard, by the run's directory."""
    seen = scene.export("tensorboard", "--json")
    assert seen.code == 0
    return {Path(line["path"]).name: line for line in seen.data["runs"]}


CUT = {"run_id-int", "display_name-int"}


@pytest.mark.parametrize(("field", "kind", "within"), WRONG)
def test_a_wrong_type_is_named_and_left_out(report: dict[str, Any], field: str, kind: str, within: str) -> None:
    """The run arrives with all else; the notice says what the field is and what it should be."""
    line = report[run_of(field, kind, within)]
    wanted, taken = (SESSION if within else FIELDS)[field]
    told = {one["what"]: one["detail"] for entry in line["notices"] for one in entry["examples"]}
    name = f"sidecar.json: {within}{field}"
    assert line["action"] == "new", line["reason"]
    assert line["points"] == (3 if field != "time_column" else line["points"])
    if run_of(field, kind, within) in CUT:
        assert told[name] == "of 4001 characters the first 500 are kept, with a digest as their end"
    elif kind in taken:
        assert name not in told
        assert [what for what in told if what.startswith(f"{name}:")] == (
            WITHIN.get(field, []) if kind == "list" else []
        )
    else:
        assert told[name] == f"is a {kind}, not {wanted}"


def test_the_good_run_is_whole(scene: Scene, report: dict[str, Any]) -> None:
    """Among all these nothing is lost of it."""
    assert (report["good"]["action"], report["good"]["notices"]) == ("new", [])
    assert points_of(scene, "tensorboard", "good") == GOOD


@pytest.mark.parametrize("to", TARGETS)
def test_runs_in_which_all_is_wrong(scene: Scene, to: str) -> None:
    """They arrive in both targets, verify's own reader has them as export had them, and ls lists them."""
    export = scene.call("export", "mixed", *target(to), "--json")
    verify = scene.call("verify", "mixed", *target(to), "--json")
    assert [line["action"] for line in export.data["runs"]] == ["new"] * (len(VALUES) + 1)
    assert [line["verdict"] for line in verify.data["runs"]] == ["="] * (len(VALUES) + 1)
    assert (export.code, verify.code) == (0, 0)
    assert len(scene.call("ls", "mixed", "--json").data["runs"]) == len(VALUES) + 1


WHOLE_FILE = {
    "sidecar.json": [
        b"[1]",
        b"7",
        b'"text"',
        b"null",
        b"{",
        b"\xff\xfe{}",
        b'{"a": 1' + b"0" * 5000 + b"}",
        b"{}{}",
        b"",
    ],
    "summary.json": [
        b"[1]",
        b"7",
        b"null",
        b"{",
        b"\xff",
        b'{"metrics": 1' + b"0" * 5000 + b"}",
        b"",
        b'{"metrics": []}',
    ],
    "hparams.yaml": [
        b"[1]",
        b"7",
        b"{",
        b"\xff",
        b"a: !!python/object/apply:os.system [exit 1]",
        b"a: &a [*a]",
        b"? [a]\n: 1\n",
    ],
    "media.jsonl": [b"[1]\n", b"7\n", b"null\n", b"{\n", b"\xff\n", b'{"step": 1' + b"0" * 5000 + b"}\n", b"\0\n"],
    "metrics.csv": [b"\xff\xfe\n", b'"\n', b"\0,step\n\0,\0\n", b"step\n" + b"9" * 5000 + b"\n", b"\n\n\n"],
}


def test_files_that_are_something_else(tmp_path: Path) -> None:
    """Whatever stands in a file, the run arrives without it or is unreadable by name; no other run is touched by it."""
    scene = Scene(tmp_path)
    plain_run(scene.runs / "good")
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

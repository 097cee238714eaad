"""`bridge set` edits name, notes and tags of a run in its sidecar."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.cli.calling import call
from tests.run_dirs import make_run


@pytest.fixture
def run(place: Path) -> Path:
    """Make a run with two tags and an unknown field."""
    return make_run(Path("runs/a"), [{"step": 0, "loss": 1.0}], tags=["old", "kept"], theirs=[1])


def sidecar(run: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((run / "sidecar.json").read_text())
    return data


def test_name_notes_tags_and_archived_change_and_all_else_stays(run: Path) -> None:
    """Each option changes its field and keeps all others, unknown ones included."""
    before = sidecar(run)
    words = ["--name", "best of all", "--notes", "# seen", "--tag", "+new", "--tag=-old", "--tag", "+kept", "--archive"]
    code, out, err = call("set", "a", "runs", *words)
    assert (code, out, err) == (0, "a: changed name, notes, archived, tags. The next export sends it.\n", "")
    changed = {"display_name": "best of all", "notes": "# seen", "tags": ["kept", "new"], "archived": True}
    assert sidecar(run) == {**before, **changed}
    assert call("set", "runs/a", "--name", "", "--unarchive", "--tag=-kept", "--tag=-new")[0] == 0
    assert sidecar(run) == {**before, "notes": "# seen", "tags": [], "archived": False}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "has no sidecar.json, so its name, notes and tags cannot be changed: its logger keeps none.\n"),
        ("{", "sidecar.json cannot be read"),
    ],
    ids=["missing", "broken"],
)
def test_what_is_no_sidecar_is_not_edited(run: Path, content: str | None, said: str) -> None:
    """A broken sidecar stays, and none is made, because a new one would change the run's identity."""
    (run / "sidecar.json").unlink()
    if content is not None:
        (run / "sidecar.json").write_text(content)
    code, out, err = call("set", "runs/a", "--notes", "x")
    assert (code, out, said in err) == (1, "", True)
    assert [path.read_text() for path in run.glob("sidecar.json")] == ([] if content is None else [content])


def test_an_edit_waits_for_nobody_and_overwrites_nobody(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a training writes its sidecar between read and write, the edit is applied to what it wrote."""
    from bridge.rundir import edit

    wrote = edit.replace_file

    def meddle(path: Path, *arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(edit, "replace_file", wrote)
        path.write_text(json.dumps(sidecar(run) | {"status": "failed"}))
        return wrote(path, *arguments, **options)

    monkeypatch.setattr(edit, "replace_file", meddle)
    edit.edit_run(run, notes="mine")
    assert (sidecar(run)["status"], sidecar(run)["notes"]) == ("failed", "mine")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a", "runs"], "Nothing to change: give --name, --notes, --tag, --archive or --unarchive."),
        (["a", "runs", "--tag", "new"], "--tag takes +TAG or -TAG, not 'new'."),
        (["nobody", "runs", "--notes", "x"], "No run 'nobody' in runs."),
        (["aa", "runs", "--notes", "x"], "Hint: Did you mean a? "),
    ],
)
def test_wrong_usage(run: Path, words: list[str], said: str) -> None:
    """No change, a tag without a sign, and an unknown run are wrong usage; the nearest id is suggested."""
    code, out, err = call("set", *words)
    assert (code, out, said in err) == (2, "", True)


def test_a_read_only_share_is_one_sentence(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a read-only directory the error names the file."""
    from bridge.rundir import edit

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(edit, "replace_file", refuse)
    code, _, err = call("set", "runs/a", "--notes", "x")
    assert (code, "sidecar.json cannot be changed: Read-only file system." in err) == (1, True)

"""Both readers of a run's facts and media must agree, whatever stands in the sidecar, hparams.yaml and media.jsonl."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.cursor import ContentOptions
from bridge.rundir import read_run, read_whole
from bridge.rundir.wanted import ReadOptions
from bridge.sync import truth
from tests.contract.test_media import picture
from tests.run_dirs import CREATED_S, make_run

if TYPE_CHECKING:
    from collections.abc import Callable

TEXTS = st.sampled_from(["", "a", "x/y", "a b", "größe", "\ud800", "1", "[1]"])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(), TEXTS)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
TIMES = st.one_of(
    st.sampled_from(
        ["2026-04-10T12:00:00+00:00", "2026-04-10T12:00:00", "2026-04-10", "1775822400.5", "later", "", -1, 0]
    ),
    st.sampled_from([1775822400, 1e300, True, None, [], 253402300800.0]),
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "run_id": st.one_of(TEXTS, st.integers(0, 3), st.none()),
        "display_name": TREES,
        "status": st.one_of(st.sampled_from(["running", "completed", "failed", "interrupted", "odd"]), TREES),
        "created_at": TIMES,
        "ended_at": TIMES,
        "tags": st.one_of(st.lists(SCALARS, max_size=4), TREES),
        "notes": TREES,
        "hparams": st.one_of(st.dictionaries(TEXTS, TREES, max_size=4), TREES),
        "time_column": st.one_of(st.just("wall_time"), st.just("other"), TREES),
    },
)

YAML = {
    "plain": "lr: 0.1\nmodel:\n  name: big\n  sizes: [1, 2]\n",
    "tags": "a: !!python/object/apply:os.system [echo]\nb: !mine 3\nc: !!set {x, y}\nd: 2026-01-01\n",
    "types": "a: .nan\nb: .inf\nc: 0o17\nd: yes\ne: null\n1: int\n2.5: float\ntrue: bool\n",
    "odd": "- a list\n",
    "torn": "a: [1, 2\n",
    "empty": "",
    "two of a name": "a: {b: 1, c.d: 2}\na.b: 3\na.b_2: 4\na: {b: 5}\na.c: {d: 6}\n1: x\n'1': y\na.b_3: z\n",
    "two of a nested name": "a: {b: {c: 1}, b.c: 2}\na.b: {c: 3}\na.b.c: 4\na.b.c_2: 5\n",
    "bomb": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(
        f"{key}: &{key} [{', '.join(['*' + before] * 9)}]\n" for before, key in zip("abcdefg", "bcdefgh", strict=True)
    ),
    "deep": "a: " + "[" * 80 + "]" * 80 + "\n",
}


def assert_facts_agree(path: Path) -> None:
    run, facts = read_run(path), truth.read(path).facts
    mine = (facts.run_id, facts.name, facts.tags, facts.notes, repr(dict(facts.params)), facts.time_column)
    column = run.time_column if run.time_column is not None else facts.time_column
    assert mine == (run.run_id, run.name, run.tags, run.notes, repr(dict(run.params)), column)
    assert facts.start == pytest.approx(run.start, abs=1e-5)
    assert facts.end(run.status.value) == run.end
    assert (facts.status_word or "") == (run.status_word or "")


@given(fields=FIELDS)
@settings(max_examples=150, deadline=None)
def test_any_sidecar(fields: dict[str, Any]) -> None:
    """Whatever a sidecar says, in whatever types, both readers say the same of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = make_run(Path(folder) / "run", [{"step": 0, "loss": 1.0}], heartbeat_age=30.0)
        sidecar = json.loads((path / "sidecar.json").read_text()) | fields
        (path / "sidecar.json").write_text(json.dumps(sidecar))
        assert_facts_agree(path)


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
def test_any_hparams_yaml(tmp_path: Path, text: str) -> None:
    """Whatever hparams.yaml holds, both readers make the same params of it, safely and within bounds."""
    path = make_run(tmp_path / "run", [{"step": 0, "loss": 1.0}])
    (path / "hparams.yaml").write_text(text)
    os.utime(path / "hparams.yaml", (CREATED_S, CREATED_S))
    assert_facts_agree(path)


LINES = st.lists(
    st.one_of(
        st.builds(
            lambda **fields: json.dumps({key: value for key, value in fields.items() if value is not None}),
            step=st.sampled_from([0, 0, 1, 2.5, 2**63, None]),
            tag=st.sampled_from(["s", "s", "t", 3]),
            type=st.sampled_from(["image", "image", "video", "sound"]),
            path=st.sampled_from(["media/a.png", "media/b.gif", "media/c.mp4", "media/none.png", "../out.png", "media", "/etc/passwd"]),
            session=st.sampled_from([None, 0, 1, "x"]),
            caption=st.sampled_from([None, "c", 5]),
        ),
        st.sampled_from(["", "nonsense", "[1]", '{"step": 1, "tag', '{"step": 1, {"step": 0, "tag": "s", "type": "image", "path": "media/a.png"}']),
    ),
    max_size=8,
)  # fmt: skip


@given(lines=LINES, limit=st.integers(0, 8), torn=st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_media_lines(lines: list[str], limit: int, torn: bool) -> None:
    """Whatever media.jsonl holds, both readers find the same events, in the same order, with the same files."""
    with tempfile.TemporaryDirectory() as folder:
        path = make_run(Path(folder) / "run")
        (path / "media").mkdir()
        (path.parent / "out.png").write_bytes(picture(9))
        (path / "media" / "a.png").write_bytes(picture(1))
        (path / "media" / "b.gif").write_bytes(b"GIF89a" + bytes(20))
        (path / "media" / "c.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(20))
        text = "".join(f"{line}\n" for line in lines)
        (path / "media.jsonl").write_text(text + '{"step"' * torn)
        deltas = list(read_whole(read_run(path), ContentOptions(), ReadOptions()))
        events = [event for delta in deltas for event in delta.media]
        read = truth.read(path)
        assert read.media_lines == deltas[-1].after.media_lines == len(lines)
        assert [(one.line, one.tag, one.step, one.path, one.format, one.caption, one.digest) for one in read.media] == [
            (one.line, one.tag, one.step, one.path, one.format, one.caption, _digest(one.file.path))
            for one in sorted(events, key=lambda event: event.line)
        ]
        assert len(truth.read(path, media_lines=limit).media) <= limit


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _link_out(path: Path) -> None:
    outside = path.parent.parent / "outside"
    outside.write_text("a,step\n1,0\n")
    path.symlink_to(outside)


def _folder(path: Path) -> None:
    path.mkdir()


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("name", ["metrics.csv", "media.jsonl", "hparams.yaml"])
@pytest.mark.parametrize("make", [_fifo, _link_out, _folder, _loop])
def test_what_is_no_file_of_the_run_is_not_read(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    """A pipe, a link that leaves the directory, a folder and a link to itself are as if they were not there."""
    path = make_run(tmp_path / "run", [{"step": 0, "loss": 1.0}])
    (path / name).unlink(missing_ok=True)
    make(path / name)
    read = truth.read(path)
    assert read.media == ()
    assert (read.rows == 0) == (name == "metrics.csv")

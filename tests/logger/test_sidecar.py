"""The format of sidecars and heartbeats: strict JSON, whole files, tolerant reading, unchanged access rights."""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from logger import RunWriter
from logger.heartbeat import read_beat, restore_beat, touch_heartbeat
from logger.sidecar import (
    SessionEntry,
    Sidecar,
    Summary,
    decode_document,
    parse_heartbeat,
    parse_time,
)
from tests.require import require


def test_a_wrong_field_costs_itself_and_is_named(tmp_path: Path) -> None:
    """Times in any form, numbers as text and one tag as text are read; a wrong field is left out and named."""
    text = json.dumps(
        {
            "run_id": 12,
            "created_at": "2026-04-10T12:00:00Z",
            "ended_at": -4,
            "tags": "base",
            "notes": ["x"],
            "archived": "yes",
            "summary": {"l": "NaN", "m": True, "n": "x", "o": 10**400, "p": None},
            "sessions": [{"pid": "x", "started_at": "2026-04-10T12:00:00", "rows": 3.0, "slurm": {"a": 7}}, 5],
        }
    )
    found, problems = decode_document(text.encode(), tmp_path, Sidecar)
    assert (found.run_id, found.created_at, found.ended_at, found.tags) == ("12", 1775822400.0, None, ["base"])
    assert repr(found.summary) == "{'l': nan, 'm': 1.0}"
    assert found.sessions == [SessionEntry(started_at=1775822400.0, rows=3, slurm={"a": "7"})]
    assert problems == [
        ("ended_at", "is a number, not a time"),
        ("notes", "is a list, not a text"),
        ("archived", "is a text, not true or false"),
        ("summary.n", "is a text, not a number"),
        ("summary.o", "is too large for a number"),
        ("sessions.pid", "is a text, not a whole number"),
        ("sessions", "is a number, not an object"),
    ]


def test_numbers_of_other_writers_are_read(tmp_path: Path) -> None:
    """A bare NaN of the original is read; as min or max it means that both are unknown."""
    text = '{"metrics": {"a": {"last": NaN, "min": "-Infinity"}, "b": 3, "c": {"min": NaN, "max": 0.9, "count": 2}}}'
    found, problems = decode_document(text.encode(), tmp_path, Summary)
    assert math.isnan(found.metrics["a"].last or 0.0)
    assert found.metrics["a"].min == -math.inf
    assert (found.metrics["c"].min, found.metrics["c"].max, found.metrics["c"].count) == (None, None, 2)
    assert problems == [("metrics.b", "is a number, not an object")]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2026-04-10T12:00:00+00:00", 1775822400.0),
        ("2026-04-10T14:00:00+02:00", 1775822400.0),
        ("2026-04-10T12:00:00Z", 1775822400.0),
        ("2026-04-10T12:00:00.250000", 1775822400.25),
        (1775822400, 1775822400.0),
        ("1775822400.5", 1775822400.5),
        ("yesterday", None),
        (None, None),
        (True, None),
        (math.nan, None),
        (-1.0, None),
        (10**400, None),
        ("9" * 400, None),
        ([], None),
    ],
)
def test_times_are_read_in_any_form(value: object, expected: float | None) -> None:
    """ISO texts (UTC without a zone) and seconds are times, and anything else is none."""
    assert parse_time(value) == expected


def test_times_are_written_as_seconds_since_the_epoch(tmp_path: Path) -> None:
    """The times in sidecar.json and summary.json are numbers, as the original RegistryLogger writes them."""
    began = time.time()
    run = RunWriter.open(tmp_path, "r")
    run.log_metrics({"a": 1.0}, 1)
    run.finalize("completed")
    found, summary = (json.loads((tmp_path / name).read_text()) for name in ("sidecar.json", "summary.json"))
    times = [found[name] for name in ("created_at", "updated_at", "ended_at")]
    times += [found["sessions"][0]["started_at"], summary["updated_at"]]
    assert [int(began) <= at <= time.time() + 1 for at in times] == [True] * 5


def test_others_can_read_what_the_umask_allows() -> None:
    """Another user reads all files of a run with umask 022 and none with 077."""
    require(os.getuid() == 0, "being root (to read as another user id)")
    with tempfile.TemporaryDirectory() as folder:  # tmp_path lies below a folder that only its owner may enter
        Path(folder).chmod(0o755)
        for mask in (0o022, 0o077):
            before = os.umask(mask)
            try:
                run = RunWriter.open(Path(folder, str(mask)), "r")
                run.log_metrics({"a": 1.0}, 1)
                run.log_hparams({"a": 1})
                run.log_image("t", [np.zeros((2, 2))])
                run.finalize("completed")
            finally:
                os.umask(before)
            files = [path for path in run.run_dir.rglob("*") if path.is_file()]
            modes = {path.stat().st_mode & 0o777 for path in files}
            done = subprocess.run(["cat", *files], user=65534, group=65534, capture_output=True, check=False)
            assert (len(files), modes, done.returncode) == (7, {0o666 & ~mask}, int(mask == 0o077))


@pytest.mark.parametrize("content", [None, b"", b"1775822400.250000\n"])
def test_a_heartbeat_holds_its_time_and_can_be_put_back(tmp_path: Path, content: bytes | None) -> None:
    """A beat makes the file, writes its time into it and moves its mtime; put back, all are as before."""
    if content is not None:
        (tmp_path / "heartbeat").write_bytes(content)
        os.utime(tmp_path / "heartbeat", (5.0, 5.0))
    before, began = read_beat(tmp_path), time.time()
    for _ in range(2):
        touch_heartbeat(tmp_path)
    held = parse_heartbeat((tmp_path / "heartbeat").read_bytes())
    assert held is not None
    assert began - 1e-6 <= held <= time.time()
    assert (tmp_path / "heartbeat").stat().st_mtime > 5.0
    restore_beat(tmp_path, before)
    assert (read_beat(tmp_path), before is None) == (before, content is None)
    assert (parse_heartbeat(b""), parse_heartbeat(b"odd\xff")) == (None, None)

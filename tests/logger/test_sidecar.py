"""The format: strict JSON, whole files, tolerant reading, access that people gave."""

from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from logger.sidecar import (
    SidecarError,
    atomic_json_write,
    heartbeat_mtime,
    heartbeat_path,
    is_alive,
    make_sidecar,
    parse_time,
    read_sidecar,
    read_summary,
    sidecar_path,
    touch_heartbeat,
    write_sidecar,
)
from tests.require import require


def test_a_sidecar_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """What is written is read back, unknown fields and non-finite numbers included, and the file is strict JSON."""
    sidecar = make_sidecar(tmp_path, "r1", tags=["a", "a"], notes="n", hparams={"net": {"depth": 3}})
    sidecar["summary"] = {"loss": math.inf, "acc": 0.5}
    sidecar["unknown"] = {"by": ["someone", "else"]}
    write_sidecar(tmp_path, sidecar)
    assert read_sidecar(tmp_path) == sidecar
    assert json.loads(sidecar_path(tmp_path).read_text())["summary"] == {"loss": "Infinity", "acc": 0.5}
    assert (sidecar["tags"], sidecar["hparams"], sidecar["status"]) == (["a"], {"net.depth": 3}, "running")


def test_two_runs_never_share_a_uid(tmp_path: Path) -> None:
    """Each new sidecar has a random uid of its own."""
    assert make_sidecar(tmp_path, "r")["uid"] != make_sidecar(tmp_path, "r")["uid"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        ("[1]", "it holds a JSON list, not an object"),
        ('{"a": ', "it is not JSON"),
        ("\xff", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
    ],
)
def test_a_file_that_is_no_sidecar_says_so(tmp_path: Path, text: str, reason: str) -> None:
    """What cannot be read raises a ValueError that names the file and the reason."""
    sidecar_path(tmp_path).write_text(text, encoding="latin-1")
    with pytest.raises(SidecarError, match=reason) as caught:
        read_sidecar(tmp_path)
    assert str(sidecar_path(tmp_path)) in str(caught.value)


def test_numbers_of_other_writers_are_read(tmp_path: Path) -> None:
    """A bare NaN, which the original wrote, is read as the number that it means."""
    (tmp_path / "summary.json").write_text('{"metrics": {"a": {"last": NaN, "min": "-Infinity"}, "b": 3}}')
    metrics = read_summary(tmp_path)["metrics"]
    assert math.isnan(metrics["a"]["last"])
    assert metrics["a"]["min"] == -math.inf
    assert list(metrics) == ["a"]


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
    """ISO texts (without a zone: UTC) and seconds are times; all else is none."""
    assert parse_time(value) == expected


def test_a_replaced_file_keeps_mode_and_group(tmp_path: Path) -> None:
    """People who gave a file to their group find it so after the next write."""
    path = tmp_path / "a.json"
    atomic_json_write(path, {})
    path.chmod(0o640)
    if os.getuid() == 0:
        os.chown(path, -1, 4321)
    before = path.stat()
    atomic_json_write(path, {"a": 1})
    after = path.stat()
    assert (after.st_gid, stat.S_IMODE(after.st_mode)) == (before.st_gid, 0o640)
    assert after.st_ino != before.st_ino


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """A sidecar that is a link is written where it points."""
    (tmp_path / "real.json").write_text("{}")
    (tmp_path / "link.json").symlink_to("real.json")
    atomic_json_write(tmp_path / "link.json", {"a": 1})
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text()) == {"a": 1}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    """When the data cannot be written the old file stays, and no temporary file is left."""
    path = tmp_path / "a.json"
    atomic_json_write(path, {"a": 1})
    with pytest.raises(RecursionError):
        atomic_json_write(path, {"a": _endless()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def _endless() -> list[object]:
    endless: list[object] = [math.nan]
    endless.append(endless)
    return endless


def test_another_user_can_read_what_the_umask_allows() -> None:
    """With umask 022 another user id reads the files; with 077 it does not."""
    require(os.getuid() == 0, "being root (to read as another user id)")
    codes = []
    with tempfile.TemporaryDirectory() as folder:  # tmp_path lies below a folder that only its owner may enter
        Path(folder).chmod(0o755)
        for mask in (0o022, 0o077):
            run_dir = Path(folder, str(mask))
            run_dir.mkdir(mode=0o755)
            before = os.umask(mask)
            try:
                write_sidecar(run_dir, {})
                touch_heartbeat(run_dir)
            finally:
                os.umask(before)
            command = ["cat", sidecar_path(run_dir), heartbeat_path(run_dir)]
            codes.append(subprocess.run(command, user=65534, group=65534, capture_output=True, check=False).returncode)
    assert codes == [0, 1]


@pytest.mark.parametrize(
    ("status", "age", "alive"),
    [
        ("running", 0, True),
        ("running", 181, False),
        ("completed", 0, False),
        ("failed", 0, False),
        ("interrupted", 0, False),
    ],
)
def test_terminal_statuses_win_over_the_heartbeat(tmp_path: Path, status: str, age: float, alive: bool) -> None:
    """A run is alive while it is running and its heartbeat is at most 180 s old."""
    write_sidecar(tmp_path, {"status": status})
    touch_heartbeat(tmp_path)
    now = heartbeat_mtime(tmp_path)
    assert now is not None
    assert is_alive(tmp_path, now=now + age) is alive


def test_a_heartbeat_is_made_and_touched(tmp_path: Path) -> None:
    """Without a heartbeat a run is not alive; touching makes it, and moves its time to the present."""
    assert (heartbeat_mtime(tmp_path), is_alive(tmp_path)) == (None, False)
    touch_heartbeat(tmp_path)
    os.utime(heartbeat_path(tmp_path), (1.0, 1.0))
    touch_heartbeat(tmp_path)
    beat = heartbeat_mtime(tmp_path)
    assert beat is not None
    assert abs(beat - time.time()) < 60
    assert is_alive(tmp_path)

"""Hyperparameters over several calls and starts: no two of a name are ever merged, whatever an earlier file holds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from bridge.rundir import read_run
from logger.hparams import Hparams
from logger.opened import open_run
from logger.settings import Settings
from logger.troubles import RegistryLoggerWarning
from tests.logger.rows import sidecar

if TYPE_CHECKING:
    from pathlib import Path

    from logger.run_writer import RunWriter


def start(run_dir: Path, token: str = "first") -> RunWriter:
    return open_run(Settings(run_dir=run_dir, run_id="r", token=token), announce=lambda _: None)


@pytest.mark.parametrize(
    ("calls", "flat", "told"),
    [
        ([{"a.b": 1}, {"a": {"c": 2}}], {"a.b": 1, "a.c": 2}, ()),
        ([{"a": {"b": 1}}, {"a.b": 2}], {"a.b": 1, "a.b_2": 2}, (("a.b", "a.b_2"),)),
        ([{"a": {"b": 1}, "a.b": 2}, {"a": {"b": 3}}], {"a.b": 3, "a.b_2": 2}, (("a.b", "a.b_2"),)),
        ([{"a": {"b": 1}, "a.b": 2}, {"a": {"c": 3}}], {"a.c": 3, "a.b": 2}, ()),
        ([{"a": 1}, {"a": {"b": 2}}, {"a": 3}], {"a": 3}, ()),
    ],
)
def test_keys_that_collide_over_several_calls_are_all_kept(
    tmp_path: Path, calls: list[dict[str, Any]], flat: dict[str, Any], told: tuple[tuple[str, str], ...]
) -> None:
    """A key replaces what was logged under itself, and nothing else: a dotted key and a nested one are two, also after a resume."""
    hparams = Hparams(tmp_path / "hparams.yaml")
    for call in calls:
        renamed = hparams.update(call)
    assert (hparams.flat, renamed) == (flat, told)
    resumed = Hparams(tmp_path / "hparams.yaml")
    assert resumed.resume(flat)
    resumed.update({"z": 1})
    assert resumed.flat == flat | {"z": 1}
    assert read_run_params(tmp_path) == flat | {"z": 1}


def read_run_params(run_dir: Path) -> dict[str, Any]:
    """What a reader makes of hparams.yaml alone."""
    (run_dir / "sidecar.json").write_text('{"run_id": "r"}')
    return dict(read_run(run_dir).params)


def test_a_collision_over_two_calls_is_told(tmp_path: Path) -> None:
    """The second of two hyperparameters of one name is kept under another, which a warning names."""
    writer = start(tmp_path)
    writer.log_hparams({"a": {"b": 1}})
    with pytest.warns(RegistryLoggerWarning, match="'a.b_2'"):
        writer.log_hparams({"a.b": 2})
    writer.release()
    assert sidecar(tmp_path)["hparams"] == {"a.b": 1, "a.b_2": 2}


def test_what_only_the_sidecar_holds_stays(tmp_path: Path) -> None:
    """Values that people edited, or whose hparams.yaml is gone, stay until their key is logged again."""
    writer = start(tmp_path)
    writer.log_hparams({"lr": 0.1, "net": {"depth": 2}, "inf": float("inf")})
    writer.release()
    edited = sidecar(tmp_path)
    edited["hparams"] |= {"lr": 0.2, "mine": 1, "net.width": 3}
    (tmp_path / "sidecar.json").write_text(json.dumps(edited))
    writer = start(tmp_path, "second")
    writer.log_hparams({"z": 0})
    expected = {"lr": 0.2, "net.depth": 2, "inf": "Infinity", "mine": 1, "net.width": 3, "z": 0}
    assert sidecar(tmp_path)["hparams"] == expected
    writer.log_hparams({"net": {"depth": 4}, "lr": 0.1})
    writer.release()
    assert sidecar(tmp_path)["hparams"] == {"lr": 0.1, "net.depth": 4, "inf": "Infinity", "mine": 1, "z": 0}


@pytest.mark.parametrize("text", ["a: !!timestamp foo\n", "a: !!bool maybe\n", 'a: !!int ""\n', "? [a]\n: 1\n"])
def test_a_yaml_that_no_loader_takes_is_kept_aside(tmp_path: Path, text: str) -> None:
    """Whatever an earlier hparams.yaml holds, a start goes on, says so, and keeps the file."""
    (tmp_path / "hparams.yaml").write_text(text)
    (tmp_path / "metrics.csv").write_bytes(b"step,a\r\n0,1\r\n")
    with pytest.warns(RegistryLoggerWarning, match=r"hparams\.yaml\.1"):
        writer = start(tmp_path)
    writer.log_hparams({"z": 1})
    writer.release()
    assert yaml.safe_load((tmp_path / "hparams.yaml").read_text()) == {"z": 1}
    assert (tmp_path / "hparams.yaml.1").read_text() == text

"""Options take their values from the command line, then BRIDGE_..., then bridge.yaml; `config` shows the caches."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from bridge.cli import bridge
from tests.run_dirs import make_run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Make one run of two metrics in the working directory."""
    rows = [{"step": step, "loss": 1 / (step + 1), "acc": step / 3} for step in range(3)]
    make_run(tmp_path / "runs" / "a", rows, hparams={"lr": 0.1, "hostname": "node7", "api_key": "s3cret"})
    return tmp_path


def export(*words: str) -> dict[str, int]:
    """Export the one run, by default to TensorBoard, and return the totals."""
    result = CliRunner().invoke(bridge, ["export", "runs", "--to", "tensorboard", "--workers", "1", "--json", *words])
    assert result.exit_code == 0, result.output
    totals: dict[str, int] = json.loads(result.stdout)["totals"]
    return totals


def test_the_command_line_goes_before_the_environment_and_that_before_the_file(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line overrides the environment, which overrides bridge.yaml."""
    (here / "bridge.yaml").write_text("tensorboard: {logdir: of-file}\nmetrics: {include: nothing}\n")
    assert export()["points"] == 0
    monkeypatch.setenv("BRIDGE_METRICS", "loss")
    monkeypatch.setenv("BRIDGE_LOGDIR", "of-environment")
    assert export()["points"] == 3
    assert export("--metrics", "*", "--logdir", "typed")["points"] == 6
    assert {path.name for path in here.iterdir()} == {
        "runs",
        "cache",
        "bridge.yaml",
        "of-file",
        "of-environment",
        "typed",
    }


def test_the_file_itself_can_be_named_in_the_environment(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BRIDGE_CONFIG names the file, and --config overrides it."""
    for name in ("one", "two"):
        (here / f"{name}.yaml").write_text(f"tensorboard: {{logdir: tb-{name}}}\n")
    monkeypatch.setenv("BRIDGE_CONFIG", str(here / "one.yaml"))
    export()
    export("--config", "two.yaml")
    assert (here / "tb-one").is_dir()
    assert (here / "tb-two").is_dir()


def test_an_empty_list_in_the_file_replaces_the_built_in_one(here: Path) -> None:
    """`redact: []` masks nothing, and without it the built-in list masks."""
    export("--logdir", "masked")
    (here / "bridge.yaml").write_text("redact: []\n")
    export("--logdir", "clear")
    held = {name: b"".join(p.read_bytes() for p in (here / name).rglob("*.0*")) for name in ("masked", "clear")}
    assert (b"s3cret" in held["masked"], b"s3cret" in held["clear"]) == (False, True)


def test_quiet_is_silent_unless_something_failed(here: Path) -> None:
    """With -q a successful export prints nothing, and a failed one prints its failures."""
    words = ["export", "runs", "--to", "tensorboard", "--workers", "1", "-q"]
    assert CliRunner().invoke(bridge, words).output == ""
    make_run(here / "runs" / "b", [])
    (here / "runs" / "b" / "sidecar.json").write_text("{")
    result = CliRunner().invoke(bridge, words)
    assert (result.exit_code, result.stdout, "! b: " in result.stderr) == (3, "", True)


def test_a_plan_names_the_runs_that_are_unchanged_too(here: Path) -> None:
    """`--dry-run` has a line for every run."""
    words = ["export", "runs", "--to", "tensorboard", "--workers", "1"]
    CliRunner().invoke(bridge, words)
    assert "= a: unchanged" in CliRunner().invoke(bridge, [*words, "--dry-run"]).stdout
    assert "= a: " not in CliRunner().invoke(bridge, words).stdout


def test_values_are_shown_as_they_are_given(here: Path) -> None:
    """`bridge config` and the reason of a rebuild show `--rename` as OLD=NEW."""
    call = CliRunner(env={"BRIDGE_RENAME": "loss=train/loss acc=accuracy"}).invoke
    words = "--rename              loss=train/loss acc=accuracy  (environment: BRIDGE_RENAME)"
    assert words in call(bridge, ["config"]).stdout.splitlines()
    export = ["export", "runs", "--to", "tensorboard", "--workers", "1"]
    CliRunner().invoke(bridge, export)
    done = call(bridge, [*export, "--rename", "loss=train/loss"])
    assert "rename (was the default, is loss=train/loss)" in done.output


def test_config_says_where_caches_lie_and_how_large_they_are(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`bridge config` names each cache with its size."""
    call = CliRunner().invoke
    assert json.loads(call(bridge, ["config", "--json"]).stdout)["caches"] == []
    assert call(bridge, ["ls", "runs"]).exit_code == 0
    cached, *others = json.loads(call(bridge, ["config", "--json"]).stdout)["caches"]
    assert cached == {"path": str(here / "cache" / "registry"), "bytes": cached["bytes"]}
    assert [other["path"] for other in others] == [str(here / "cache" / "statistics.sqlite")]
    assert f"cache: {cached['path']}  ({cached['bytes'] / 1000:,.0f} kB; " in call(bridge, ["config"]).stdout

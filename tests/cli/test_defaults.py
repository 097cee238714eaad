"""Options take their values from the command line, then BRIDGE_..., then bridge.yaml; `config` shows the caches."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.calling import call
from tests.run_dirs import make_run

if TYPE_CHECKING:
    from pathlib import Path


WORDS = ["export", "runs", "--to", "tensorboard", "--workers", "1"]


@pytest.fixture(autouse=True)
def here(place: Path) -> Path:
    """Make one run of two metrics in the working directory."""
    rows = [{"step": step, "loss": 1 / (step + 1), "acc": step / 3} for step in range(3)]
    make_run(place / "runs" / "a", rows, hparams={"lr": 0.1, "hostname": "node7", "api_key": "s3cret"})
    return place


def export(*words: str) -> dict[str, int]:
    """Export the one run and return the totals."""
    code, out, err = call(*WORDS, "--json", *words)
    assert code == 0, err
    totals: dict[str, int] = json.loads(out)["totals"]
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
    made = {path.name for path in here.iterdir()} - {"runs", "cache", "bridge.yaml"}
    assert made == {"of-file", "of-environment", "typed"}


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
    assert call(*WORDS, "-q") == (0, "", "")
    make_run(here / "runs" / "b", [])
    (here / "runs" / "b" / "sidecar.json").write_text("{")
    code, out, err = call(*WORDS, "-q")
    assert (code, out, "! b: " in err) == (3, "", True)


def test_a_plan_names_the_runs_that_are_unchanged_too() -> None:
    """`--dry-run` has a line for every run."""
    export()
    assert "= a: unchanged" in call(*WORDS, "--dry-run")[1]
    assert "= a: " not in call(*WORDS)[1]


def test_values_are_shown_as_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """`bridge config` and the reason of a rebuild show `--rename` as OLD=NEW."""
    export()
    monkeypatch.setenv("BRIDGE_RENAME", "loss=train/loss acc=accuracy")
    words = "--rename              loss=train/loss acc=accuracy  (environment: BRIDGE_RENAME)"
    assert words in call("config")[1].splitlines()
    done = call(*WORDS, "--rename", "loss=train/loss")
    assert "rename (was the default, is loss=train/loss)" in "".join(done[1:])


def test_config_says_where_caches_lie_and_how_large_they_are(here: Path) -> None:
    """`bridge config` names each cache with its size."""

    def caches() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(call("config", "--json")[1])["caches"]
        return found

    assert caches() == []
    assert call("ls", "runs")[0] == 0
    cached, other = caches()
    assert [each["path"] for each in (cached, other)] == [
        str(here / "cache" / name) for name in ("registry", "statistics.sqlite")
    ]
    assert f"cache: {cached['path']}  ({cached['bytes'] / 1000:,.0f} kB; " in call("config")[1]

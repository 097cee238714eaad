"""A target remembers its content options, and an option that is not given keeps its value."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import bridge
from bridge.exporters.contract import find_exporter
from bridge.options import ContentOptions
from bridge.sync.export import Options, export_runs
from tests.cli.calling import call
from tests.memory_exporter import MemoryExporter
from tests.run_dirs import make_run, write_metrics

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [{"step": step, "loss": 1.0 / (step + 1), "acc": step} for step in range(4)]


def export(path: Path, exporter: MemoryExporter, *, rebuild: bool = False, **content: Any) -> tuple[str, list[str]]:
    """Export with these content options; return the action and the metrics that the target holds."""
    options = Options(content=ContentOptions(**content), given=frozenset(content), rebuild=rebuild)
    (line,) = export_runs([path], exporter, options).runs
    with exporter.opened() as box:
        return str(line.action), sorted(name for name, columns in box.points.items() if len(columns[0]))


def test_an_option_that_is_not_given_is_kept(tmp_path: Path) -> None:
    """A later export and a rebuild without --metrics keep the selection."""
    run = make_run(tmp_path / "runs" / "a", ROWS)
    exporter = MemoryExporter()
    assert export(run, exporter, metrics=("loss",)) == ("new", ["loss"])
    assert export(run, exporter) == ("unchanged", ["loss"])
    write_metrics(run, (), [[9.0, 0.5, 4, 1775822500.0]], append=True)
    assert export(run, exporter) == ("changed", ["loss"])
    assert export(run, exporter, rebuild=True) == ("rebuild", ["loss"])


def test_options_of_a_target_that_make_no_sense_are_replaced(tmp_path: Path) -> None:
    """A cursor whose options have values of a wrong type leads to a rebuild of that run, and stops no other."""
    runs = [make_run(tmp_path / "runs" / name, ROWS) for name in "ab"]
    exporter = MemoryExporter()
    export_runs(runs, exporter)
    with exporter.opened() as box:
        box.cursor = json.dumps(json.loads(box.cursor or "") | {"content": {"metrics": 5}})
    assert [line.action for line in export_runs(runs, exporter).runs] == ["rebuild", "unchanged"]


def test_an_option_that_is_given_replaces_that_one_alone(tmp_path: Path) -> None:
    """Only the given option changes."""
    run = make_run(tmp_path / "runs" / "a", [{**row, "lr": 0.1} for row in ROWS])
    exporter = MemoryExporter()
    assert export(run, exporter, metrics=("*a*", "l*"), exclude_metrics=("lr",)) == ("new", ["acc", "loss"])
    assert export(run, exporter, metrics=("l*",)) == ("rebuild", ["loss"])
    assert export(run, exporter, exclude_metrics=()) == ("rebuild", ["loss", "lr"])


@pytest.mark.parametrize(
    ("given", "put_back"),
    [
        ({"metrics": ("loss",)}, {"metrics": ("*",)}),
        ({"exclude_metrics": ("loss",)}, {"exclude_metrics": ("none",)}),
        ({"best": ("acc:max",)}, {"best": ("none",)}),
        ({"rename": (("acc", "accuracy"),)}, {"rename": (("none", ""),)}),
        ({"redact": ("lr",)}, {"redact": ("none",)}),
        ({"volatile": ("lr",)}, {"volatile": ("none",)}),
        ({"media": False}, {"media": True}),
        ({"checkpoints": True}, {"checkpoints": False}),
        ({"flat": True}, {"flat": False}),
        ({"artifacts": "now"}, {"artifacts": "ended"}),
    ],
)
def test_every_option_can_be_put_back(tmp_path: Path, given: dict[str, Any], put_back: dict[str, Any]) -> None:
    """After putting an option back the target equals one made without options."""
    run = make_run(tmp_path / "runs" / "a", ROWS)
    exporter = MemoryExporter()
    export(run, exporter, **given)
    assert export(run, exporter)[0] == "unchanged"
    assert export(run, exporter, **put_back)[0] == "rebuild"
    with exporter.opened() as box:
        assert "content" not in json.loads(box.cursor or "")


def test_keywords_count_as_given(tmp_path: Path) -> None:
    """The Python API keeps options that a call does not name."""
    make_run(tmp_path / "runs" / "a", ROWS)
    logdir = {"logdir": tmp_path / "tb"}
    bridge.export(tmp_path / "runs", to="tensorboard", target=logdir, exclude_metrics="acc")
    (kept,) = bridge.export(tmp_path / "runs", to="tensorboard", target=logdir).runs
    (put_back,) = bridge.export(tmp_path / "runs", to="tensorboard", target=logdir, exclude_metrics="none").runs
    assert (str(kept.action), str(put_back.action)) == ("unchanged", "rebuild")


def test_options_of_the_command_line_a_variable_and_the_file_count_as_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any source gives an option, and `none`, `--metrics '*'` and `--media` put it back."""
    make_run(tmp_path / "runs" / "a", ROWS)
    monkeypatch.chdir(tmp_path)

    def action(*words: str, **variables: str) -> str:
        code, out, err = call("export", "runs", "--to", "tensorboard", "--json", *words, **variables)
        assert code == 0, err
        return str(json.loads(out)["runs"][0]["action"])

    assert action("--exclude-metrics", "acc") == "new"
    assert action() == "unchanged"
    assert action(BRIDGE_EXCLUDE_METRICS="none") == "rebuild"
    (tmp_path / "bridge.yaml").write_text("format: 1\nmetrics:\n  include: [loss]\n")
    assert action() == "rebuild"
    (tmp_path / "bridge.yaml").unlink()
    assert action() == "unchanged"
    assert action("--metrics", "*") == "rebuild"
    assert action("--no-media", "--rename", "loss=train/loss") == "rebuild"
    assert action("--media") == "rebuild"
    assert action("--rename", "none") == "rebuild"
    assert action("--no-checkpoints", "--no-flat", "--artifacts", "ended") == "unchanged"


def test_a_forgotten_flag_makes_no_new_mlflow_run(tmp_path: Path, sqlite_uri: str) -> None:
    """Exports with, without, and again with --best keep the run id; to put it back needs no rebuild either."""
    path = make_run(tmp_path / "runs" / "a", ROWS)
    exporter = find_exporter("mlflow")(tracking_uri=sqlite_uri, experiment="kept")
    lines = []
    for content in ({"best": ("acc:max",)}, {}, {"best": ("acc:max",)}, {}, {"best": ("none",)}):
        options = Options(content=ContentOptions(**content), given=frozenset(content))  # type: ignore[arg-type]
        lines += export_runs([path], exporter, options).runs
    assert [str(line.action) for line in lines] == ["new", "unchanged", "unchanged", "unchanged", "changed"]
    assert (lines[-1].reason, len({line.where for line in lines})) == ("changed: best", 1)

"""Where runs go: exporters found by name, and made from the options that they take."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

from bridge.cli.targets import TargetChoice, make_exporter, target_options
from bridge.errors import UsageError
from bridge.exporters import exporter_names, find_exporter
from bridge.exporters.tensorboard import TensorBoardExporter
from tests.memory_exporter import MemoryExporter

if TYPE_CHECKING:
    from collections.abc import Mapping


@click.command()
@target_options
def show(target: TargetChoice) -> None:
    """Print what was chosen."""
    options = ", ".join(f"{name}={value}" for name, value in sorted(target.options.items()))
    click.echo(f"{target.to}: {options}; given {', '.join(sorted(target.given))}")


def chosen(*words: str, env: Mapping[str, str] | None = None) -> str:
    bare: dict[str, str | None] = {"MLFLOW_TRACKING_URI": None, "MLFLOW_EXPERIMENT_NAME": None}
    result = CliRunner(env=bare | dict(env or {})).invoke(show, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def test_the_built_in_exporters_are_found() -> None:
    """MLflow and TensorBoard are found by name."""
    assert {"mlflow", "tensorboard"} <= set(exporter_names())
    assert find_exporter("tensorboard") is TensorBoardExporter


def test_an_exporter_that_is_not_installed_is_found_by_its_place() -> None:
    """An exporter in the making is named by module and factory."""
    assert find_exporter("tests.memory_exporter:MemoryExporter") is MemoryExporter


def test_an_installed_exporter_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package's exporter is found by the entry point that it registers."""
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bridge.exporters]\ntheirs = tests.memory_exporter:MemoryExporter\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "theirs" in exporter_names()
    assert find_exporter("theirs") is MemoryExporter


@pytest.mark.parametrize("name", ["nowhere", "no.such.module:X", "tests.memory_exporter:Nothing", ":", "x:"])
def test_an_exporter_that_does_not_exist_is_wrong_usage(name: str) -> None:
    """Any name that leads nowhere is a usage error that repeats it."""
    with pytest.raises(UsageError, match="There is no exporter"):
        find_exporter(name)


def test_options_come_from_the_command_line_and_the_environment() -> None:
    """MLflow's own variables count, what is typed wins, and only that is marked as given."""
    assert chosen("--to", "mlflow") == "mlflow: logdir=tb_logs; given"
    env = {"MLFLOW_TRACKING_URI": "http://a", "MLFLOW_EXPERIMENT_NAME": "e"}
    words = ("--to", "mlflow", "--experiment", "f")
    assert chosen(*words, env=env) == "mlflow: experiment=f, logdir=tb_logs, tracking_uri=http://a; given experiment"


def test_an_exporter_gets_the_options_that_it_takes() -> None:
    """Options of other targets are left out unless they were typed."""
    options = {"logdir": Path("logs"), "tracking_uri": "http://a"}
    exporter = make_exporter(TargetChoice("tensorboard", options))
    assert isinstance(exporter, TensorBoardExporter)
    assert isinstance(pickle.loads(pickle.dumps(exporter)), TensorBoardExporter)


def test_a_typed_option_of_another_target_is_wrong_usage() -> None:
    """An option that would be ignored is refused."""
    choice = TargetChoice("tensorboard", {"tracking_uri": "http://a"}, frozenset({"tracking_uri"}))
    with pytest.raises(UsageError, match="--tracking-uri is no option of --to tensorboard"):
        make_exporter(choice)

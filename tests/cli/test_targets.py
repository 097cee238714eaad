"""Exporters are found by name and built from the options that they take."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from bridge.cli.command import command, exporter_of
from bridge.cli.export import how_to_look
from bridge.cli.output import Exit
from bridge.errors import UsageError
from bridge.exporters.contract import exporter_names, find_exporter
from bridge.exporters.mlflow import MlflowExporter
from bridge.exporters.tensorboard import TensorBoardExporter
from bridge.options import TargetOptions
from tests.cli.calling import call
from tests.memory_exporter import MEMORY, MemoryExporter
from tests.run_dirs import make_run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from click.testing import Result

    from bridge.model import Run
    from bridge.options import ContentOptions
    from tests.memory_exporter import MemoryTarget


@command("make", example="bridge make", exits=(Exit.DONE,))
def make(target: TargetOptions) -> None:
    """Build an exporter and print its type and the target's options."""
    exporter = exporter_of(target)
    click.echo(f"{type(exporter).__name__} {target.tracking_uri} {target.experiment} {target.logdir}")


def made(*words: str, env: Mapping[str, str] | None = None) -> Result:
    bare: dict[str, str | None] = {"MLFLOW_TRACKING_URI": None, "MLFLOW_EXPERIMENT_NAME": None}
    return CliRunner(env=bare | dict(env or {})).invoke(make, list(words))


class Meeting(MemoryExporter):
    """Waits for a server, as it were: eight runs must be on their way before the first one goes on."""

    met = threading.Barrier(8, timeout=30)

    def __init__(self) -> None:
        super().__init__(capabilities=replace(MEMORY, threads=True))

    def open(self, run: Run, content: ContentOptions) -> MemoryTarget:
        """Wait for the others."""
        self.met.wait()
        return super().open(run, content)


def test_eight_runs_are_sent_to_a_server_at_once(place: Path) -> None:
    """Threads wait for a server, so their number does not depend on the cores."""
    for number in range(8):
        make_run(place / "runs" / f"{number}", [{"step": 0, "loss": 1.0}])
    code, out, err = call("export", "runs", "--to", "tests.cli.test_targets:Meeting")
    assert (code, err) == (0, ""), out


def test_an_installed_exporter_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter of another package is found by its entry point."""
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bridge.exporters]\ntheirs = tests.memory_exporter:MemoryExporter\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "theirs" in exporter_names()
    assert find_exporter("theirs") is MemoryExporter


@pytest.mark.parametrize("name", ["nowhere", "no.such.module:X", "tests.memory_exporter:Nothing", ":", "x:", "os:"])
def test_an_exporter_that_does_not_exist_is_wrong_usage(name: str) -> None:
    """An unknown name is wrong usage, and the error repeats it."""
    with pytest.raises(UsageError, match="There is no exporter"):
        find_exporter(name)


def test_options_come_from_the_command_line_and_the_environment() -> None:
    """The command line overrides MLflow's own variables."""
    assert made("--to", "mlflow").stdout == "MlflowExporter None None tb_logs\n"
    env = {"MLFLOW_TRACKING_URI": "http://a", "MLFLOW_EXPERIMENT_NAME": "e"}
    assert made("--to", "mlflow", "--experiment", "f", env=env).stdout == "MlflowExporter http://a f tb_logs\n"


def test_an_option_of_another_target_is_wrong_usage_where_it_is_typed() -> None:
    """Another target's option is refused on the command line and ignored elsewhere."""
    assert made("--to", "tensorboard", env={"MLFLOW_TRACKING_URI": "http://a"}).exit_code == 0
    result = made("--to", "tensorboard", "--tracking-uri", "http://a")
    assert isinstance(result.exception, UsageError)
    assert str(result.exception) == "--tracking-uri is not an option of tensorboard."


def test_an_export_names_its_target_as_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that opens a default target names it, since `bridge view` without a target shows the runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    looks = [
        how_to_look((Path("runs"),), TargetOptions(to="tensorboard"), TensorBoardExporter(Path("tb_logs"))),
        how_to_look((Path("runs"),), TargetOptions(to="mlflow"), MlflowExporter("sqlite:///mlflow.db")),
    ]
    assert looks == [
        "bridge view runs --to tensorboard --logdir tb_logs",
        "bridge view runs --to mlflow --tracking-uri sqlite:///mlflow.db",
    ]

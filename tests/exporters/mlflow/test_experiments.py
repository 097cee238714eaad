"""An export's experiment: by name, by MLflow's environment variables, renamed by people, in a workspace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bridge.errors import UsageError
from bridge.exporters.mlflow.address import Address
from bridge.exporters.mlflow.facts import Tag
from bridge.options import ContentOptions
from bridge.sync.export import Options, export_runs
from tests.deltas import make_model_run
from tests.exporters.mlflow.conftest import Store
from tests.exporters.mlflow.database_help import open_database
from tests.run_dirs import make_run

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [{"step": 0, "loss": 1.0}]


def unnamed(store: Store) -> Store:
    """Return the same MLflow without --experiment."""
    return Store(store.uri, experiment="", options={"experiment": None})


def test_an_id_in_the_environment_names_the_experiment(any_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLFLOW_EXPERIMENT_ID names the experiment, and --experiment overrides it."""
    experiment_id = any_store.client.create_experiment(any_store.experiment)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment_id)
    unnamed(any_store).export(make_model_run(), ROWS)
    assert any_store.run().info.experiment_id == experiment_id
    other = Store(any_store.uri, experiment=f"{any_store.experiment} other")
    other.export(make_model_run(), ROWS)
    assert other.run().info.experiment_id != experiment_id


def test_an_id_that_does_not_exist_is_wrong_usage(any_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown experiment id is wrong usage, as in MLflow, and creates nothing."""
    for wrong in ("987654321", "no number"):
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", wrong)
        with pytest.raises(UsageError, match=f"MLFLOW_EXPERIMENT_ID is {wrong}"):
            unnamed(any_store).export(make_model_run(), ROWS)


def test_an_id_and_a_name_that_disagree_are_wrong_usage(any_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """An id and a name of different experiments are wrong usage that names both."""
    experiment_id = any_store.client.create_experiment(any_store.experiment)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    with pytest.raises(UsageError, match="MLFLOW_EXPERIMENT_NAME is 'another'"):
        unnamed(any_store).export(make_model_run(), ROWS)
    with pytest.raises(UsageError, match="MLFLOW_EXPERIMENT_NAME is 'another'"):  # the commands pass the variable on
        Store(any_store.uri, experiment="another").export(make_model_run(), ROWS)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", any_store.experiment)
    unnamed(any_store).export(make_model_run(), ROWS)
    assert any_store.run().info.experiment_id == experiment_id


def test_an_experiment_that_people_renamed_is_found_again(any_store: Store, tmp_path: Path) -> None:
    """A renamed experiment is found by the tag with its first name, and the report shows the new one."""
    path = make_run(tmp_path / "runs" / "a", ROWS, uid="a")
    export_runs([path], any_store.exporter())
    experiment_id = any_store.run().info.experiment_id
    renamed = f"{any_store.experiment} renamed"
    any_store.client.rename_experiment(experiment_id, renamed)
    grown = make_run(tmp_path / "runs" / "b", ROWS, uid="b")
    (_, line) = export_runs([path, grown], any_store.exporter()).runs
    assert line.notes == (f"The experiment {any_store.experiment!r} is now called {renamed!r}.",)
    by_new_name = Store(any_store.uri, experiment=renamed)
    assert [run.info.experiment_id for run in by_new_name.runs()] == [experiment_id] * 2
    assert {str(line.action) for line in export_runs([path, grown], by_new_name.exporter()).runs} == {"unchanged"}


def test_a_new_experiment_of_the_old_name_is_another_one(any_store: Store) -> None:
    """A name wins over the tag with a first name."""
    any_store.export(make_model_run(), ROWS)
    first = any_store.run().info.experiment_id
    any_store.client.rename_experiment(first, f"{any_store.experiment} renamed")
    second = any_store.client.create_experiment(any_store.experiment)
    any_store.export(make_model_run(), ROWS)
    assert any_store.run().info.experiment_id == second


def test_an_experiment_of_another_workspace_is_not_taken(sqlite_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by its name nor by the tag with its first name: it belongs to another team."""
    store = Store(sqlite_uri, experiment="digits")
    store.export(make_model_run(), ROWS)
    database = open_database(sqlite_uri)
    looks = [lambda: database.experiment("digits"), lambda: database.experiment_with_tag(Tag.EXPERIMENT, "digits")]
    assert [look() is not None for look in looks] == [True, True]
    monkeypatch.setenv("MLFLOW_WORKSPACE", "team-b")
    assert [look() for look in looks] == [None, None]


@pytest.mark.parametrize("count", [20, 200])
def test_options_that_a_cursor_cannot_hold_are_wrong_usage(sqlite_uri: str, tmp_path: Path, count: int) -> None:
    """MLflow cuts a tag that is too long without an error, and the run would be rebuilt by every export."""
    make_run(tmp_path / "runs" / "a", ROWS)
    content = ContentOptions(exclude_metrics=tuple(f"layers.{number:03}.grad_norm" for number in range(count)))
    exporter = Store(sqlite_uri, experiment="digits").exporter()
    if count == 200:
        with pytest.raises(UsageError, match=r"take 4,821 characters"):
            export_runs([tmp_path / "runs"], exporter, Options(content=content))
    else:
        assert export_runs([tmp_path / "runs"], exporter, Options(content=content)).exit_code == 0


def test_links_name_the_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Links name the workspace unless it is the default."""
    address = Address.of("https://ada:secret@host/mlflow")
    monkeypatch.setenv("MLFLOW_WORKSPACE", "default")
    assert address.page("/7/runs/abc?a=b") == "https://host/mlflow/#/experiments/7/runs/abc?a=b"
    monkeypatch.setenv("MLFLOW_WORKSPACE", "team a")
    assert address.page("/7/runs/abc?a=b") == "https://host/mlflow/#/experiments/7/runs/abc?a=b&workspace=team%20a"
    assert address.page("/7") == "https://host/mlflow/#/experiments/7?workspace=team%20a"

"""Keys within MLflow's rules, without a database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.exporters.mlflow.facts import facts_of, key_of, keys_of
from bridge.exporters.mlflow.store import ExperimentName, MlflowStore
from bridge.options import ContentOptions
from tests.deltas import make_model_run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("val/acc", "val/acc"),
        ("grad norm: layer.0-weight_1", "grad norm: layer.0-weight_1"),
        ("größe", "größe"),
        ("acc@5", "acc_5"),
        ("/absolute", "_/absolute"),
        ("a//b", "a/_/b"),
        ("../up", "_/up"),
        ("..0", "_0"),
        ("...", "_."),
        ("a/..0", "a/..0"),
        (".", "_"),
        ("", "_"),
        ("tail/", "tail/_"),
        ("line\n", "line_"),
    ],
)
def test_only_what_mlflow_refuses_is_changed(name: str, key: str) -> None:
    """A good name stays, a refused character becomes an underscore, and the key is a plain relative path."""
    assert key_of(name) == key


@pytest.mark.parametrize(
    ("rename", "ignores_case", "keys"),
    [
        ({}, False, {"a@b": "a_b", "a_b": "a_b_2", "a#b": "a_b_3"}),
        ({"loss": "train/loss@0"}, False, {"loss": "train/loss_0", "acc": "acc"}),
        ({}, False, {"Loss": "Loss", "loss": "loss", "LOSS": "LOSS"}),
        ({}, True, {"Loss": "Loss", "loss": "loss_2", "LOSS": "LOSS_3"}),
    ],
)
def test_the_first_to_appear_keeps_the_clean_key(
    rename: dict[str, str], ignores_case: bool, keys: dict[str, str]
) -> None:
    """Later names with one clean key get numbers, in MySQL also those that differ in case alone; users may rename."""
    assert keys_of(keys, rename, ignores_case=ignores_case) == keys


def test_params_and_tags_that_differ_in_case_alone(tmp_path: Path) -> None:
    """The later key gets a number and a notice, as after any other collision: of a tag always, of a param in MySQL."""
    run = make_model_run(tmp_path / "run", params={"lr": 0.1, "LR": 0.2}, tags=("team:a", "Team:b"))
    facts = facts_of(run, ContentOptions(), ignores_case=True)
    assert facts.params.values == {"lr": "0.1", "LR_2": "0.2"}
    assert facts.user_tags == {"team": "a", "Team_2": "b"}
    assert [notice.what for notice in facts.notices] == ["param LR", "tag Team"]
    elsewhere = facts_of(run, ContentOptions())
    assert (elsewhere.params.values, elsewhere.user_tags) == ({"lr": "0.1", "LR": "0.2"}, facts.user_tags)
    assert MlflowStore("mysql+pymysql://me@host/db", ExperimentName.of("trials", None)).ignores_case


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=300), max_size=12))
def test_every_key_is_one_that_mlflow_takes_and_no_two_are_the_same(names: list[str]) -> None:
    """Any names give valid, distinct keys, and later names do not change earlier keys."""
    from mlflow.utils.validation import _validate_metric_name

    keys = keys_of(names)
    for key in keys.values():
        _validate_metric_name(key)
        assert len(key) <= 250
    assert len(set(keys.values())) == len(keys) == len(set(names))
    half = names[: len(names) // 2]
    assert keys_of(half) == {name: keys[name] for name in half}

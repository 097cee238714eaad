"""Hyperparameters of several calls and starts are never merged."""

from __future__ import annotations

import dataclasses
import enum
import warnings
from argparse import Namespace
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.fabric.utilities.data import AttributeDict

from bridge.files import LARGEST_JSON
from bridge.rundir import read_run
from logger import RegistryLoggerWarning, hparams
from logger.hparams import load_yaml
from logger.values import ClassName
from tests.logger.rows import edit_sidecar, sidecar, start


@pytest.mark.parametrize(
    ("calls", "flat", "told"),
    [
        ([{"a.b": 1}, {"a": {"c": 2}}], {"a.b": 1, "a.c": 2}, []),
        ([{"a": {"b": 1}}, {"a.b": 2}], {"a.b": 1, "a.b_2": 2}, ["a.b_2"]),
        ([{"a": {"b": 1}, "a.b": 2}, {"a": {"b": 3}}], {"a.b": 3, "a.b_2": 2}, ["a.b_2"]),
        ([{"a": {"b": 1}, "a.b": 2}, {"a": {"c": 3}}], {"a.c": 3, "a.b": 2}, ["a.b_2"]),
        ([{"a": {"b": 1}, "a.b": 2}, {"a.b": 7}], {"a.b": 1, "a.b_2": 7}, ["a.b_2"]),
        ([{"a": {"b": 1}, "a.b": 2}, {"a.b": {"c": 3}}], {"a.b": 1, "a.b.c": 3}, ["a.b_2"]),
        ([{"a": 1}, {"a": {"b": 2}}, {"a": 3}], {"a": 3}, []),
        ([{"x": {1: "int", "1": "str"}}], {"x.1": "int", "x.1_2": "str"}, []),
    ],
)
def test_keys_that_collide_over_several_calls_are_all_kept(
    tmp_path: Path, calls: list[dict[str, Any]], flat: dict[str, Any], told: list[str]
) -> None:
    """A dotted and a nested key stay two, with a warning, also after a resume and for readers of hparams.yaml."""
    writer = start(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for call in calls:
            writer.log_hparams(call)
    assert [repr(name) in str(warning.message) for warning in caught for name in told] == [True] * len(told)
    assert sidecar(tmp_path)["hparams"] == flat
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RegistryLoggerWarning)
        resumed = start(tmp_path)
        resumed.log_hparams({"z": 1})
    resumed.release()
    assert sidecar(tmp_path)["hparams"] == flat | {"z": 1}
    (tmp_path / "sidecar.json").write_text('{"run_id": "r"}')
    assert dict(read_run(tmp_path).params) == flat | {"z": 1}


def test_the_largest_hyperparameters_are_left_out_of_a_sidecar_that_nobody_could_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond half of what readers accept, hparams.yaml alone holds the largest values, and a warning names them."""
    assert 2 * hparams.MAX_FLAT_BYTES == LARGEST_JSON
    monkeypatch.setattr(hparams, "MAX_FLAT_BYTES", 300)
    writer = start(tmp_path)
    with pytest.warns(RegistryLoggerWarning, match=r"hparams\.yaml .* 'files', 'data\.more'"):
        writer.log_hparams({"lr": 0.1, "data": {"more": "m" * 301, "name": "n" * 200}, "files": ["f" * 20] * 20})
    writer.log_hparams({"seed": 1})
    writer.release()
    small = {"lr": 0.1, "data.name": "n" * 200}
    assert sidecar(tmp_path)["hparams"] == small | {"seed": 1}
    assert load_yaml((tmp_path / "hparams.yaml").read_bytes())["files"] == ["f" * 20] * 20
    edit_sidecar(tmp_path, hparams={})  # as if all were large
    with pytest.warns(RegistryLoggerWarning, match=r"hparams\.yaml .* 'files', 'data\.more'"):
        start(tmp_path).release()
    assert sidecar(tmp_path)["hparams"] == small | {"seed": 1}


def test_what_only_the_sidecar_holds_stays(tmp_path: Path) -> None:
    """Values that only the sidecar holds stay until their key is logged again."""
    writer = start(tmp_path)
    writer.log_hparams({"lr": 0.1, "net": {"depth": 2}, "inf": float("inf")})
    writer.release()
    edit_sidecar(tmp_path, hparams=sidecar(tmp_path)["hparams"] | {"lr": 0.2, "mine": 1, "net.width": 3})
    writer = start(tmp_path)
    writer.log_hparams({"z": 0})
    expected = {"lr": 0.2, "net.depth": 2, "inf": "Infinity", "mine": 1, "net.width": 3, "z": 0}
    assert sidecar(tmp_path)["hparams"] == expected
    writer.log_hparams({"net": {"depth": 4}, "lr": 0.1})
    writer.release()
    assert sidecar(tmp_path)["hparams"] == {"lr": 0.1, "net.depth": 4, "inf": "Infinity", "mine": 1, "z": 0}


@pytest.mark.parametrize(
    ("text", "params"),
    [
        ("a: !!timestamp foo\nb: 1\n", {"a": "foo", "b": 1}),
        ("a: !!bool maybe\nb: !!int ''\n", {"a": "maybe", "b": ""}),
        (f"a: {'9' * 5000}\nb: 1\n", {"a": "9" * 5000, "b": 1}),
        (f"a: 0x{'f' * 5000}\nb: 0xff\n", {"a": "0x" + "f" * 5000, "b": 255}),
        ("a: !!python/object/apply:package.Color [red]", {"a": "red"}),
        ("a: !!python/object/apply:builtins.getattr [!!python/name:package.Color '', RED]", {"a": "RED"}),
    ],
)
def test_a_value_that_does_not_fit_its_tag_is_its_text(text: str, params: dict[str, Any]) -> None:
    """A value that does not fit its tag is read as text; an enum by its value or its name, as Python wrote it."""
    assert load_yaml(text) == params


class Color(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Options:
    lr: float = 0.1


class AttrDict(dict):  # type: ignore[type-arg]
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.__dict__ = self


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Namespace(a=1, b=Namespace(c=2)), {"a": 1, "b": {"c": 2}}),
        (AttrDict({"a": AttrDict({"b": 1})}), {"a": {"b": 1}}),
        (AttributeDict(a=1), {"a": 1}),
        (OrderedDict(a=1, b=2), {"a": 1, "b": 2}),
        (defaultdict(int, {"a": 1}), {"a": 1}),
        (Options(lr=0.2), {"lr": 0.2}),
        (Color.RED, Color.RED.__reduce_ex__(2)[1][-1]),  # by value, or by name in the first releases of Python 3.11
        (Path("/data/x"), "/data/x"),
        (Path("a/b"), "a/b"),
        (torch.device("cuda:0"), "cuda:0"),
        (np.float64(0.1), 0.1),
        (np.float32(0.5), 0.5),
        (np.int64(-7), -7),
        (np.bool_(True), True),
        ((1, (2, 3)), [1, [2, 3]]),
        ({2, 1}, [1, 2]),
        (torch.nn.functional.relu, "torch.nn.functional.relu"),
        (torch.nn.ReLU, "torch.nn.modules.activation.ReLU"),
        ([Path("x"), Namespace(q=1)], ["x", {"q": 1}]),
        (torch.nn.Linear(2, 2), ClassName("torch.nn.modules.linear.Linear")),
        (np.arange(3), ClassName("numpy.ndarray")),
    ],
)
def test_python_objects_are_read_as_their_content(value: Any, expected: Any) -> None:
    """Python objects of Lightning's CSVLogger are read as their content, else as the name of their class."""
    found = load_yaml(yaml.dump({"value": value, "beside": 1}))
    assert isinstance(found, dict)
    assert found == {"value": expected, "beside": 1}
    assert type(found["value"]) is type(expected)


def test_nothing_is_executed(tmp_path: Path) -> None:
    """A YAML file that asks for a call gets none."""
    load_yaml(f"a: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    load_yaml(f"a: !!python/object/new:os.mkdir {{args: ['{tmp_path}/made']}}\n")
    assert not (tmp_path / "made").exists()


ALIASES = ["a0: &a0 {x: 1}", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("a: [", "line 1"), ("? [a]\n: 1\n", "key"), ("a: \0\n", "not allowed"), ("\n".join(ALIASES), "1,000,000 values")],
    ids=["torn", "a list as a key", "NUL", "aliases that would fill the memory"],
)
def test_what_is_no_yaml_is_an_error(text: str, reason: str) -> None:
    """Whatever the fault, it is a ValueError; an alias counts as many values as it stands for."""
    with pytest.raises(ValueError, match=reason):
        load_yaml(text)

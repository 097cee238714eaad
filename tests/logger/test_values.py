"""Hyperparameters become flat and plain, and metrics become numbers."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import math
from collections import namedtuple
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import omegaconf
import pytest
import torch

from logger.values import Flat, flatten, number, param_scalar, plain


class Color(enum.Enum):
    RED = 1


class Mode(enum.StrEnum):
    FAST = "fast"


@dataclasses.dataclass
class Optimizer:
    lr: float = 0.1
    betas: tuple[float, ...] = (0.9, 0.999)


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": {"b": {"c": 1}}, "d": 2}, {"a.b.c": 1, "d": 2}),
        (argparse.Namespace(lr=0.1, net=argparse.Namespace(depth=3)), {"lr": 0.1, "net.depth": 3}),
        (Optimizer(), {"lr": 0.1, "betas": [0.9, 0.999]}),
        ({"optimizer": Optimizer(lr=1.0)}, {"optimizer.lr": 1.0, "optimizer.betas": [0.9, 0.999]}),
        (
            omegaconf.OmegaConf.create({"a": 1, "b": "${a}", "c": ["${a}", {"d": "${a}"}]}),
            {"a": 1, "b": 1, "c": [1, {"d": 1}]},
        ),
        (omegaconf.OmegaConf.create({"a": "${nowhere}"}), {"a": "${nowhere}"}),
        ({"empty": {}, "none": [], "nothing": None}, {"empty": {}, "none": [], "nothing": None}),
        ({"color": Color.RED, "mode": Mode.FAST}, {"color": "RED", "mode": "fast"}),
        ({"path": Path("/data/x"), "set": {3, 1, 2}}, {"path": "/data/x", "set": [1, 2, 3]}),
        ({"numpy": np.float32(0.5), "tensor": torch.tensor(3)}, {"numpy": 0.5, "tensor": 3}),
        ({"array": np.arange(2), "type": torch.float32}, {"array": "[0 1]", "type": "torch.float32"}),
        ({"point": Point(1, 2)}, {"point.x": 1, "point.y": 2}),
        ({"function": flatten, "class": Path}, {"function": "logger.values.flatten", "class": "pathlib.Path"}),
        ({"object": object()}, {"object": "<object object>"}),
        ({1: "a", "ключ": "значение"}, {"1": "a", "ключ": "значение"}),
        (5, {}),
    ],
)
def test_hparams_of_any_kind_become_flat_and_plain(value: object, expected: dict[str, object]) -> None:
    """Nested values of any kind get dotted keys.

    A value without a plain form becomes its string, the same in every process.
    """
    assert flatten(value) == Flat(expected, ())


def test_what_contains_itself_is_cut_off() -> None:
    """A list in itself and an endless tree neither hang nor raise."""
    endless: list[object] = [1]
    endless.append(endless)
    deep: dict[str, object] = {}
    for _ in range(5000):
        deep = {"a": deep}
    assert plain(endless) == [1, "..."]
    assert list(flatten(deep).values.values()) == ["..."]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.5, 1.5),
        (True, True),
        (2**70, 2**70),
        (-(10**400), -math.inf),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.longdouble(1.5), 1.5),
        (np.array(np.longdouble(-2.5)), -2.5),
        (np.clongdouble(1j), None),
        (torch.tensor(2.0), 2.0),
        (torch.tensor([2.0], requires_grad=True), 2.0),
        (torch.tensor(True), True),
        (Decimal("1.5"), 1.5),
        (Fraction(1, 4), 0.25),
        (torch.ones(2), None),
        (np.ones(0), None),
        (np.ones((2, 2)), None),
        ("0.5", None),
        (None, None),
        (1j, None),
    ],
)
def test_scalars_become_numbers(value: object, expected: object) -> None:
    """A single number in any wrapper is that number, and anything else is none."""
    found = number(value)
    assert (found, type(found)) == (expected, type(expected))


def test_a_param_that_is_a_list_is_its_json() -> None:
    """Lists and empty dicts become JSON text, with NaN as a string, and scalars stay."""
    values = ([1, "é", math.nan], {}, 0.5, None)
    assert [param_scalar(value) for value in values] == ['[1, "é", "NaN"]', "{}", 0.5, None]

"""bridge.yaml accepts known keys, and errors name its mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bridge.errors import UsageError
from bridge.options import find_config, json_schema, load_config


def write(folder: Path, text: str) -> Path:
    path = folder / "bridge.yaml"
    path.write_text(text)
    return path


def test_every_group_becomes_the_defaults_of_its_options(tmp_path: Path) -> None:
    """Keys become defaults of options; paths are relative to the file, and single texts become lists."""
    path = write(
        tmp_path,
        "format: 1\nruns: exp\ntensorboard: {logdir: tb}\n"
        "mlflow: {experiment: digits, flat: true, tracking_uri: 'sqlite:///m.db', database_uri: 'sqlite:////abs.db'}\n"
        "metrics: {include: ['val/*', loss], rename: {loss: train/loss}}\nheartbeat_timeout: 60\n",
    )
    assert load_config(path).options == {
        "runs": (str(tmp_path / "exp"),),
        "experiment": "digits",
        "flat": True,
        "tracking_uri": f"sqlite:///{tmp_path / 'm.db'}",
        "database_uri": "sqlite:////abs.db",
        "logdir": str(tmp_path / "tb"),
        "metrics": ("val/*", "loss"),
        "rename": ("loss=train/loss",),
        "heartbeat_timeout": 60,
    }


def test_the_nearest_file_above_is_found(tmp_path: Path) -> None:
    """The search goes up from the working directory and stops at the first file."""
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    path = write(tmp_path, "")
    assert find_config(below) == path
    nearer = write(tmp_path / "a", "")
    assert find_config(below) == nearer


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("mlflow:\n  experimant: x\n", ": unknown key 'mlflow.experimant'.", "Did you mean 'mlflow.experiment'?"),
        ("logdir: x\n", ": unknown key 'logdir'.", "Did you mean 'tensorboard.logdir'?"),
        ("best: 3\n", ": best: expected `str | array`, got `int`.", None),
        ("mlflow: {artifacts: first}\n", ": mlflow.artifacts: invalid enum value 'first', expected ended, now or none.", None),  # noqa: E501 - one case a line
        ("workers: true\n", ": workers: expected `int`, got `bool`.", None),
        ("workers: 0\n", ": workers: expected `int` >= 1.", None),
        ("workers:\n", ": workers: expected `int`, got `null`.", None),
        ("metrics: loss\n", ": metrics: expected `object`, got `str`.", None),
        ("metrics: {rename: [a]}\n", ": metrics.rename: expected `object`, got `array`.", None),
        ("- a\n", ": expected `object`, got `array`.", None),
        ('runs: "a\\0b"\n', ": 'a\\x00b' is not a path.", None),
        ("runs: ~nobody-here/x\n", ": there is no home directory for '~nobody-here/x'.", "Give the whole path."),
        ("format: 2\n", ": made for a newer bridge (format 2, this one reads 1).", "pip install --upgrade registry-bridge"),  # noqa: E501 - one case a line
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_file_and_key(tmp_path: Path, text: str, message: str, hint: str | None) -> None:
    """An unknown key or wrong type is an error with the file, the key and the nearest known one."""
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as error:
        load_config(path)
    assert str(error.value) == f"{path}{message}"
    assert error.value.hint == hint


@pytest.mark.parametrize("text", ["a: [", "a: b: c\n", "[" * 100_000], ids=["open", "two colons", "deep"])
def test_what_is_no_yaml_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    """A file that is no YAML is an error, not a traceback."""
    path = write(tmp_path, text)
    with pytest.raises(UsageError, match=f"^{path} cannot be read: "):
        load_config(path)


def test_tags_of_yaml_run_nothing(tmp_path: Path) -> None:
    """A tag that names Python code is read as text, and a value that does not fit its tag is no traceback."""
    path = write(tmp_path, "redact: !!python/name:os.system x\n")
    assert load_config(path).options == {"redact": ("os.system",)}
    with pytest.raises(UsageError, match="workers: expected `int`, got `str`"):
        load_config(write(tmp_path, "workers: !!int ''\n"))


def test_the_schema_that_ships_is_the_one_of_the_code() -> None:
    """The shipped schema has the keys of the code."""
    shipped = Path(__file__).parents[1] / "bridge" / "bridge.schema.json"
    assert json.loads(shipped.read_text()) == json_schema()

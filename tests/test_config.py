"""bridge.yaml: what it may say, and what is said of what it may not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bridge.config import find_config, json_schema, load_config
from bridge.errors import UsageError


def write(folder: Path, text: str) -> Path:
    path = folder / "bridge.yaml"
    path.write_text(text)
    return path


def test_every_group_becomes_the_defaults_of_its_options(tmp_path: Path) -> None:
    """Keys become option names; relative paths are taken from the file's folder; single texts become lists."""
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
    """The search goes upward from the working directory and stops at the first file."""
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    path = write(tmp_path, "")
    assert find_config(below) == path
    nearer = write(tmp_path / "a", "")
    assert find_config(below) == nearer


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("mlflow:\n  experimant: x\n", "2: unknown key 'mlflow.experimant'.", "Did you mean 'mlflow.experiment'?"),
        ("logdir: x\n", "1: unknown key 'logdir'.", "Did you mean 'tensorboard.logdir'?"),
        ("best: 3\n", "1: best must be a text or a list of texts, not 3.", None),
        ("mlflow: {artifacts: first}\n", "1: mlflow.artifacts must be one of ended, now, none, not 'first'.", None),
        ("workers: true\n", "1: workers must be a count from 1, not True.", None),
        ("metrics: loss\n", "1: metrics must hold keys and values.", None),
        ("- a\n", "1: the file must hold keys and values.", None),
        ("workers: !!int ''\n", "1: this value cannot be read.", "Put a text into quotes."),
        ("best: !!bool maybe\n", "1: this value cannot be read.", "Put a text into quotes."),
        ("best: !!timestamp now\n", "1: this value cannot be read.", "Put a text into quotes."),
        ("workers: 0b_\n", "1: this value cannot be read.", "Put a text into quotes."),
        ("runs: &a [*a]\n", "1: this value cannot be read.", None),
        ("? [a, b]\n: c\n", "1: a key must be a text.", None),
        ('runs: "a\\0b"\n', "1: runs must be a path or a list of paths, not 'a\\x00b'.", None),
        ("runs: ~nobody-here/x\n", "1: there is no home for '~nobody-here/x'.", "Give the whole path."),
        ("format: 2\n", "1: made for a newer bridge (format 2, this one knows 1).", "pip install --upgrade registry-bridge"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_file_and_line(tmp_path: Path, text: str, message: str, hint: str | None) -> None:
    """An unknown key or a wrong type stops at once and says where, and what was probably meant."""
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as error:
        load_config(path)
    assert str(error.value) == f"{path}:{message}"
    assert error.value.hint == hint


def test_a_file_nested_too_deeply_is_named(tmp_path: Path) -> None:
    """A file that its parser cannot hold is an error, not a traceback."""
    path = write(tmp_path, "[" * 100_000)
    with pytest.raises(UsageError, match="cannot be read: it is nested too deeply"):
        load_config(path)


def test_tags_of_yaml_run_nothing(tmp_path: Path) -> None:
    """A tag that names Python code is read as its text."""
    path = write(tmp_path, "redact: !!python/name:os.system x\n")
    assert load_config(path).options == {"redact": ("x",)}


def test_the_schema_that_ships_is_the_one_of_the_code() -> None:
    """Editors check bridge.yaml against the same keys as the bridge."""
    shipped = Path(__file__).parents[1] / "bridge" / "bridge.schema.json"
    assert json.loads(shipped.read_text()) == json_schema()

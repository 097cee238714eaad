"""`bridge.yaml`: found upward from the working directory, checked key by key, handed on as defaults of options.

Precedence: the command line, then the environment, then this file, then the built-in default.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from bridge.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import yaml

__all__ = ["CONFIG_NAME", "KEYS", "Config", "Key", "find_config", "json_schema", "load_config"]

CONFIG_NAME = "bridge.yaml"

FORMAT = 1
"""The greatest `format` of a bridge.yaml that is understood; a file without one has this."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of bridge.yaml: the option it is a default for, and what it may hold.

    `kind` is `text`, `path`, `uri`, `number`, `count`, `switch`, `texts`, `paths` or `renames`;
    `choices` limit a text.
    """

    option: str
    kind: str
    says: str
    choices: tuple[str, ...] = ()


KEYS: Mapping[str, Key] = {
    "runs": Key("runs", "paths", "Run directories or trees, where the command line names none."),
    "mlflow.tracking_uri": Key("tracking_uri", "uri", "A server, or a database such as sqlite:///mlflow.db."),
    "mlflow.experiment": Key("experiment", "text", "The experiment; may hold {tags.x}, {hparams.a.b}, {parent}."),
    "mlflow.experiment_default": Key("experiment_default", "text", "The experiment of runs that lack a placeholder."),
    "mlflow.database_uri": Key("database_uri", "uri", "The database behind the server, for points at full speed."),
    "mlflow.artifacts": Key(
        "artifacts", "text", "When files of the run directory are uploaded.", choices=("ended", "now", "none")
    ),
    "mlflow.checkpoints": Key("checkpoints", "switch", "Upload the checkpoint too."),
    "mlflow.flat": Key("flat", "switch", "No parent runs for sweeps."),
    "mlflow.volatile": Key("volatile", "texts", "Globs of hparams that may differ after a requeue."),
    "tensorboard.logdir": Key("logdir", "path", "The folder that TensorBoard is pointed at."),
    "metrics.include": Key("metrics", "texts", "Only metrics whose name matches one of these globs."),
    "metrics.exclude": Key("exclude_metrics", "texts", "No metrics whose name matches one of these globs."),
    "metrics.rename": Key("rename", "renames", "The name that a metric gets in the target, by its own name."),
    "best": Key("best", "texts", "METRIC:max or METRIC:min, each adds a running best in MLflow."),
    "redact": Key("redact", "texts", "Globs of hparams whose values are masked; replaces the built-in list."),
    "media": Key("media", "switch", "With or without images and videos."),
    "heartbeat_timeout": Key("heartbeat_timeout", "number", "Seconds after which a silent run counts as killed."),
    "workers": Key("workers", "count", "Processes at work."),
}
"""Every key there is, dotted; `format` beside them."""


@dataclass(frozen=True, slots=True)
class Config:
    """What a bridge.yaml says, by option name; `path` is None where there is no file. Paths are absolute."""

    path: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def find_config(start: Path) -> Path | None:
    """The nearest bridge.yaml in `start` or a folder above it."""
    start = start.absolute()
    return next((path for folder in (start, *start.parents) if (path := folder / CONFIG_NAME).is_file()), None)


def load_config(path: Path) -> Config:
    """Read and check the file at `path`; relative paths in it are taken from its own folder.

    Raises UsageError, which names file and line: no YAML, an unknown key (with the nearest known one), a wrong type.
    """
    import yaml

    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is no YAML: {error}") from error
    except RecursionError as error:
        raise UsageError(f"{path} cannot be read: it is nested too deeply.") from error
    options: dict[str, Any] = {}
    if root is not None:
        _walk(root, "", path, options)
    return Config(path=path, options=options)


def _walk(node: yaml.Node, prefix: str, path: Path, options: dict[str, Any]) -> None:
    import yaml

    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{_at(path, node)}: {prefix.rstrip('.') or 'the file'} must hold keys and values.")
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise UsageError(f"{_at(path, key_node)}: a key must be a text.")
        name = prefix + str(key_node.value)
        if name == "format":
            _check_format(_plain(value_node, path), _at(path, value_node))
        elif name in KEYS:
            options[KEYS[name].option] = _value(name, _plain(value_node, path), path, value_node)
        elif any(known.startswith(f"{name}.") for known in KEYS):
            _walk(value_node, f"{name}.", path, options)
        else:
            raise UsageError(f"{_at(path, key_node)}: unknown key {name!r}.", hint=_suggestion(name))


def _plain(node: yaml.Node, path: Path) -> Any:
    """The Python value of a node, safely: what SafeLoader has no constructor for is its text.

    Raises UsageError for what is not of its tag.
    """
    import yaml

    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    except yaml.constructor.ConstructorError as error:
        if isinstance(node, yaml.ScalarNode):
            return str(node.value)
        raise UsageError(f"{_at(path, node)}: this value cannot be read.") from error
    # PyYAML's constructors meet a value that is not of its tag with any of these.
    except (
        yaml.YAMLError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise UsageError(f"{_at(path, node)}: this value cannot be read.", hint="Put a text into quotes.") from error
    finally:
        loader.dispose()


def _check_format(value: Any, where: str) -> None:
    if not isinstance(value, int) or value < 1:
        raise UsageError(f"{where}: format must be a whole number from 1.")
    if value > FORMAT:
        raise UsageError(
            f"{where}: made for a newer bridge (format {value}, this one knows {FORMAT}).",
            hint="pip install --upgrade registry-bridge",
        )


def _value(name: str, value: Any, path: Path, node: yaml.Node) -> Any:
    key = KEYS[name]
    accept, wanted = _KINDS[key.kind]
    if not accept(value):
        raise UsageError(f"{_at(path, node)}: {name} must be {wanted}, not {value!r}.")
    if key.choices and value not in key.choices:
        raise UsageError(f"{_at(path, node)}: {name} must be one of {', '.join(key.choices)}, not {value!r}.")
    if key.kind == "path":
        return _resolved(value, path, node)
    if key.kind == "uri":
        return _absolute(value, path.parent)
    if key.kind == "paths":
        return tuple(_resolved(item, path, node) for item in _listed(value))
    if key.kind == "texts":
        return _listed(value)
    if key.kind == "renames":
        return tuple(f"{old}={new}" for old, new in value.items())
    return value


def _resolved(value: str, path: Path, node: yaml.Node) -> str:
    """A path in the file, taken from the file's own folder."""
    try:
        return str(path.parent / Path(value).expanduser())
    except RuntimeError as error:
        raise UsageError(f"{_at(path, node)}: there is no home for {value!r}.", hint="Give the whole path.") from error


def _absolute(uri: str, folder: Path) -> str:
    """`uri`; the relative path of a SQLite file (`sqlite:///` and no further slash) is taken from `folder`."""
    scheme, separator, place = uri.partition(":///")
    if not (scheme.startswith("sqlite") and separator and place) or place.startswith(("/", ":memory:")):
        return uri
    return f"{scheme}:///{quote(str(folder.absolute()))}/{place}"


def _listed(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _is_text(value: Any) -> bool:
    # No path and no address has a NUL in it; the operating system refuses it with an error of its own.
    return isinstance(value, str) and "\0" not in value


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_texts(value: Any) -> bool:
    return _is_text(value) or (isinstance(value, list) and all(map(_is_text, value)))


def _is_renames(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for pair in value.items() for item in pair)


_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "text": (_is_text, "a text"),
    "path": (_is_text, "a path"),
    "uri": (_is_text, "a URI"),
    "number": (
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value >= 0,
        "a number from 0",
    ),
    "count": (lambda value: _is_count(value, 1), "a count from 1"),
    "switch": (lambda value: isinstance(value, bool), "true or false"),
    "texts": (_is_texts, "a text or a list of texts"),
    "paths": (_is_texts, "a path or a list of paths"),
    "renames": (_is_renames, "old names with their new ones"),
}


def _at(path: Path, node: yaml.Node) -> str:
    return f"{path}:{node.start_mark.line + 1}"


def _suggestion(name: str) -> str:
    near = difflib.get_close_matches(name, KEYS, n=1, cutoff=0.5) or [
        known for known in KEYS if known.rpartition(".")[2] == name.rpartition(".")[2]
    ]
    return f"Did you mean {near[0]!r}?" if near else "Known keys: " + ", ".join(KEYS)


_SCHEMAS: Mapping[str, Mapping[str, Any]] = {
    "text": {"type": "string"},
    "path": {"type": "string"},
    "uri": {"type": "string"},
    "number": {"type": "number", "minimum": 0},
    "count": {"type": "integer", "minimum": 1},
    "switch": {"type": "boolean"},
    "texts": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
    "paths": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
    "renames": {"type": "object", "additionalProperties": {"type": "string"}},
}


def json_schema() -> dict[str, Any]:
    """The JSON Schema of bridge.yaml, for editors; `bridge/bridge.schema.json` is this, written out."""
    root: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "bridge.yaml",
        "type": "object",
        "additionalProperties": False,
        "properties": {"format": {"const": FORMAT}},
    }
    for name, key in KEYS.items():
        *groups, last = name.split(".")
        place = root
        for group in groups:
            place = place["properties"].setdefault(
                group, {"type": "object", "additionalProperties": False, "properties": {}}
            )
        schema = {**_SCHEMAS[key.kind], "description": key.says}
        place["properties"][last] = {**schema, "enum": list(key.choices)} if key.choices else schema
    return root

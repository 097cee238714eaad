"""Read and write hparams.yaml, the hyperparameters of a run. Nothing in such a file is ever executed."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from logger.files import replace_file
from logger.values import ClassName, Plain, flatten, plain, plain_dict, strict

if TYPE_CHECKING:
    from pathlib import Path

HPARAMS_NAME = "hparams.yaml"
MAX_FLAT_BYTES = 4 << 20
"""Bytes of hyperparameters in the sidecar: nobody reads one of more than 8 MiB, which holds other things too."""

_MAX_YAML_VALUES = 1_000_000
"""Values in a YAML file, where an alias counts as often as it is used: a short file could otherwise fill the memory."""


def load_yaml(text: bytes | str) -> Plain:
    """Return what a YAML file holds as plain values, without executing anything. Raises ValueError if it is not YAML.

    An object with a Python tag becomes its content: a mapping of its attributes, the text of a path, device or enum,
    the number of a numpy scalar. If there is no such content it becomes a ClassName. A scalar that does not fit its tag
    becomes its text.
    """
    try:
        return plain(yaml.load(text, Loader=_YamlLoader))  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise ValueError(f"{error.problem or error.context or 'not YAML'}{where}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:200]
        raise ValueError(reason) from error


class Hparams:
    """What was logged as hyperparameters, in this start of the run and in those before.

    A top-level key that is logged again replaces what it held; others stay. `nested` goes to hparams.yaml, `flat` to
    the sidecar: what `nested` holds, and what an earlier sidecar held beside it or with other values. `left_out` names
    what is too large for the sidecar.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.nested: dict[str, Any] = {}
        self.flat: dict[str, Plain] = {}
        self.left_out: list[str] = []

    def resume(self, flat: object) -> bool:
        """Take over hparams.yaml and the sidecar's `flat`; false where there is a hparams.yaml that cannot be read."""
        self.flat = dict(flat) if isinstance(flat, dict) else {}
        try:
            loaded = load_yaml(self.path.read_bytes())
        except FileNotFoundError:
            return True
        except ValueError:
            return False
        self.nested = loaded if isinstance(loaded, dict) else {}
        if not self.flat:
            self._set_flat(flatten(self.nested).values, {})
        return True

    def update(self, params: object) -> tuple[tuple[str, str], ...]:
        """Add `params` of any kind and write hparams.yaml. Raises OSError.

        Keys that collide, in one call or over several, come back with the names they got.
        """
        new = plain_dict(params)
        held = flatten(self.nested).values
        # What only the sidecar holds, or holds with another value.
        kept = {
            key: value
            for key, value in self.flat.items()
            if (key not in held or strict(held[key]) != strict(value))
            and not any(f"{key}.".startswith(f"{name}.") for name in new)
        }
        # New objects, no changes in place: a thread may be writing the old ones.
        self.nested = {**self.nested, **new}
        flat = flatten(self.nested)
        self._set_flat(flat.values, kept)
        text = yaml.dump(self.nested, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 20)
        replace_file(self.path, text)
        return flat.renamed

    def _set_flat(self, values: dict[str, Plain], kept: dict[str, Plain]) -> None:
        """Make `flat` of `values`, which hparams.yaml holds too and the largest of which are left out, and `kept`."""
        flat = {**values, **kept}
        sizes = {key: len(json.dumps({key: strict(value)}, default=str)) + 4 for key, value in flat.items()}
        total, self.left_out = sum(sizes.values()), []
        for key in sorted(values.keys() - kept.keys(), key=lambda key: (-sizes[key], key)):
            if total <= MAX_FLAT_BYTES:
                break
            total -= sizes[key]
            self.left_out.append(key)
            del flat[key]
        self.flat = flat


class _Dumper(yaml.SafeDumper):
    """Without anchors: two params that hold one list are two params."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_Dumper.add_representer(ClassName, yaml.SafeDumper.represent_str)


class _YamlLoader(yaml.SafeLoader):
    """A safe loader that reads the content of objects with Python tags instead of refusing the file."""

    def __init__(self, stream: bytes | str) -> None:
        super().__init__(stream)
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose one node and count the values below it. Raises YAMLError if they are too many."""
        node = super().compose_node(parent, index)
        # Children are composed before their parents, and an alias gives the node of its anchor, whose size is known.
        if isinstance(node, yaml.CollectionNode) and id(node) not in self._sizes:
            children = [child for item in node.value for child in (item if isinstance(item, tuple) else (item,))]
            size = self._sizes[id(node)] = 1 + sum(self._sizes.get(id(child), 1) for child in children)
            if size > _MAX_YAML_VALUES:
                raise yaml.YAMLError(f"more than {_MAX_YAML_VALUES:,} values")
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct one value; a scalar that does not fit its tag becomes its text, an object within itself `...`."""
        if node in self.recursive_objects:
            return "..."
        try:
            value = super().construct_object(node, deep=deep)
            if type(value) is int:
                str(value)  # ValueError: hexadecimal digits may be more than Python can write as a decimal number
            return value
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError):
            if isinstance(node, yaml.ScalarNode):
                return node.value
            raise yaml.YAMLError(f"a value does not fit its tag {node.tag}") from None

    def construct_tagged(self, suffix: str, node: yaml.Node) -> Any:
        """Construct a value whose tag names a Python object, or is unknown."""
        kind, _, name = suffix.removeprefix("tag:yaml.org,2002:python/").partition(":")
        if isinstance(node, yaml.ScalarNode):
            return _tagged_scalar(kind, name, node.value)
        if isinstance(node, yaml.SequenceNode):
            items = self.construct_sequence(node, deep=True)
            return _called(name, items) if kind == "object/apply" else items
        assert isinstance(node, yaml.MappingNode)
        mapping = self.construct_mapping(node, deep=True)
        if kind in ("object/apply", "object/new"):
            return _rebuilt(name, mapping)
        return _attributes(name, mapping)


_YamlLoader.add_multi_constructor("", _YamlLoader.construct_tagged)


def _tagged_scalar(kind: str, name: str, text: str) -> object:
    """Return the value of a scalar with a Python tag."""
    if kind in ("name", "module"):
        return name
    if kind in ("none", "bool", "int", "long", "float"):
        return yaml.safe_load(text) if len(text) < 300 else text
    return text or ClassName(name or kind.rpartition(":")[2])


def _called(name: str, arguments: list[Any]) -> object:  # noqa: PLR0911 - one return per kind of object
    """Return the content of the object that a call of `name` with `arguments` would make."""
    function = name.rpartition(".")[2]
    if function in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path"):
        return str(PurePosixPath(*map(str, arguments)))
    if name == "torch.device":
        return ":".join(map(str, arguments))
    if function == "scalar" and name.startswith("numpy.") and len(arguments) == 2:
        return _numpy_scalar(*arguments)
    if function == "dtype" and arguments:
        return arguments[0]  # numpy's code of the type, for _numpy_scalar
    if function == "OrderedDict":
        return _as_dict(arguments[0]) if arguments else {}
    if len(arguments) == 1:
        return arguments[0]  # an enum is called with its value
    if function == "getattr" and len(arguments) == 2:
        return arguments[1]  # the first releases of Python 3.11 look an enum up by its name
    return arguments or ClassName(name)


def _rebuilt(name: str, parts: dict[Any, Any]) -> object:
    """Return the content of an object that YAML describes by its `dictitems`, `state`, `listitems` or `args`."""
    state, arguments = parts.get("state"), parts.get("args")
    if parts.get("dictitems") is not None:
        return parts["dictitems"]
    if isinstance(state, dict):
        return _attributes(name, state)
    if parts.get("listitems") is not None:
        return parts["listitems"]
    if isinstance(arguments, list) and (state is None or name == "numpy.dtype"):
        return _called(name, arguments)
    return ClassName("numpy.ndarray" if name.startswith("numpy.") else name)


def _attributes(name: str, mapping: dict[Any, Any]) -> object:
    """Return the attributes of an object of the class `name`.

    Of a network, or an object without any, the class's name.
    """
    return ClassName(name) if name and (not mapping or "_modules" in mapping) else mapping


def _numpy_scalar(code: object, data: object) -> object:
    """Return the number in the bytes `data`, which numpy wrote as the type `code` (`f8`, `i4`, ...), little-endian."""
    import numpy as np

    if isinstance(data, bytes) and re.fullmatch(r"<?[fiub][1-8]", str(code).lstrip("=|")):
        with contextlib.suppress(TypeError, ValueError):
            (number,) = np.frombuffer(data, str(code))
            return number.item()
    return ClassName("numpy.generic")


def _as_dict(pairs: object) -> object:
    """Return a list of [key, value] pairs as a dict, and anything else as it is."""
    if isinstance(pairs, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        return {str(key): value for key, value in pairs}
    return pairs

"""Hyperparameters of a run: nested in hparams.yaml, which `yaml.safe_load` reads, and flat for the sidecar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from logger.sidecar import atomic_text_write
from logger.values import Plain, flatten, plain, strict

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["HPARAMS_NAME", "Hparams"]

HPARAMS_NAME = "hparams.yaml"


class Hparams:
    """What was logged as hyperparameters, in this start of the run and in those before.

    A top-level key that is logged again replaces what it held; others stay. `nested` goes to hparams.yaml, `flat` to the sidecar:
    what `nested` holds, and what an earlier sidecar held beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.nested: dict[str, Any] = {}
        self.flat: dict[str, Plain] = {}
        self._beside: dict[str, Plain] = {}

    def resume(self, flat: object) -> bool:
        """Take over hparams.yaml and the sidecar's `flat`; false where there is a hparams.yaml that cannot be read."""
        self.flat = self._beside = dict(flat) if isinstance(flat, dict) else {}
        try:
            loaded = yaml.load(self.path.read_bytes(), Loader=_Loader)  # noqa: S506 - a safe loader that knows no tags
        except FileNotFoundError:
            return True
        # PyYAML's constructors meet a value that is not of its tag with any of these.
        except (yaml.YAMLError, ValueError, RecursionError, ArithmeticError, TypeError, LookupError, AttributeError):
            return False
        nested = plain(loaded) if isinstance(loaded, dict) else {}
        assert isinstance(nested, dict)
        self.nested = nested
        known = flatten(nested).values
        if not self.flat:
            self.flat = known
        self._beside = {
            key: value for key, value in self.flat.items() if key not in known or strict(known[key]) != value
        }
        return True

    def update(self, params: object) -> tuple[tuple[str, str], ...]:
        """Add `params` of any kind and write hparams.yaml.

        Keys that collide, in one call or over several, come back with the names they got.
        """
        new = plain(params)
        if not isinstance(new, dict):
            new = plain(getattr(params, "__dict__", {}))
            assert isinstance(new, dict)
        # New objects, no changes in place: a thread may be writing the old ones.
        self._beside = {
            key: value
            for key, value in self._beside.items()
            if not any(key == name or key.startswith(f"{name}.") for name in new)
        }
        self.nested = {**self.nested, **new}
        flat = flatten(self.nested)
        self.flat = {**flat.values, **self._beside}
        self.write()
        return flat.renamed

    def write(self) -> None:
        """Replace hparams.yaml."""
        text = yaml.dump(self.nested, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 20)
        atomic_text_write(self.path, text)


class _Dumper(yaml.SafeDumper):
    """Without anchors: two params that hold one list are two params."""

    def ignore_aliases(self, data: object) -> bool:
        return True


class _Loader(yaml.SafeLoader):
    """Reads what other writers left, also with tags that name Python objects: those become plain values."""


def _untagged(loader: _Loader, _suffix: str, node: yaml.Node) -> object:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return node.value


_Loader.add_multi_constructor("", _untagged)

"""A YAML loader that executes nothing, and that no small file can keep busy."""

from __future__ import annotations

from typing import Any

import yaml

from bridge.files import LONGEST_NUMBER, MOST_NODES

__all__ = ["Loader"]

_YAML = "tag:yaml.org,2002:"


class Loader(yaml.SafeLoader):
    """A safe loader for which an unknown tag is no error: what carries it becomes text."""

    merged = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge keys (<<), which multiply by each level and by each use: they are counted before they are merged."""
        for key, value in node.value:
            if key.tag == f"{_YAML}merge":
                for one in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    self._count(one)
        super().flatten_mapping(node)

    def _count(self, node: yaml.Node) -> None:
        if isinstance(node, yaml.MappingNode):
            self.flatten_mapping(node)
            self.merged += len(node.value)
        if self.merged > MOST_NODES:
            raise yaml.YAMLError(f"more than {MOST_NODES} values")

    def number(self, node: yaml.ScalarNode) -> Any:
        """A number; one that is too long stays text, since adding up its digits takes the square of their number."""
        if isinstance(node.value, str) and len(node.value) > LONGEST_NUMBER:
            return node.value
        return self.construct_yaml_int(node) if node.tag == f"{_YAML}int" else self.construct_yaml_float(node)

    def tagged(self, suffix: str, node: yaml.Node) -> Any:
        """What stands under a tag that is unknown here."""
        if isinstance(node, yaml.SequenceNode) and suffix.endswith(":python/tuple"):  # as Lightning writes `betas`
            return self.construct_sequence(node, deep=True)
        if isinstance(node, yaml.ScalarNode) and node.value:
            return str(node.value)
        return suffix.rpartition(":")[2]


Loader.add_multi_constructor("", Loader.tagged)
for _kind in ("int", "float"):
    Loader.add_constructor(f"{_YAML}{_kind}", Loader.number)

"""Which experiment a run belongs to: a name, or a template that each run fills in."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.errors import RunError, UsageError
from bridge.exporters.mlflow.names import storable
from bridge.model import Notice, NoticeKind

if TYPE_CHECKING:
    from bridge.model import Run

__all__ = ["NAME_LIMIT", "ExperimentName", "artifact_folder"]

NAME_LIMIT = 256
"""Characters in an experiment's name: MLflow lets 500 through, and its tables hold no more than this."""

_HOLE = re.compile(r"\{([^{}]*)\}")
_KINDS = "{tags.NAME}, {hparams.NAME}, {parent}"


@dataclass(frozen=True, slots=True)
class ExperimentName:
    """The name of an experiment, perhaps with placeholders; `default` is for runs that lack what they name."""

    template: str
    default: str | None = None

    @classmethod
    def of(cls, given: str | None, default: str | None) -> ExperimentName:
        """From the options: `given`, else $MLFLOW_EXPERIMENT_NAME, else MLflow's own default.

        Raises UsageError for a placeholder that does not exist.
        """
        template = given or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
        for hole in _HOLE.findall(template):
            kind, _, key = hole.partition(".")
            if hole != "parent" and (kind not in ("tags", "hparams") or not key):
                raise UsageError(f"--experiment: there is no placeholder {{{hole}}}.", hint=f"There are {_KINDS}.")
        return cls(template, default)

    @property
    def varies(self) -> bool:
        """Whether runs may go into different experiments."""
        return _HOLE.search(self.template) is not None

    def of_run(self, run: Run) -> str:
        """The name for `run`. Raises RunError where it lacks a value and there is no default."""
        missing: list[str] = []

        def fill(hole: re.Match[str]) -> str:
            value = _value(run, hole[1])
            if not value:
                missing.append(hole[0])
            return value or ""

        name = storable(_HOLE.sub(fill, self.template))
        if not missing:
            return _within_limit(name)
        if self.default is not None:
            return _within_limit(self.default)
        raise RunError(
            f"{run.path} has no value for {', '.join(missing)} of --experiment {self.template!r}.",
            hint="Give such runs a place with --experiment-default NAME.",
        )

    def notices(self, run: Run) -> list[Notice]:
        """The notice where the name for `run` is longer than MLflow allows."""
        name = _HOLE.sub(lambda hole: _value(run, hole[1]) or "", self.template)
        if len(name) <= NAME_LIMIT:
            return []
        detail = f"name of {len(name)} characters, the first {NAME_LIMIT - 9} and a digest are kept"
        return [Notice(NoticeKind.CUT, f"experiment {name[:40]}...", detail)]


def artifact_folder(name: str) -> str:
    """A folder name for the artifacts of the experiment `name`, safe in any file system and unlike any other's."""
    plain = re.sub(r"[^A-Za-z0-9_.\-]", "_", name).strip(".")[:60]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _within_limit(name: str) -> str:
    if len(name) <= NAME_LIMIT:
        return name
    return f"{name[: NAME_LIMIT - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _value(run: Run, hole: str) -> str | None:
    kind, _, key = hole.partition(".")
    if kind == "parent":
        return run.parent or None
    if kind == "tags":
        return next((tag.partition(":")[2] for tag in run.tags if tag.startswith(f"{key}:")), None)
    value = run.params.get(key)
    return None if value is None else str(value)

"""Compare a run's own facts with what a target says: params, tags, notes, name, status, start and end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from bridge.model import Status
from bridge.secrets import Redaction
from bridge.sync.compare import is_beginning, time_tolerance
from bridge.sync.verdicts import Difference, Findings, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bridge.cursor import ContentOptions
    from bridge.exporters.contract import Capabilities, TargetContent
    from bridge.model import Scalar
    from bridge.sync.truth import Facts

__all__ = ["FactsCheck", "facts_behind"]

SIDECAR = "sidecar.json"


def facts_behind(
    stale: Iterable[str], facts: Facts, sent: Mapping[str, str], capabilities: Capabilities
) -> tuple[str, ...]:
    """The facts that the source has changed since they were last sent.

    `stale` are those that the exporter knows to be so; status and times are looked at here too, so that an
    exporter that says it sent something else is found.
    """
    behind = {name.partition(".")[0] for name in stale}
    # Whether a run without a last word is running or killed is a matter of the moment: what was sent may stand.
    word = facts.status_word if facts.status_word in _ENDED else sent.get("status", "unknown")
    if word != sent.get("status", word):
        behind.add("status")
    for name, now in (("start", facts.start), ("end", facts.end(word))):
        if name in sent and not _close(now, _seconds(sent[name]), max(capabilities.time_step, 0.001)):
            behind.add(name)
    return tuple(sorted(behind))


_ENDED = ("completed", "failed", "interrupted")


@dataclass(frozen=True, slots=True)
class FactsCheck:
    """The facts of one run beside what its target holds.

    `skip` names those that are not compared: people edited them, or the source has changed them since the last export.
    """

    facts: Facts
    held: TargetContent
    content: ContentOptions
    capabilities: Capabilities
    skip: frozenset[str]
    out: Findings

    def compare(self, sent: Mapping[str, str], status: Status) -> int:
        """Compare all facts; returns how many params were expected. `status` counts where `sent` does not say one."""
        self._text("name", self.facts.name, self.held.name)
        self._text("notes", self.facts.notes, self.held.notes)
        self._tags()
        said = Status(sent.get("status", status))
        self._status(said)
        self._time("start", _seconds(sent["start"]) if "start" in sent else self.facts.start, self.held.start)
        end = _seconds(sent["end"]) if "end" in sent else self.facts.end(status)
        # A target that says nothing of a status (not even that there is none) need not say when it came.
        is_silent = not self.capabilities.statuses.get(said)
        if (end is not None or self.capabilities.clears_end) and not (is_silent and self.held.end is None):
            self._time("end", end, self.held.end)
        return self._params()

    def _is_skipped(self, name: str) -> bool:
        return name in self.skip or name in self.held.unsupported

    def _differs(self, what: str, expected: object, found: object) -> None:
        both = [None if one is None else str(one) for one in (expected, found)]
        verdict = Verdict.DIFFERENT
        if expected is None or found is None:
            verdict = Verdict.TARGET_ONLY if expected is None else Verdict.SOURCE_ONLY
        self.out.add(Difference(verdict, SIDECAR, what, None, *both))

    def _text(self, name: str, expected: str, found: str | None) -> None:
        if found is None or self._is_skipped(name) or found == expected:
            return
        if not (name in self.held.cut and is_beginning(found, expected)):
            self._differs(name, expected, found)

    def _tags(self) -> None:
        if self.held.tags is None or self._is_skipped("tags"):
            return
        secrets = Redaction(self.content.redact)
        expected, found = ({secrets.tag(tag) for tag in tags} for tags in (self.facts.tags, self.held.tags))
        if expected != found:
            self._differs("tags", ", ".join(sorted(expected)), ", ".join(sorted(found)))
        if any(secrets.tag(tag) != tag for tag in self.held.tags):
            self._differs("tags", "(masked)", "a secret, in clear")

    def _status(self, status: Status) -> None:
        if not self.capabilities.statuses or self._is_skipped("status"):
            return
        expected, found = self.capabilities.statuses[status], self.held.status or ""
        if expected != found:
            self._differs("status", f"{expected or 'nothing'} ({status})", found or "nothing")

    def _time(self, name: str, expected: float | None, found: float | None) -> None:
        if self._is_skipped(name) or _close(expected, found, time_tolerance(self.capabilities)):
            return
        if name == "start" and found is None:
            return
        self._differs(name, expected, found)

    def _params(self) -> int:
        """Compare the params; a secret must not be held in clear, and one that is volatile may be older, or have gone."""
        held = self.held.params
        if held is None or self._is_skipped("params"):
            return 0
        compared = 0
        for key in sorted({*self.facts.params, *held}):
            name = f"params.{key}"
            if self._is_skipped(name):
                continue
            compared += key in self.facts.params
            if key not in self.facts.params:
                if not _matches(key, self.content.volatile):
                    self._differs(f"param {key}", None, held[key])
            elif key not in held:
                if self.facts.params[key] is not None:
                    self._differs(f"param {key}", self.facts.params[key], None)
            else:
                self._param(key, self.facts.params[key], held[key], is_cut=name in self.held.cut)
        return compared

    def _param(self, key: str, said: Scalar, found: Scalar, *, is_cut: bool) -> None:
        secrets = Redaction(self.content.redact)
        expected = secrets.value(key, said)
        if _is_same(expected, found) or (is_cut and is_beginning(str(found), str(expected))):
            return
        if secrets.value(key, found) != found:  # what is held has a secret in it, which is not for anybody to see
            self._differs(
                f"param {key}", "(masked)", "the secret, in clear" if _is_same(said, found) else "something else"
            )
        elif not _matches(key, self.content.volatile):
            self._differs(f"param {key}", expected, found)


def _is_same(expected: Scalar, found: Scalar) -> bool:
    """Whether a target that holds typed values, floats for all numbers, or only text, holds `expected`."""
    if isinstance(expected, bool) or isinstance(found, bool):
        return expected is found or found == str(expected)
    if isinstance(expected, int | float) and isinstance(found, int | float):
        one, other = float(expected), float(found)
        return one == other or (math.isnan(one) and math.isnan(other))
    return found == expected or found == str(expected)


def _matches(key: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(key.lower(), glob.lower()) for glob in globs)


def _seconds(text: str) -> float | None:
    return float(text) if text else None


def _close(one: float | None, other: float | None, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= tolerance

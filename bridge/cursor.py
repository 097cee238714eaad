"""The cursor, which says what a target has acknowledged of its run directory."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Self

from bridge.errors import NewerFormatError
from bridge.files import fitting
from bridge.options import ContentOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bridge.model import Run

__all__ = ["CURSOR_FORMAT", "CURSOR_LIMIT", "ContentOptions", "Cursor", "sent_facts"]

CURSOR_FORMAT = 1
"""The format number of a cursor; a newer one stops its run, an older one is read or leads to a rebuild."""

CURSOR_LIMIT = 4000
"""The greatest length of a cursor's JSON text, in characters (an MLflow tag holds 5000 to 8000)."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """What a target has acknowledged of its run directory. Its JSON text stays under 4,000 characters.

    metrics.csv: `rows` complete rows (bad ones count, header lines do not), which end at byte `offset`;
    `header` and `window` are digests of the first line and of the (at most 64 KiB) before `offset`;
    `digest` is that of the rows' content, the same for any order of columns. `last_step` is the greatest step of any
    row; `last_points` holds for each metric its greatest step and the value that counts there, None if that would not
    fit; `seen` is the number of metrics. `last_time` is the time at the last row. The header line in force is at byte
    `columns_at`. `stat` is (size, mtime in nanoseconds) of metrics.csv and of media.jsonl. media.jsonl: `media_lines`
    lines, which end at byte `media_offset`, with `media_digest` over their bytes. `anchors` are (row, time) from which
    times are estimated; empty where the run has a time column. `shape` is `ContentOptions.differences()` of the options
    that shaped the target. `sent` is what was last sent of names, notes, tags ..., by a key of the exporter's, usually
    as a digest; the keys of `sent_facts` (status, start, end) are in every cursor and plain, since verify compares with
    them. `extra` is what else an exporter keeps (JSON values). `replacing` is the step at and after which the target's
    points are not complete: it holds some of them or none. `complete` is false where the target is half-filled and
    cannot be continued, only rebuilt.
    """

    identity: str
    path: str
    rows: int = 0
    offset: int = 0
    header: str = ""
    window: str = ""
    digest: str = ""
    last_step: int | None = None
    last_points: Mapping[str, tuple[int, float]] | None = None
    seen: int = 0
    last_time: float | None = None
    columns_at: int = 0
    stat: tuple[int, int, int, int] | None = None
    media_lines: int = 0
    media_offset: int = 0
    media_digest: str = ""
    anchors: tuple[tuple[int, float], ...] = ()
    content: Mapping[str, Any] = field(default_factory=dict)
    sent: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    replacing: int | None = None
    complete: bool = True

    def __post_init__(self) -> None:
        """Keep no more of a long path than fits."""
        object.__setattr__(self, "path", fitting(self.path))

    def with_(self, **changes: Any) -> Self:
        """Return a copy with `changes`."""
        return replace(self, **changes)

    def to_json(self) -> str:
        """Return strict JSON of under CURSOR_LIMIT characters: without the last points if they do not fit."""
        text = self._dump(self.last_points)
        return text if len(text) < CURSOR_LIMIT or self.last_points is None else self._dump(None)

    def _dump(self, last_points: Mapping[str, tuple[int, float]] | None) -> str:
        kept: dict[str, Any] = {"format": CURSOR_FORMAT}
        for key in self.__slots__:
            value = getattr(self, key)
            if key != "last_points" and value != _CURSOR_DEFAULTS.get(key, _MISSING):
                kept[key] = value
        if last_points is not None:
            # float.hex keeps every bit and holds NaN and infinities, which strict JSON does not.
            kept["last_points"] = {name: [step, float(value).hex()] for name, (step, value) in last_points.items()}
        return json.dumps(kept, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str, *, where: str) -> Self | None:
        """Return the cursor in `text`; None where it is no cursor of a format that can be read.

        Raises NewerFormatError, which names `where`, for a format number that is newer than this version's.
        """
        try:
            data = json.loads(text)
            version = int(data.pop("format"))
            if version > CURSOR_FORMAT:
                raise NewerFormatError(
                    f"{where} was made by a newer bridge (cursor format {version}, this one knows {CURSOR_FORMAT}).",
                    hint="pip install --upgrade registry-bridge",
                )
            points = data.pop("last_points", None)
            if points is not None:
                data["last_points"] = {
                    name: (int(step), float.fromhex(value)) for name, (step, value) in points.items()
                }
            data["anchors"] = tuple((int(row), float(time)) for row, time in data.get("anchors", ()))
            if "stat" in data:
                data["stat"] = tuple(int(number) for number in data["stat"])
            return cls(**data)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


def sent_facts(run: Run) -> dict[str, str]:
    """Return what every exporter adds to `Cursor.sent`.

    Status, start and end of `run` as they are sent, in plain words.
    Verify compares status and times as of the last export: with these, not with what the run says by now.
    """
    end = "" if run.end is None else repr(float(run.end))
    return {"status": run.status.value, "start": repr(float(run.start)), "end": end}


_MISSING = object()
_CURSOR_DEFAULTS = {
    item.name: item.default_factory() if item.default_factory is not MISSING else item.default
    for item in fields(Cursor)
    if item.default is not MISSING or item.default_factory is not MISSING
}

"""Pictures and videos as artifacts: pictures in MLflow's image grid, the others where its viewer plays or shows them."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bridge.exporters.mlflow.images import Unreadable, full_and_small
from bridge.exporters.mlflow.stage import read_safely
from bridge.exporters.mlflow.status import millis
from bridge.model import MediaType, Notice, NoticeKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bridge.exporters.mlflow.stage import Stage
    from bridge.model import MediaEvent

__all__ = ["CAPTIONS_FILE", "MEDIA_FILE", "StagedMedia", "caption_table", "parse_path", "plain_tag", "stage_media"]

CAPTIONS_FILE = "bridge/captions.json"
"""The table of all captions, which the UI shows as one."""

MEDIA_FILE = "bridge/media.json"
"""What stands in the names of files for tags that no file name takes."""

_NAMESPACE = uuid.UUID("0d3a2c51-6f57-5c0e-8a63-4d1f0a6f7b1e")
_TAG_BYTES = 120
_IMAGE_LIMIT = 64 << 20
"""A picture's bytes; a larger one is a plain artifact."""

_IN_GRID = re.compile(r"images/(.+)~(\d+)\+step\+(-?\d+)\+timestamp\+-?\d+\+bridge-[0-9a-f]+\.(?:png|webp)")
_AS_FILE = re.compile(r"media/(.+)/(-?\d+)_(\d+)\.\w+")


@dataclass(slots=True)
class StagedMedia:
    """What was staged. `captions` are rows of their table, `names` what became of tags that had to be cleaned (as key)."""

    count: int = 0
    shown: bool = False
    captions: list[list[Any]] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)


def stage_media(stage: Stage, identity: str, events: Sequence[MediaEvent]) -> StagedMedia:
    """Stage `events`: every picture twice for the grid, everything else once. Names follow from the events alone."""
    staged = StagedMedia()
    for event in events:
        plain = plain_tag(event.tag)
        if plain != event.tag:
            staged.names[plain] = event.tag
        paths = _picture(stage, identity, event, plain, staged) if event.type is MediaType.IMAGE else None
        if paths is not None:
            staged.shown = True
        elif not _file(stage, event, plain, staged):
            continue
        staged.count += 1
        if event.caption:
            path = paths or (_file_path(event, plain), "")
            staged.captions.append(_caption_row(event, path))
    return staged


def plain_tag(tag: str) -> str:
    """`tag` as the image grid can show it; one that had to be changed ends in a digest, so that no two are the same."""
    plain = re.sub(r"[^A-Za-z0-9_\-. /]", "_", tag)
    plain = "/".join("_" if part in ("", ".", "..") else part for part in plain.split("/"))
    if plain == tag and len(tag) <= _TAG_BYTES:
        return tag
    return f"{plain[:_TAG_BYTES]}-{hashlib.sha256(tag.encode('utf-8', 'surrogatepass')).hexdigest()[:6]}"


def parse_path(path: str) -> tuple[str, int, int] | None:
    """The (cleaned) tag, step and index of one of our artifacts; None for small pictures and what is not ours."""
    found = _IN_GRID.fullmatch(path)
    if found:
        return found[1].replace("~", "/"), int(found[3]), int(found[2])
    found = _AS_FILE.fullmatch(path)
    return (found[1], int(found[2]), int(found[3])) if found else None


def caption_table(rows: Iterable[Sequence[Any]], held: bytes | None) -> bytes:
    """The captions' table with `rows` added to what it has (`held`); a row for the same place takes the old one's."""
    columns = ["tag", "index", "step", "caption", "image"]
    found: dict[tuple[Any, ...], list[Any]] = {}
    if held:
        for row in json.loads(held)["data"]:
            found[tuple(row[:3])] = row
    for row in rows:
        found[tuple(row[:3])] = list(row)
    data = [found[place] for place in sorted(found, key=lambda place: (str(place[0]), place[2], place[1]))]
    return json.dumps({"columns": columns, "data": data}, ensure_ascii=False).encode("utf-8", "replace")


def captions_of(table: bytes) -> Mapping[tuple[str, int, int], str]:
    """The captions by tag, step and index."""
    return {(row[0], row[2], row[1]): row[3] for row in json.loads(table)["data"]}


def _picture(stage: Stage, identity: str, event: MediaEvent, plain: str, staged: StagedMedia) -> tuple[str, str] | None:
    """Stage a picture for the grid: the paths of its two files; None where it cannot be shown there."""
    data = read_safely(event.file, limit=_IMAGE_LIMIT)
    if data is None:
        return None
    try:
        extension, full, small = full_and_small(data, event.format)
    except Unreadable as error:
        staged.notices.append(
            Notice(NoticeKind.NOT_SHOWABLE, event.path, f"{error}; kept as {_file_path(event, plain)}")
        )
        return None
    name = uuid.uuid5(_NAMESPACE, f"{identity}\n{event.tag}\n{event.step}\n{event.index}").hex[:16]
    key = f"{plain}/{event.index}".replace("/", "~")
    stem = f"images/{key}+step+{event.step}+timestamp+{millis(event.time)}+bridge-{name}"
    paths = (f"{stem}.{extension}", f"{stem}+compressed.webp")
    stage.add(paths[0], full)
    stage.add(paths[1], small)
    return paths


def _file(stage: Stage, event: MediaEvent, plain: str, staged: StagedMedia) -> bool:
    notice = stage.add_file(_file_path(event, plain), event.file)
    if notice is not None:
        staged.notices.append(Notice(NoticeKind.MISSING_FILE, event.path, notice.detail))
    return notice is None


def _file_path(event: MediaEvent, plain: str) -> str:
    extension = re.sub(r"\W", "", event.format) or "bin"
    return f"media/{plain}/{event.step:08d}_{event.index}.{'jpg' if extension == 'jpeg' else extension}"


def _caption_row(event: MediaEvent, paths: tuple[str, str]) -> list[Any]:
    image = {"type": "image", "filepath": paths[0], "compressed_filepath": paths[1]} if paths[1] else paths[0]
    return [event.tag, event.index, event.step, event.caption, image]

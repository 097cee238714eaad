"""What MLflow's UI must be told about a run's artifacts so that it shows them: tags, and the table of captions."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.exporters.mlflow.media import CAPTIONS_FILE, caption_table
from bridge.exporters.mlflow.tags import Tag

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bridge.exporters.mlflow.place import Place
    from bridge.exporters.mlflow.records import Record
    from bridge.exporters.mlflow.stage import Stage

__all__ = ["Shelf"]


@dataclass(frozen=True, slots=True)
class Shelf:
    """The artifacts of one run."""

    place: Place
    record: Record

    def shows_images(self) -> dict[str, str]:
        """The tag that makes the UI look for step images."""
        return {} if Tag.IMAGES in self.record.tags else {Tag.IMAGES: "True"}

    def add_captions(self, stage: Stage, rows: Sequence[Sequence[Any]]) -> dict[str, str]:
        """Stage the captions' table with `rows` in it; the tag that makes the UI show it as a table."""
        stage.add(CAPTIONS_FILE, caption_table(rows, self.fetch(CAPTIONS_FILE)))
        tables = _listed(self.record.tags.get(Tag.ARTIFACTS))
        entry = {"path": CAPTIONS_FILE, "type": "table"}
        return {} if entry in tables else {Tag.ARTIFACTS: json.dumps([*tables, entry])}

    def add_names(self, stage: Stage, path: str, names: Mapping[str, str]) -> None:
        """Stage the map `path` from what stands in the names of files to what it was made of, with `names` in it."""
        held = self.fetch(path)
        known: dict[str, str] = json.loads(held) if held else {}
        stage.add(path, json.dumps(known | dict(names), indent=1, ensure_ascii=False).encode())

    def fetch(self, path: str) -> bytes | None:
        """An artifact's bytes; None where there is no such file."""
        folder = path.rpartition("/")[0]
        if path not in {file.path for file in self.place.api.files(self.record.run_id, folder)}:
            return None
        with tempfile.TemporaryDirectory(prefix="bridge-fetch-") as into:
            return self.place.api.fetch(self.record.run_id, path, Path(into)).read_bytes()


def _listed(text: str | None) -> list[Any]:
    try:
        found = json.loads(text or "[]")
    except ValueError:
        return []
    return found if isinstance(found, list) else []

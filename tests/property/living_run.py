"""A run directory that grows, tears, is requeued, moved and replaced, as a training would leave it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.pictures import log_image, png
from tests.run_dirs import CREATED_S, write_sidecar

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class LivingRun:
    """One run directory, written byte by byte.

    `clock` counts seconds since the start, at most one for each item logged.
    """

    path: Path
    uid: str = "uid-0"
    columns: list[str] = field(default_factory=lambda: ["loss"])
    rows: list[dict[str, str]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=lambda: {"status": "running", "tags": ["project:a"], "notes": ""})
    step: int = 0
    session: int = 0
    clock: int = 0
    pictures: int = 0

    def __post_init__(self) -> None:
        self.path.mkdir(parents=True)
        (self.path / "hparams.yaml").write_text("lr: 0.1\n")
        self._write_all()
        self._write_sidecar()

    def log(self, values: list[str], *, stride: int, seconds: int = 1) -> None:
        """Log `values` in the columns from the left ("" leaves a cell empty), `stride` steps after the last row.

        `seconds` is the time since the last item: 0 or 1.
        """
        self._mend()
        self.step += stride
        row = dict(zip(self.columns, values, strict=False))
        row |= {"step": str(self.step), "wall_time": repr(CREATED_S + (self._tick() if seconds else self.clock))}
        self.rows.append(row)
        with (self.path / "metrics.csv").open("a", newline="") as file:
            file.write(self._line(row))
        self._beat()

    def tear(self, text: str) -> None:
        """Append the beginning of a line, as a process leaves it that dies while it writes."""
        self._mend()
        with (self.path / "metrics.csv").open("a", newline="") as file:
            file.write(text)

    def grow_header(self, name: str) -> None:
        """Add a metric in mid-run: rewrite the file with one more column, and replace it by a rename."""
        if name not in self.columns:
            self.columns.append(name)
            self._write_all()

    def picture(self, tag: str, *, has_caption: bool = True) -> None:
        """Log a new, unique image."""
        self.pictures += 1
        name = f"{tag}/{self.step:08d}_{self.pictures}.png"
        caption = f"picture {self.pictures}" if has_caption else None
        facts = {"caption": caption, "time": CREATED_S + self._tick(), "session": self.session}
        log_image(self.path, self.step, name, png(self.pictures), tag=tag, **facts)

    def requeue(self, back: int) -> None:
        """Start a new process from a checkpoint `back` steps ago."""
        self._mend()
        self.session += 1
        self.step = max(self.step - back, 0)
        self.edit(status="running")

    def edit(self, **facts: Any) -> None:
        """Change fields of the sidecar."""
        self.facts |= facts
        self._write_sidecar()

    def move(self, to: Path) -> None:
        """Move the directory to another place."""
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(self.path, to)
        self.path = to

    def _tick(self) -> int:
        self.clock += 1
        return self.clock

    def _line(self, row: dict[str, str]) -> str:
        return ",".join(row.get(name, "") for name in self._header()) + "\r\n"

    def _header(self) -> list[str]:
        return [*self.columns, "step", "wall_time"]

    def _write_all(self) -> None:
        beside = self.path / "metrics.csv.new"
        beside.write_text(",".join(self._header()) + "\r\n" + "".join(map(self._line, self.rows)), newline="")
        beside.replace(self.path / "metrics.csv")

    def _mend(self) -> None:
        """Cut a torn last line, as the logger does before it appends."""
        file = self.path / "metrics.csv"
        whole = file.read_bytes()
        os.truncate(file, whole.rfind(b"\n") + 1)

    def _write_sidecar(self) -> None:
        facts = dict(self.facts)
        if facts["status"] in ("completed", "failed"):
            facts["ended_at"] = CREATED_S + 100_000
        write_sidecar(self.path, uid=self.uid, sessions=[{"rows": 0}] * (self.session + 1), **{"run_id": "run"} | facts)
        self._beat()

    def _beat(self) -> None:
        (self.path / "heartbeat").touch()

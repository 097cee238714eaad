"""What a run is written with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["TIME_COLUMN", "Settings"]

TIME_COLUMN = "wall_time"


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is written with. `token` names this start of it, in whatever process the start goes on."""

    run_dir: Path
    run_id: str
    token: str
    tags: tuple[str, ...] = ()
    notes: str = ""
    flush_every: int = 50
    time_column: str | None = TIME_COLUMN

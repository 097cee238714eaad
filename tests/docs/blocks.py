"""The code blocks of a Markdown page."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<note>[^\n]*?) -->\n)?^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """One block: its `language`, the `line` it begins at, and the `file` it is saved as."""

    language: str
    text: str
    line: int
    file: str | None

    def commands(self) -> list[str]:
        """Return the commands that a reader, systemd or cron runs from this block: each line of a block of `sh`."""
        lines = self.text.splitlines()
        if self.language == "ini":
            return [line.removeprefix("ExecStart=") for line in lines if line.startswith("ExecStart=")]
        if self.language == "crontab":
            return [line.split(None, 5)[5] for line in lines]
        return [line for line in lines if self.language == "sh" and line and not line.startswith("#")]


def blocks_of(page: Path) -> list[Block]:
    """Return all blocks of `page` in order; an HTML comment `file: NAME` before one names its file."""
    text = page.read_text()
    return [
        Block(
            language=found["language"],
            text=textwrap.dedent(found["text"]),
            line=text.count("\n", 0, found.start()) + 1,
            file=(found["note"] or "").removeprefix("file: ") if (found["note"] or "").startswith("file: ") else None,
        )
        for found in _BLOCK.finditer(text)
    ]

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
    """One block: its `language`, the `line` it begins at, the `file` it is saved as, and whether it can be `run`."""

    language: str
    text: str
    line: int
    file: str | None
    run: bool

    def commands(self) -> list[str]:
        """The commands of a console block."""
        return [line.removeprefix("$ ") for line in self.text.splitlines() if line.startswith("$ ")]


def blocks_of(page: Path) -> list[Block]:
    """All blocks of `page`, in order; an HTML comment before one says `not run`, or `file: NAME`."""
    text = page.read_text()
    return [
        Block(
            language=found["language"],
            text=textwrap.dedent(found["text"]),
            line=text.count("\n", 0, found.start()) + 1,
            file=(found["note"] or "").removeprefix("file: ") if (found["note"] or "").startswith("file: ") else None,
            run=found["note"] != "not run",
        )
        for found in _BLOCK.finditer(text)
    ]

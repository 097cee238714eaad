"""What commands print: exit codes, harmless text, results on stdout, messages and progress on stderr."""

from __future__ import annotations

import re
import sys
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from bridge.errors import BridgeError, counted
from bridge.options import OutputOptions
from bridge.secrets import hide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rich.console import Console

    from bridge.model import SkippedFolder
    from bridge.sync.report import Progress


class Exit(IntEnum):
    """An exit code; a command returns one of these (None is DONE)."""

    DONE = 0
    NOTHING_DONE = 1
    USAGE = 2
    SOME_FAILED = 3
    DIFFERENCES = 4
    INTERRUPTED = 130


MEANINGS = {
    Exit.DONE: "done",
    Exit.NOTHING_DONE: "nothing could be done",
    Exit.USAGE: "wrong usage",
    Exit.SOME_FAILED: "some runs failed, the others are done",
    Exit.DIFFERENCES: "verify found differences",
    Exit.INTERRUPTED: "interrupted",
}
"""The codes in the words of the help pages."""


# C0 and C1 controls and DEL steer a terminal; U+2028/9 break lines; the bidi controls reorder what is shown;
# lone surrogates (from file names that are not UTF-8) cannot be written at all.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSAFE_BUT_LINES = re.compile(_UNSAFE.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))


def plain(text: object, *, lines: bool = False) -> str:
    r"""Return `text` with control characters as escapes (`\x1b`) and without the credentials in addresses.

    `lines` keeps newlines and tabs.
    """
    pattern = _UNSAFE_BUT_LINES if lines else _UNSAFE
    return pattern.sub(lambda found: found[0].encode("unicode_escape").decode(), hide(str(text)))


def wrapped(text: str, *, stream: TextIO | None = None, indent: str = "") -> str:
    """Return a text for `stream` (stderr): on a terminal its long lines are broken between words, never inside one.

    The parts of a broken line begin with `indent`.
    """
    if not (stream or sys.stderr).isatty():
        return text
    import shutil
    import textwrap

    width = shutil.get_terminal_size().columns
    return "\n".join(
        textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        if len(line) > width
        else line
        for line in text.split("\n")
    )


SKIPPED_SHOWN = 10
"""Skipped folders that are named."""

STDOUT = Path("-")
"""What `--csv -` names."""


class Output(OutputOptions, frozen=True, kw_only=True):
    """Print results to stdout and messages to stderr, as much as --json, -q and -v ask for."""

    def result(self, text: str) -> None:
        """Print a result; its control characters become visible, its newlines stay."""
        click.echo(plain(text, lines=True))

    def line(self, text: str) -> None:
        """Print one line of a report; control characters and line breaks become visible, and a terminal breaks it."""
        click.echo(wrapped(plain(text), stream=sys.stdout, indent="    "))

    def result_json(self, value: object) -> None:
        r"""Print a result as strict JSON, indented; control characters are escaped as in JSON (`\u009b`)."""
        import json

        text = json.dumps(value, indent=2, ensure_ascii=not _writes_unicode(), allow_nan=False)
        click.echo(_UNSAFE_BUT_LINES.sub(lambda found: f"\\u{ord(found.group()):04x}", hide(text)))

    def save(self, what: str, files: Sequence[tuple[Path | None, Callable[[], Any]]]) -> None:
        """Write the bytes of each file that was asked for, and say so; print those for STDOUT.

        Raises BridgeError for a file that cannot be written.
        """
        for path, content in files:
            if path == STDOUT:
                self.result(content().decode().replace("\r\n", "\n").removesuffix("\n"))
            elif path is not None:
                try:
                    path.write_bytes(content())
                except OSError as error:
                    raise BridgeError(f"{path} cannot be written: {error.strerror}.") from error
                self.say(f"{what} written to {path}.")

    def say(self, message: str) -> None:
        """Print a message to stderr unless --quiet is given."""
        if not self.quiet:
            self.warn(message)

    def warn(self, message: str) -> None:
        """Print a message to stderr, also with --quiet."""
        click.echo(wrapped(plain(message, lines=True)), err=True)

    def say_no_match(self, text: str, code: int) -> int:
        """Print why no run was selected, if none was, and return the exit code.

        --quiet silences it only if the runs just do not match, which is DONE.
        """
        if text:
            (self.warn if code == Exit.NOTHING_DONE else self.say)(text)
        return code

    def say_skipped(self, skipped: Iterable[SkippedFolder]) -> None:
        """Print which folders look like run directories and are none: the first by name, the others as a number."""
        folders = list(skipped)
        for folder in folders[:SKIPPED_SHOWN]:
            self.say(plain(f"{folder.path}: skipped, because it is not a run: {folder.reason}"))
        if len(folders) > SKIPPED_SHOWN:
            self.say(f"and {counted(len(folders) - SKIPPED_SHOWN, 'more folder')} skipped; --json names all of them.")

    def progress(self, *, after: float = 0.0) -> Progress:
        """Return the progress of an export on stderr: a bar on a terminal, lines elsewhere, nothing with --quiet.

        The bar appears `after` so many seconds: what is over by then needs none.
        """
        from bridge.cli.progress import BarProgress, LineProgress
        from bridge.sync.report import Progress

        if self.quiet:
            return Progress()
        return BarProgress(sys.stderr, after=after) if sys.stderr.isatty() else LineProgress(sys.stderr)

    def console(self) -> Console:
        """Return rich's console on stdout. A pipe has no width, so that lines stay whole for grep and cut."""
        from rich.console import Console

        console = Console(highlight=False, markup=False, emoji=False)
        if not console.is_terminal:
            console.width = 100_000
        return console


def _writes_unicode() -> bool:
    return (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"

"""Write docs/reference/cli.md from the commands themselves: `python -m tests.docs.cli_reference`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bridge.cli import bridge

if TYPE_CHECKING:
    import click


def reference() -> str:
    """The page: the help of every command, as it is printed 100 columns wide."""
    parts = [
        "# The command line\n",
        "Written from the commands' own `--help`. Every option is also an environment variable: `--logdir` is `BRIDGE_LOGDIR`.\n",
    ]
    top = bridge.make_context("bridge", [], resilient_parsing=True, terminal_width=100)
    parts.append(_page("bridge", top))
    for name in bridge.list_commands(top):
        command = bridge.get_command(top, name)
        assert command is not None
        parts.append(_page(f"bridge {name}", command.make_context(name, [], parent=top, resilient_parsing=True)))
    return "\n".join(parts)


def _page(title: str, context: click.Context) -> str:
    context.terminal_width = 100
    return f"## {title}\n\n```text\n{context.get_help().rstrip()}\n```\n"


if __name__ == "__main__":
    (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").write_text(reference())

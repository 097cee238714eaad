"""`bridge completion`: the script that makes a shell complete commands, options, run ids and metric names."""

from __future__ import annotations

import click

from bridge.cli.command import command
from bridge.cli.output import Exit, Output


@command("completion", example="bridge completion bash >> ~/.bashrc", exits=(Exit.DONE, Exit.USAGE))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str, out: Output) -> None:
    """Print the completion script for a shell; put it into the shell's start-up file."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    out.result(kind(click.get_current_context().find_root().command, {}, "bridge", "_BRIDGE_COMPLETE").source())

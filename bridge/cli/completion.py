"""`bridge completion`: the script that makes a shell complete commands, options, run ids and metric names."""

from __future__ import annotations

import click

from bridge.cli.common import Exit, Output, command, output_options

__all__ = ["completion"]


@command("completion", example="bridge completion bash >> ~/.bashrc", exits=(Exit.DONE, Exit.USAGE))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@output_options
@click.pass_context
def completion(ctx: click.Context, shell: str, out: Output) -> None:
    """Print the completion script for a shell, to be put into its start-up file."""
    from click.shell_completion import get_completion_class

    from bridge.cli.shells import register_shells

    register_shells()
    kind = get_completion_class(shell)
    assert kind is not None
    group = ctx.find_root().command
    out.result(kind(group, {}, "bridge", "_BRIDGE_COMPLETE").source())

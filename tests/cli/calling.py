"""Call a command in this process."""

from __future__ import annotations

from click.testing import CliRunner

from bridge.cli import bridge


def call(*words: object) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of a command."""
    result = CliRunner().invoke(bridge, [str(word) for word in words])
    return result.exit_code, result.stdout, result.stderr

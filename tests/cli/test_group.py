"""The command group: help, versions, errors, exit codes."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from bridge.cli import COMMANDS, LazyGroup, bridge
from bridge.cli.output import Exit
from bridge.errors import (
    BridgeError,
    MissingExtraError,
    RunDirectoryError,
    TargetRefusedError,
    TargetUnavailableError,
    UsageError,
)
from tests.cli.calling import call

OFFERED = bridge.list_commands(click.Context(bridge))


@pytest.mark.parametrize("name", OFFERED)
def test_each_help_has_a_sentence_an_example_and_the_exit_codes(name: str) -> None:
    """Every command's help shows one sentence, one example of itself, and the exit codes."""
    for flag in ("--help", "-h"):
        code, out, err = call(name, flag)
        assert (code, err) == (0, "")
        assert f"\n  Example:\n    bridge {name}" in out
        assert "\n  Exit codes: 0 done" in out.replace("\n\n", "\n")
        assert "130 interrupted" in " ".join(out.split())


@pytest.mark.parametrize("name", OFFERED)
def test_the_group_says_what_each_command_says(name: str) -> None:
    """The line of a command in `bridge --help` begins the command's own help."""
    command = bridge.get_command(click.Context(bridge), name)
    assert command is not None
    sentence = COMMANDS[name].removesuffix(".")
    assert " ".join((command.help or "").split()).startswith(sentence)


def test_version() -> None:
    """--version prints the installed version."""
    from importlib.metadata import version

    assert call("--version") == (0, f"bridge, version {version('registry-bridge')}\n", "")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UsageError("m", hint="h"), 2, "Error: m\nHint: h\n"),
        (MissingExtraError("m", hint="h"), 1, "Error: m\nHint: h\n"),
        (BridgeError("m"), 1, "Error: m\n"),
        (TargetUnavailableError("m"), 1, "Error: m\n"),
        (TargetRefusedError("m"), 1, "Error: m\n"),
        (RunDirectoryError("m"), 1, "Error: m\n"),
        (UsageError("bad \x1b[31mname\n  here\u202e"), 2, "Error: bad \\x1b[31mname\n  here\\u202e\n"),
        (KeyboardInterrupt(), 130, "\nInterrupted.\n"),
        (PermissionError(13, "Permission denied", "/x/y"), 1, "Error: /x/y: Permission denied.\n"),
    ],
)
def test_errors_become_a_message_a_hint_and_an_exit_code(error: BaseException, code: int, said: str) -> None:
    """An error goes to stderr with its hint, without a traceback, and its class decides the exit code.

    Control characters in it are escaped. Ctrl-C prints one word below the ^C.
    """
    result = CliRunner().invoke(_group(error), ["fail"])
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", said)


def test_other_errors_are_faults_of_ours() -> None:
    """Any other exception shows its traceback, so that it can be reported."""
    with pytest.raises(ZeroDivisionError):
        _group(ZeroDivisionError()).main(["fail"])


def test_what_a_command_returns_is_the_exit_code() -> None:
    """A command returns its exit code, and None means 0."""
    for returned, code in ((None, 0), (Exit.DIFFERENCES, 4), (3, 3)):
        group = LazyGroup("group")
        with pytest.raises(SystemExit) as caught:
            _with(group, lambda returned=returned: returned).main(["fail"])
        assert caught.value.code == code


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ls", "--nothing"], "--nothing"),
        (["nothing"], "No such command 'nothing'."),
        ([], "Usage: bridge"),
        (["exprot"], "No such command 'exprot'. Did you mean 'export'?"),
        (["lss"], "No such command 'lss'. Did you mean 'ls'?"),
        (["cache"], "No such command 'cache'."),
        (["export", "--max-points", "9"], "No such option"),
        (["export", "--overlap", "all"], "No such option"),
    ],
)
def test_wrong_usage_is_2(words: list[str], said: str) -> None:
    """An unknown option and an unknown command are wrong usage; the error suggests the nearest command."""
    code, _, err = call(*words)
    assert (code, said in err) == (2, True)


def test_an_older_click_does_not_suggest_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest command is suggested also where click does not do it by itself."""

    def resolve(group: click.Group, ctx: click.Context, args: list[str]) -> None:
        ctx.fail(f"No such command {args[0]!r}.")

    monkeypatch.setattr(click.Group, "resolve_command", resolve)
    assert call("exprot")[2].endswith("Error: No such command 'exprot'. Did you mean 'export'?\n")
    assert call("nothing")[2].endswith("Error: No such command 'nothing'.\n")


def _group(error: BaseException) -> LazyGroup:
    def fail() -> None:
        raise error

    return _with(LazyGroup("group"), fail)


def _with(group: LazyGroup, callback: object) -> LazyGroup:
    command = click.Command("fail", callback=callback)  # type: ignore[arg-type]
    group.get_command = lambda ctx, cmd_name: command  # type: ignore[method-assign]
    return group

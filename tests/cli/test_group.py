"""The command group: help, versions, errors, exit codes."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

from bridge.cli import COMMANDS, LazyGroup, bridge
from bridge.cli.output import Exit, plain
from bridge.errors import (
    BridgeError,
    MissingExtraError,
    RunDirectoryError,
    TargetRefusedError,
    TargetUnavailableError,
    UsageError,
)
from tests.cli.calling import call

if TYPE_CHECKING:
    from pathlib import Path

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
    ("error", "code"),
    [
        (UsageError("m", hint="h"), 2),
        (MissingExtraError("m", hint="h"), 1),
        (BridgeError("m", hint="h"), 1),
        (TargetUnavailableError("m", hint="h"), 1),
        (TargetRefusedError("m", hint="h"), 1),
        (RunDirectoryError("m", hint="h"), 1),
    ],
)
def test_errors_become_a_message_a_hint_and_an_exit_code(error: BridgeError, code: int) -> None:
    """An error goes to stderr with its hint, and its class decides the exit code."""
    assert _raised(error) == (code, "", "Error: m\nHint: h\n")


def test_control_characters_in_errors_are_made_visible() -> None:
    """Names from run directories cannot steer the terminal."""
    assert _raised(UsageError("bad \x1b[31mname\n  here\u202e")) == (2, "", "Error: bad \\x1b[31mname\n  here\\u202e\n")


def test_interruption_is_130() -> None:
    """Ctrl-C exits with 130 and prints one word below the ^C."""
    assert _raised(KeyboardInterrupt()) == (130, "", "\nInterrupted.\n")


def test_an_error_about_a_file_names_it() -> None:
    """An operating system error about a file is a message that names it, without a traceback."""
    assert _raised(PermissionError(13, "Permission denied", "/x/y")) == (1, "", "Error: /x/y: Permission denied.\n")


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


def test_wrong_usage_is_2() -> None:
    """An unknown option and an unknown command are wrong usage."""
    assert (call("ls", "--nothing")[0], call("nothing")[0], call()[0]) == (2, 2, 2)


@pytest.mark.parametrize(("typed", "meant"), [("exprot", "export"), ("lss", "ls"), ("veiw", "view")])
def test_a_misspelt_command_is_wrong_usage_that_names_the_nearest(typed: str, meant: str) -> None:
    """An unknown command is wrong usage, and the error suggests the nearest one."""
    code, _, err = call(typed)
    assert (code, f"No such command '{typed}'. Did you mean '{meant}'?" in err) == (2, True)


def test_as_a_module(tmp_path: Path) -> None:
    """`python -m bridge` is the same command."""
    done = subprocess.run(
        [sys.executable, "-m", "bridge", "show", "nobody", str(tmp_path)],
        env={"BRIDGE_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"Error: No run 'nobody' in {tmp_path}.\n")


def test_plain_text_keeps_letters_of_any_script() -> None:
    """Only control characters are escaped."""
    assert plain("日本 ü 😀 \t\x07\x9b") == "日本 ü 😀 \\t\\x07\\x9b"
    assert plain("a\nb\r", lines=True) == "a\nb\\r"


def _raised(error: BaseException) -> tuple[int, str, str]:
    result = CliRunner().invoke(_group(error), ["fail"])
    return result.exit_code, result.stdout, result.stderr


def _group(error: BaseException) -> LazyGroup:
    def fail() -> None:
        raise error

    return _with(LazyGroup("group"), fail)


def _with(group: LazyGroup, callback: object) -> LazyGroup:
    command = click.Command("fail", callback=callback)  # type: ignore[arg-type]
    group.get_command = lambda ctx, cmd_name: command  # type: ignore[method-assign]
    return group

"""The documentation does what it says: every block is run, or, where it needs a cluster or a server, checked."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from bridge.cli import bridge
from bridge.config import load_config
from tests.docs.blocks import Block, blocks_of

ROOT = Path(__file__).parents[2]
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name != "cli.md")
ALL_PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def needs_running(block: Block) -> bool:
    return block.run and (block.language == "console" or (block.language == "python" and block.file is None))


RUN_PAGES = [page for page in PAGES if any(needs_running(block) for block in blocks_of(page))]


@pytest.mark.parametrize("page", RUN_PAGES, ids=name)
def test_every_command_of_a_page_runs(page: Path, tmp_path: Path, demo_runs: Path) -> None:
    """The blocks of a page, run in order in one folder that holds the demo's runs, all succeed."""
    shutil.copytree(demo_runs, tmp_path / "demo-runs")
    for block in blocks_of(page):
        if block.file is not None:
            (tmp_path / block.file).write_text(block.text)
        if not needs_running(block):
            continue
        commands = [[sys.executable, "-c", block.text]] if block.language == "python" else []
        commands += [["bash", "-c", command] for command in block.commands() if block.language == "console"]
        for command in commands:
            done = subprocess.run(
                command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=200, check=False
            )
            assert done.returncode == 0, f"{page}:{block.line}: {command[-1]}\n{done.stdout}\n{done.stderr}"


def environment() -> dict[str, str]:
    mine = {key: value for key, value in os.environ.items() if not key.startswith(("BRIDGE_", "SLURM_"))}
    return mine | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{mine['PATH']}"}


@pytest.mark.parametrize("page", ALL_PAGES, ids=name)
def test_every_block_of_a_page_is_well_formed(page: Path, tmp_path: Path) -> None:
    """Commands have options that exist, code compiles, data parses."""
    for block in blocks_of(page):
        try:
            check(block, tmp_path)
        except Exception as error:
            error.add_note(f"in the block at {page}:{block.line}")
            raise


def check(block: Block, folder: Path) -> None:
    if block.language == "console":
        for command in block.commands():
            check_command(command)
    elif block.language == "python":
        compile(block.text, "block", "exec")
    elif block.language == "json":
        json.loads(block.text)
    elif block.language == "toml":
        tomllib.loads(block.text)
    elif block.language == "yaml":
        path = folder / "bridge.yaml"
        path.write_text(block.text)
        load_config(path)
    elif block.language == "bash":
        subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
        for line in re.findall(r"\bbridge (?!-)[^|&\n]*", re.sub(r"^ *#.*$", "", block.text, flags=re.M)):
            check_command(line)
    elif block.language == "ini":
        unit = configparser.ConfigParser(strict=False)
        unit.optionxform = str  # type: ignore[assignment,method-assign]  # a unit's keys are case-sensitive
        unit.read_string(block.text)
        check_own_command(unit["Service"]["ExecStart"])
    elif block.language == "crontab":
        for line in block.text.splitlines():
            check_own_command(line.split(None, 5)[5])
    else:
        assert block.language in {"text", ""}, f"no check for {block.language}"


def check_own_command(line: str) -> None:
    """A command for systemd or cron, which know no PATH to speak of: the whole path of a `bridge`, and good options."""
    program, _, rest = line.partition(" ")
    assert Path(program).is_absolute(), f"{program} is no whole path"
    assert Path(program).name == "bridge", f"{program} is not the command"
    check_command(f"bridge {rest}")


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("console", "$ bridge exprot runs"),
        ("console", "$ bridge export runs --nonsense"),
        ("bash", "bridge export runs --nonsense || true"),
        ("ini", "[Service]\nExecStart=/opt/bin/bridge exprot /data --to mlflow"),
        ("ini", "[Service]\nExecStart=/opt/bin/bridge export /data/runs --nonsense"),
        ("ini", "[Service]\nExecStart=bridge export /data/runs"),
        ("crontab", "*/5 * * * * /opt/bin/bridge exprot /data"),
        ("crontab", "*/5 * * * * bridge export /data"),
    ],
)
def test_the_checks_find_mistakes(tmp_path: Path, language: str, text: str) -> None:
    """A command, an option or a path that is wrong is found in each kind of block."""
    with pytest.raises((AssertionError, click.UsageError)):
        check(Block(language=language, text=text, line=1, file=None, run=True), tmp_path)


def check_command(line: str) -> None:
    """A `bridge` command must have the command and the options that it names; others are taken as they are."""
    words = [word for word in shlex.split(line, comments=True) if not re.fullmatch(r"\d?>.*", word)]
    if not words or words[0] != "bridge" or len(words) == 1 or words[1].startswith("-"):
        return
    # A command keeps the help option that the first context asks for, so this one asks for the usual names.
    top = click.Context(bridge, help_option_names=["-h", "--help"])
    command = bridge.get_command(top, words[1])
    assert command is not None, f"there is no command {words[1]}"
    command.make_parser(click.Context(command, parent=top, info_name=words[1])).parse_args(words[2:])


@pytest.mark.parametrize("page", ALL_PAGES, ids=name)
def test_every_link_within_the_project_leads_somewhere(page: Path) -> None:
    """Links to other files of the project, and to pictures, name files that exist."""
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page} links to {target}"


def test_the_command_reference_is_the_help_of_the_commands() -> None:
    """docs/reference/cli.md is what `make cli-reference` writes."""
    from tests.docs.cli_reference import reference

    assert (ROOT / "docs" / "reference" / "cli.md").read_text() == reference()

"""Check every block of the documentation, and run every command and script."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from bridge.cli import bridge
from bridge.options import load_config
from tests.docs.blocks import Block, blocks_of
from tests.docs.running import DATA, put_in, reader, run_command, run_python, stand_ins

if TYPE_CHECKING:
    from tests.zygote import Zygote

ROOT = Path(__file__).parents[2]
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name != "cli.md")
ALL_PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def is_script(block: Block) -> bool:
    return block.language == "python" and block.file is None


RUN_PAGES = [page for page in ALL_PAGES if any(is_script(block) or block.commands() for block in blocks_of(page))]


@pytest.mark.parametrize("page", RUN_PAGES, ids=name)
def test_every_command_of_a_page_runs(
    page: Path,
    tmp_path: Path,
    demo_runs: Path,
    sqlite_template: Path,
    heaviest: Zygote,
    request: pytest.FixtureRequest,
) -> None:
    """All blocks of a page succeed, run in order in one folder."""
    fill(tmp_path, page, demo_runs, sqlite_template)
    with stand_ins(page.read_text(), tmp_path, request) as names:
        for block in blocks_of(page):
            if block.file is not None:
                (tmp_path / block.file).write_text(block.text)
            try:
                if is_script(block):
                    run_python(put_in(block.text, names), tmp_path, heaviest)
                for command in block.commands():
                    run_command(put_in(command, names), tmp_path, reader(), heaviest)
            except BaseException as error:
                error.add_note(f"in the block at {page}:{block.line}")
                raise


def fill(folder: Path, page: Path, demo_runs: Path, sqlite_template: Path) -> None:
    """Write what a page's reader already has: the demo's runs, some `runs`, and MLflow's database.

    A page that trains starts with an empty folder.
    """
    blocks = blocks_of(page)
    if any(block.file == "train.py" for block in blocks):
        return
    words = {word for block in blocks for command in block.commands() for word in shlex.split(command, comments=True)}
    if any("demo-runs" in block.text for block in blocks):
        shutil.copytree(demo_runs, folder / "demo-runs")
        for lines in (folder / "demo-runs").rglob("media.jsonl"):  # their videos take most of an export's time
            kept = [line for line in lines.read_text().splitlines(keepends=True) if '"type": "video"' not in line]
            lines.write_text("".join(kept))
    if words & {"runs", f"{DATA}runs"}:
        for own in ("diverged", "killed"):
            shutil.copytree(demo_runs / own, folder / "runs" / own)
    shutil.copy(sqlite_template, folder / "mlflow.db")


@pytest.mark.parametrize("page", ALL_PAGES, ids=name)
def test_every_block_of_a_page_is_well_formed(page: Path, tmp_path: Path) -> None:
    """Commands use existing options, code compiles, and data parses."""
    for block in blocks_of(page):
        try:
            check(block, tmp_path)
        except Exception as error:
            error.add_note(f"in the block at {page}:{block.line}")
            raise


def check(block: Block, folder: Path) -> None:
    if block.language == "sh":
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
        for command in block.commands():
            check_own_command(command)
    else:
        assert block.language in {"text", ""}, f"no check for {block.language}"


def check_own_command(line: str) -> None:
    """Check a command for systemd or cron, which have no PATH.

    It names the whole path of a `bridge` and existing options.
    """
    program, _, rest = line.partition(" ")
    assert Path(program).is_absolute(), f"{program} is no whole path"
    assert Path(program).name == "bridge", f"{program} is not the command"
    check_command(f"bridge {rest}")


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("sh", "bridge exprot runs"),
        ("sh", "bridge export runs --nonsense"),
        ("sh", "make everything"),
        ("sh", "pip install registry-brigde[all]"),
        ("bash", "bridge export runs --nonsense || true"),
        ("ini", "[Service]\nExecStart=/opt/bin/bridge exprot /data --to mlflow"),
        ("ini", "[Service]\nExecStart=/opt/bin/bridge export /data/runs --nonsense"),
        ("ini", "[Service]\nExecStart=bridge export /data/runs"),
        ("crontab", "*/5 * * * * /opt/bin/bridge exprot /data"),
        ("crontab", "*/5 * * * * bridge export /data"),
    ],
)
def test_the_checks_find_mistakes(tmp_path: Path, language: str, text: str) -> None:
    """The checks find a wrong command, option or path in each kind of block."""
    with pytest.raises((AssertionError, click.UsageError)):
        check(Block(language=language, text=text, line=1, file=None), tmp_path)


def check_command(line: str) -> None:
    """Check that a `bridge` command uses an existing command and options, and accept any other command."""
    assert not line.startswith("$"), "what is copied is typed as it is"
    words = [word for word in shlex.split(line, comments=True) if not re.fullmatch(r"\d?>.*", word)]
    if words[:1] == ["make"]:
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(), f"make knows no {words[1]}"
    if words[:2] == ["pip", "install"]:
        assert re.fullmatch(r"(\.|registry-bridge)\[all\]", words[2]), f"{words[2]} is not this project with all extras"
    if not words or words[0] != "bridge" or len(words) == 1 or words[1].startswith("-"):
        return
    # A command keeps the help option that the first context asks for, so this one asks for the usual names.
    top = click.Context(bridge, help_option_names=["-h", "--help"])
    command = bridge.get_command(top, words[1])
    assert command is not None, f"there is no command {words[1]}"
    command.make_parser(click.Context(command, parent=top, info_name=words[1])).parse_args(words[2:])


@pytest.mark.parametrize("page", ALL_PAGES, ids=name)
def test_every_link_within_the_project_leads_somewhere(page: Path) -> None:
    """Links to files and images of the project name files that exist."""
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page} links to {target}"


def test_what_is_made_from_the_options_is_up_to_date() -> None:
    """The command reference, the key table and the schema equal the output of `make cli-reference`."""
    from tests.docs.cli_reference import made

    for path, text in made().items():
        assert path.read_text() == text, path

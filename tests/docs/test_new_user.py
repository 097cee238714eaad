"""Follow a new user's first minutes.

Install as README says into an empty environment, then follow the tutorial word for word.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.docs.blocks import blocks_of
from tests.docs.running import reader, run_command
from tests.environments import fresh_environment

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.compat, pytest.mark.timeout(1800)]  # a gigabyte is unpacked


def test_readme_and_tutorial_word_for_word(tmp_path: Path) -> None:
    """README's installation is enough for every command of the tutorial."""
    (extra,) = re.findall(r'^pip install "\.\[(\w+)\]"$', (ROOT / "README.md").read_text(), re.M)
    programs = fresh_environment(tmp_path / "installed", extra=extra).parent
    environment = reader(programs) | {"PYTHONSAFEPATH": ""}
    environment.pop("PYTHONPATH", None)
    folder = tmp_path / "my-project"
    folder.mkdir()
    for block in blocks_of(ROOT / "docs/tutorial/first-training.md"):
        if block.file is not None:
            (folder / block.file).write_text(block.text)
        for command in block.commands():
            run_command(command, folder, environment)
    found = subprocess.run(
        ["bridge", "ls", "runs", "--csv", "/dev/stdout", "--quiet"],
        cwd=folder, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "line,completed" in found.stdout
    assert (
        os.fspath(programs)
        in subprocess.run(
            ["bash", "-c", "command -v bridge"], env=environment, capture_output=True, text=True, check=True
        ).stdout
    )

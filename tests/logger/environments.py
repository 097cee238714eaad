"""Make environments to test what an installation holds."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def fresh_environment(folder: Path, *requirements: str, extra: str) -> Path:
    """Return the Python of a new environment in `folder` with this project, one extra and `requirements`.

    Versions are those of constraints.txt unless `requirements` name others. The project is installed from a copy,
    because building in place would leave files in the working tree.
    """
    source = folder / "source"
    source.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("bridge", "logger"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    named = {re.split(r"[=<>~]", requirement)[0] for requirement in requirements}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(line for line in lines if line.split("==")[0] not in named))
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv/bin/python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "-c", constraints, f"{source}[{extra}]", *requirements], check=True
    )
    return python

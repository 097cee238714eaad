"""Make environments as people have them.

`environment` holds our wheel and only the packages that it declares. It is made offline in a second, by links to the
packages of the environment that runs the tests. The others are for the tests marked `compat`, and download packages.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import distribution, distributions
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT = Path(__file__).parents[1]
BRIDGE_NEEDS = tuple(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
"""The packages that the bridge itself needs, as pip takes them."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment in `folder`."""

    folder: Path

    def run(self, *arguments: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run its Python, assert that it exits with `code`, and return its output."""
        # An empty environment: nothing of this process's paths reaches it.
        env = {"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "MLFLOW_DISABLE_TELEMETRY": "true", "LANG": "C.UTF-8"}
        command = [str(self.folder / "bin" / "python"), *arguments]
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done


def installed(name: str, requirements: Sequence[str]) -> Path:
    """Return the folder with the programs of an environment with older packages, made once and kept in `.compat`."""
    folder = ROOT / ".compat" / name
    ready = folder / ".ready"
    wanted = "\n".join(requirements)
    if not ready.exists() or ready.read_text() != wanted:
        print(f"Setting up {folder} (minutes, once)", file=sys.stderr)
        _install(folder, *requirements)
        ready.write_text(wanted)
    return folder / "bin"


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
    _install(folder / "venv", "-c", constraints, f"{source}[{extra}]", *requirements)
    return folder / "venv/bin/python"


def _install(folder: Path, *arguments: str | Path) -> None:
    """Make an environment in `folder`, and let pip install what its `arguments` name."""
    venv.EnvBuilder(with_pip=True, clear=True).create(folder)
    command = [folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *arguments], check=True)


def environment(folder: Path, wheel: Path, extras: Sequence[str] = ()) -> Environment:
    """Return a new environment in `folder` with `wheel` and what its metadata requires with these extras."""
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        asked = _declared(archive.read(metadata).decode(), extras)
    for name in _closure(asked):
        _link(name, packages)
    return Environment(folder)


def _declared(metadata: str, extras: Iterable[str]) -> list[Requirement]:
    lines = [
        line.removeprefix("Requires-Dist: ") for line in metadata.splitlines() if line.startswith("Requires-Dist: ")
    ]
    return _asked([Requirement(line) for line in lines], extras)


def _asked(requirements: Iterable[Requirement], extras: Iterable[str]) -> list[Requirement]:
    """Return those of `requirements` that apply here with any of `extras`, with our own extras expanded."""
    wanted = ["", *extras]
    requirements = list(requirements)
    asked = []
    for each in requirements:
        if each.marker is not None and not any(each.marker.evaluate({"extra": extra}) for extra in wanted):
            continue
        if canonicalize_name(each.name) == "registry-bridge":
            asked += _asked([other for other in requirements if other is not each], each.extras)
        else:
            asked.append(each)
    return asked


def _closure(asked: Sequence[Requirement]) -> list[str]:
    """Return the names of all distributions that `asked` requires, directly or not."""
    seen: dict[tuple[str, tuple[str, ...]], None] = {}
    waiting = list(asked)
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), tuple(sorted(requirement.extras)))
        if key in seen:
            continue
        seen[key] = None
        needs = [Requirement(line) for line in distribution(requirement.name).requires or ()]
        waiting += _asked(needs, requirement.extras)
    return list(dict.fromkeys(name for name, _ in seen))


@functools.cache
def _owners() -> Counter[str]:
    """Return how many distributions have files below each top-level name (`google` belongs to several)."""
    tops = ({file.parts[0] for file in each.files or ()} for each in distributions())
    return Counter(top for names in tops for top in names)


def _link(name: str, packages: Path) -> None:
    """Link a distribution's files; folders that belong to it alone are one link, which is much faster."""
    for file in distribution(name).files or ():
        if ".." in file.parts:
            continue
        own = _owners()[file.parts[0]] == 1
        target = packages / (file.parts[0] if own else file)
        if target.is_symlink():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        source = Path(str(file.locate()))
        target.symlink_to(source.parents[len(file.parts) - 2] if own and len(file.parts) > 1 else source)

"""Imports point one way, and heavy packages load where they are first needed."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

HOME = Path(__file__).resolve().parent.parent

FORMAT = {"logger.files", "logger.hparams", "logger.sidecar", "logger.values"}

WORDS = {
    "bridge.model",
    "bridge.options",
    "bridge.errors",
    "bridge.files",
    "bridge.secrets",
    "bridge.locks",
}

MAY_IMPORT: dict[str, set[str]] = {
    # the package or module on the left imports itself, and these; the longest name that fits a file counts
    "logger": set(),
    "bridge.errors": set(),
    "bridge.options": {"bridge.errors", "logger.hparams", "logger.values"},
    "bridge.model": {*WORDS, "logger.sidecar"},
    "bridge.files": {"bridge.model"},
    "bridge.secrets": {"logger.values"},
    "bridge.locks": set(),
    "bridge.sync.report": {*WORDS, "bridge.registry"},
    "bridge.interrupts": set(),
    "bridge.rundir": {*WORDS, *FORMAT},
    "bridge.registry": {*WORDS, "bridge.rundir", *FORMAT},
    "bridge.live": {*WORDS, "bridge.rundir", "bridge.registry"},
    "bridge.exporters.contract": {*WORDS, "bridge.live"},
    "bridge.exporters.mlflow": {*WORDS, "bridge.exporters.contract", "bridge.live", "bridge.view", "logger.sidecar"},
    "bridge.plugins": {"bridge.exporters.mlflow", "bridge.live", "bridge.rundir", "bridge.sync"},
    "bridge.exporters.tensorboard": {*WORDS, "bridge.exporters.contract", "bridge.live", "bridge.view", "logger.files"},
    "bridge.view": {*WORDS, "bridge.exporters.contract"},
    "bridge.demo": {*WORDS, "bridge.interrupts", "logger"},
    "bridge.sync": {
        *WORDS,
        "bridge.interrupts",
        "bridge.rundir",
        "bridge.registry",
        "bridge.exporters.contract",
        "bridge.sync.report",
        "logger.files",
    },
    "bridge.api": {*WORDS, "bridge.sync", "bridge.exporters", "bridge.rundir", "bridge.registry"},
    "bridge.cli": {"bridge"},
    "bridge.__main__": {"bridge.cli", "bridge.interrupts"},
    # the public names, loaded when they are asked for
    "bridge": {"bridge.api", "bridge.registry", "logger"},
}

ONLY_IN: dict[str, set[str]] = {
    "mlflow": {"bridge.exporters.mlflow"},
    "sqlalchemy": {"bridge.exporters.mlflow"},
    "tensorboard": {"bridge.exporters.tensorboard"},
    "lightning": {"logger", "bridge.demo.training"},
    "pytorch_lightning": {"logger"},
    "torch": {"logger", "bridge.demo.training"},
    "sklearn": {"bridge.demo.training"},
    "pyarrow": {"bridge.rundir", "bridge.registry"},
    "pandas": {"bridge.registry"},
    "click": {"bridge.cli"},
    "rich": {"bridge.cli"},
    "distributed": {"bridge.sync.parallel"},
}

HEAVY = ("mlflow", "tensorboard", "torch", "lightning", "pytorch_lightning", "pyarrow", "numpy", "sqlalchemy", "pandas")


def test_imports_point_one_way() -> None:
    """Imports go from cli over sync to rundir, registry and exporters, and from there to model.

    rundir and exporters do not import each other, nor does one exporter another.
    """
    wrong = [
        f"{module} imports {imported}"
        for module, imported in _imports()
        if imported.partition(".")[0] in ("bridge", "logger")
        and not any(_within(imported, allowed) for allowed in (_row(module), *MAY_IMPORT[_row(module)]))
    ]
    assert wrong == []


def test_every_module_has_a_place() -> None:
    """Each module of bridge has a line in the table; only `bridge` itself has the row `bridge`."""
    assert sorted({module for module, _ in _imports() if _row(module) == "bridge"} - {"bridge"}) == []


def test_vendors_stay_in_their_place() -> None:
    """Each vendor's package is imported in one place, which handles its changes and errors."""
    wrong = [
        f"{module} imports {imported}"
        for module, imported in _imports()
        if (vendor := imported.partition(".")[0]) in ONLY_IN
        and not any(_within(module, place) for place in ONLY_IN[vendor])
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "program",
    [
        "import bridge, bridge.errors, bridge.model, bridge.plugins",
        "import sys; sys.argv = ['bridge', '--help']; import bridge.__main__ as main; _run(main.main)",
        "import sys; sys.argv = ['bridge', 'export', '--help']; import bridge.__main__ as main; _run(main.main)",
        "import sys; sys.argv = ['bridge', 'scan', '.']; import bridge.__main__ as main; _run(main.main)",
        "from bridge.sync.select import Selection, select",
        "import logger, logger.sidecar, logger.values",
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(program: str, tmp_path: Path) -> None:
    """Help, listing and the public names load none of the heavy packages."""
    text = f"""
def _run(main):
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code

{program}
import sys
loaded = sorted({{name.partition('.')[0] for name in sys.modules}} & set({HEAVY!r}))
print('loaded:', loaded)
"""
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=tmp_path,
        env={"BRIDGE_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(HOME)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["loaded: []"], done.stderr


@functools.cache
def _imports() -> tuple[tuple[str, str], ...]:
    return tuple(_look_up_imports())


def _look_up_imports() -> Iterator[tuple[str, str]]:
    """Yield (module, imported module) for every import in bridge and logger, also those inside functions."""
    for path in [*HOME.glob("bridge/**/*.py"), *HOME.glob("logger/**/*.py")]:
        module = ".".join(path.relative_to(HOME).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((module, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports are absolute"
                # `from bridge import source` imports bridge.rundir, so what is taken out of a bare package counts.
                assert node.module is not None
                if node.module in ("bridge", "logger"):
                    yield from ((module, f"{node.module}.{alias.name}") for alias in node.names)
                else:
                    yield module, node.module


def _row(module: str) -> str:
    return max((name for name in MAY_IMPORT if _within(module, name)), key=len)


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_the_ways_through_the_code_name_what_exists() -> None:
    """Each file of the tables in CONTRIBUTING.md defines the functions and classes that its row names."""
    folder, wrong, count = "", [], 0
    for line in (HOME / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| where"):
            folder = "".join(re.findall("`(.+?)`", line))
        elif line.startswith("| `") and ".py` |" in line:
            where, named, _ = line.strip("| ").split(" | ")
            defined = definitions(HOME / folder / where.strip("`"))
            count += 1
            wrong += [f"{where}: {name}" for name in re.findall("`(.+?)`", named) if name not in defined]
    assert wrong == []
    assert count > 20


def definitions(path: Path) -> set[str]:
    """Return the functions and classes of a file, methods as `Class.method`."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
    return found

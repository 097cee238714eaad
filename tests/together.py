"""Group the tests that share an expensive fixture, so that xdist runs each group in one process.

Marks of `xdist_group` would do, but pytest 9.2 removed the attribute through which xdist 3.8 passes them on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import Scheduling

GROUPS = {
    "tests/browser/": "{file}",
    "tests/cli/test_demo.py": "demo",
    "tests/cli/test_view.py": "demo",
    "tests/crash/": "{file}",
    "tests/docs/": "demo",
    "tests/exporters/mlflow/test_server.py": "server",
    "tests/live/test_hostile.py": "hostile",
    "tests/live/test_versions.py": "versions",
    "tests/logger/test_ddp.py": "demo",
    "tests/property/": "property",
    "tests/test_packaging.py": "packaging",
    "tests/test_real_trainings.py": "demo",
}
"""By the beginning of a test's id: its group. All others go wherever there is room."""


def group_of(test: str) -> str:
    """Return the group of the test with this id; a test that shares nothing is a group by itself."""
    file = test.partition("::")[0]
    return next((group.format(file=file) for begin, group in GROUPS.items() if file.startswith(begin)), test)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Scheduling | None:
    """Use these groups if groups were asked for (`--dist loadgroup`)."""
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Together(config, log)

"""The reference pages describe the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

from bridge.registry.where import FIELDS, STATISTICS, parse
from tests.registry.records import record

DOCS = Path(__file__).resolve().parents[2] / "docs" / "reference"


def test_every_condition_on_the_page_can_be_read() -> None:
    """Each example condition on the page parses."""
    section = (DOCS / "selecting-runs.md").read_text().partition("## Conditions")[2]
    rows = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| `")]
    conditions = [row.removeprefix("``").removesuffix("``") if row.startswith("``") else row.strip("`") for row in rows]
    assert len(conditions) == 10
    for condition in conditions:
        parse(condition)


def test_the_page_names_every_field_and_statistic() -> None:
    """The page names every field and statistic (`identity`, `run_dir`, `last_alive`, `tag` are second names)."""
    words = set(re.findall(r"[.\w]+", (DOCS / "selecting-runs.md").read_text()))
    assert set(FIELDS) - words == {"identity", "run_dir", "last_alive"}
    assert {f".{name}" for name in STATISTICS} - words == {".last", ".max"}


def test_the_page_shows_every_key_of_a_run() -> None:
    """The JSON example has the keys that a record has, in their order."""
    example = re.findall(r"```json\n(.*?)```", (DOCS / "json-runs.md").read_text(), re.DOTALL)[0]
    assert list(json.loads(example)) == list(record().to_dict())

"""Write the pages and schemas that are made from the code: `python -m tests.docs.cli_reference`.

docs/reference/cli.md is the help of every command, the table in docs/reference/config.md lists the keys of bridge.yaml,
and bridge/bridge.schema.json is the JSON schema of that file. docs/reference/json-*.schema.json are the reports' ones.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from bridge.cli import bridge
from bridge.options import config_keys, json_schema
from bridge.sync import report

if TYPE_CHECKING:
    import click

ROOT = Path(__file__).parents[2]
CLI, CONFIG, SCHEMA = (
    ROOT / path for path in ("docs/reference/cli.md", "docs/reference/config.md", "bridge/bridge.schema.json")
)
_TABLE = re.compile(r"^\| key \|.*?\n(?=\n)", re.M | re.S)


def made() -> dict[Path, str]:
    """Return the text of each file that is made."""
    return {
        CLI: _reference(),
        CONFIG: _TABLE.sub(lambda _: _table(), CONFIG.read_text()),
        SCHEMA: _indented(json_schema()),
        ROOT / "docs/reference/json-export.schema.json": _indented(_report_schema(report.Report)),
        ROOT / "docs/reference/json-verify.schema.json": _indented(_report_schema(report.VerifyReport)),
    }


def _report_schema(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the JSON schema of a report, in which every field is present."""
    schema = msgspec.json.schema(kind)
    for part in schema["$defs"].values():
        if "properties" in part:
            part["required"] = list(part["properties"])
            for field in part["properties"].values():
                field.pop("default", None)
    return schema


def _indented(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=2) + "\n"


def _reference() -> str:
    """Return the help of every command, as it is printed 100 columns wide."""
    parts = [
        "# The command line\n",
        "Generated from the commands' own `--help`. "
        "Every option is also an environment variable: `--logdir` is `BRIDGE_LOGDIR`.\n",
    ]
    top = bridge.make_context("bridge", [], resilient_parsing=True, terminal_width=100)
    parts.append(_page("bridge", top))
    for name in bridge.list_commands(top):
        command = bridge.get_command(top, name)
        assert command is not None
        parts.append(_page(f"bridge {name}", command.make_context(name, [], parent=top, resilient_parsing=True)))
    return "\n".join(parts)


def _page(title: str, context: click.Context) -> str:
    context.terminal_width = 100
    return f"## {title}\n\n```text\n{context.get_help().rstrip()}\n```\n"


def _table() -> str:
    lines = ["| key | option | what it sets |", "| --- | --- | --- |"]
    lines.append("| `format` | | 1, the version of this format; may be left out |")
    for key, item in config_keys().items():
        flag = item.option.flag.split()[-1] if item.option.flag else f"--{item.name.replace('_', '-')}"
        written = "RUNS" if item.name == "runs" else f"`{flag}`"
        lines.append(f"| `{key}` | {written} | {item.option.help.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for path, text in made().items():
        path.write_text(text)

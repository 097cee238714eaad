"""How much of a run directory is read at most: whatever lies in it, memory and time stay bounded.

One table for the source, for verify's own readers and for the exporters. What is beyond is named, as a notice or as the error of
its run; `docs/explanation/security.md` tells people.
"""

from __future__ import annotations

import hashlib
import json

__all__ = [
    "LARGEST_JSON",
    "LARGEST_MEDIA",
    "LARGEST_YAML",
    "LONGEST_EVENT",
    "LONGEST_NAME",
    "LONGEST_NUMBER",
    "LONGEST_ROW",
    "MOST_COLUMNS",
    "MOST_DECODED_PIXELS",
    "MOST_HEADERS",
    "MOST_IN_CURSOR",
    "MOST_JSON_VALUES",
    "MOST_MEDIA",
    "MOST_MEDIA_BYTES",
    "MOST_METRICS",
    "MOST_NODES",
    "MOST_PARAMS",
    "MOST_PARAM_LETTERS",
    "MOST_SERIES",
    "MOST_SESSIONS",
    "MOST_SLURM",
    "MOST_TAGS",
    "MOST_TRIES",
    "MOST_YAML_VALUES",
    "fitting",
    "shortened",
    "too_large_json",
    "too_large_yaml",
]

LARGEST_JSON = 16 << 20
"""Bytes of sidecar.json and of summary.json."""

MOST_JSON_VALUES = 500_000
"""Values in one of them: Python needs up to 300 bytes for what takes three in the file."""

LARGEST_YAML = 1 << 20
"""Bytes of hparams.yaml; its parser takes seconds for a megabyte."""

MOST_YAML_VALUES = 50_000
"""Lines and list entries of hparams.yaml."""

MOST_NODES = 200_000
"""Values among hyperparameters, where an alias counts each time that it is used."""

MOST_PARAMS = 20_000
"""Hyperparameters of one run, by their flat names."""

MOST_PARAM_LETTERS = 16 << 20
"""Characters of hyperparameters, flat names and texts together: a nested name repeats those above it, an alias its text."""

LONGEST_NUMBER = 400
"""Digits of a number in hparams.yaml; a longer one is text."""

MOST_TAGS = 10_000
"""Tags of one run."""

MOST_SESSIONS = 10_000
"""Entries of `sessions`: the last ones count."""

MOST_METRICS = 50_000
"""Metrics in `summary` and in summary.json."""

MOST_SLURM = 50
"""Entries of `slurm` in one session."""

LONGEST_NAME = 500
"""Characters in a run's id and identity, which have to fit into a cursor, and in the name of a metric or of media, which a
target repeats at every point; what is longer is cut and ends in a digest.
"""

MOST_IN_CURSOR = 1000
"""Characters of JSON that an identity, or the path of a run directory, may take in a cursor; an emoji takes twelve."""

LONGEST_ROW = 8 << 20
"""Bytes of one row or header line of metrics.csv."""

MOST_COLUMNS = 50_000
"""Columns of metrics.csv."""

MOST_SERIES = 100_000
"""Series of one run, where header lines in the middle of metrics.csv bring more columns."""

MOST_HEADERS = 10_000
"""Header lines in one metrics.csv."""

LONGEST_EVENT = 1 << 20
"""Bytes of one line of media.jsonl."""

MOST_MEDIA = 100_000
"""Events of media.jsonl: the first ones count."""

MOST_MEDIA_BYTES = 64 << 20
"""Bytes of the lines that hold them."""

LARGEST_MEDIA = 1 << 30
"""Bytes of one picture or video; a file with holes costs nothing to make larger, and days to copy."""

MOST_DECODED_PIXELS = 25_000_000
"""Pixels of a picture that is decoded, all frames together: up to three times four bytes are needed for each."""

MOST_TRIES = 64
"""Places in one line of media.jsonl at which a whole event is looked for behind a torn one."""


def shortened(name: str) -> str:
    """`name`, a longer one than LONGEST_NAME with a digest as its end."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 33]}-{_digest(name)}"


def fitting(text: str) -> str:
    """`text` as it stands in a cursor: cut, with a digest as its end, where it takes more than MOST_IN_CURSOR."""
    if 12 * len(text) <= MOST_IN_CURSOR or len(json.dumps(text)) <= MOST_IN_CURSOR:
        return text
    return f"{text[: MOST_IN_CURSOR // 20]}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def too_large_json(data: bytes) -> str:
    """Why `data` is not to be parsed as JSON, "" where it may be. Counts commas and brackets: an upper bound."""
    if len(data) > LARGEST_JSON:
        return f"is larger than {LARGEST_JSON >> 20} MiB"
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MOST_JSON_VALUES:
        return f"holds more than {MOST_JSON_VALUES:,} values"
    return ""


def too_large_yaml(data: bytes) -> str:
    """Why `data` is not to be parsed as YAML, "" where it may be."""
    if len(data) > LARGEST_YAML:
        return f"larger than {LARGEST_YAML >> 20} MiB, not read"
    if data.count(b",") + data.count(b"\n") + data.count(b"\r") > MOST_YAML_VALUES:
        return f"more than {MOST_YAML_VALUES:,} lines and entries, not read"
    return ""

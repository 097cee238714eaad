"""docs/explanation/security.md states every bound, with the figure that the code has."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge import files as bounds
from bridge.exporters.tensorboard import media

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "explanation" / "security.md").read_text(encoding="utf-8")
STATED = {
    "LARGEST_JSON": "16 MiB and 500,000 values in `sidecar.json`",
    "MOST_JSON_VALUES": "16 MiB and 500,000 values in `summary.json`",
    "LARGEST_YAML": "1 MiB and 50,000 lines and list entries in `hparams.yaml`",
    "MOST_YAML_VALUES": "1 MiB and 50,000 lines and list entries in `hparams.yaml`",
    "MOST_NODES": "200,000 values in them, an alias each time",
    "MOST_PARAMS": "20,000 hyperparameters",
    "MOST_PARAM_LETTERS": "names and texts of 16 million characters together",
    "LONGEST_NUMBER": "400 digits of a number",
    "MOST_TAGS": "10,000 tags of a run",
    "MOST_SESSIONS": "10,000 sessions",
    "MOST_METRICS": "50,000 metrics in a summary",
    "MOST_SLURM": "50 SLURM entries",
    "LONGEST_NAME": "500 characters of a run's id",
    "MOST_IN_CURSOR": "1,000 characters of JSON",
    "LONGEST_ROW": "8 MiB in one line of `metrics.csv`",
    "MOST_COLUMNS": "50,000 columns",
    "MOST_SERIES": "100,000 series",
    "MOST_HEADERS": "10,000 header lines",
    "LONGEST_EVENT": "1 MiB in one line of `media.jsonl`",
    "MOST_MEDIA": "100,000 events of media",
    "MOST_MEDIA_BYTES": "64 MiB of such lines",
    "LARGEST_MEDIA": "1 GiB of one picture or video",
    "MOST_DECODED_PIXELS": "25 million pixels of a picture",
    "MOST_TRIES": "64 places",
}


def figure(value: int) -> set[str]:
    """How a page may write a number: with commas, in binary units, in millions."""
    shown = {f"{value:,}"}
    shown |= {f"{value >> bits} {unit}" for bits, unit in ((20, "MiB"), (30, "GiB")) if value % (1 << bits) == 0}
    return shown | {f"{value // unit} million" for unit in (10**6, 1 << 20) if value % unit == 0}


@pytest.mark.parametrize("name", STATED)
def test_the_page_states_every_bound(name: str) -> None:
    """Its words stand on the page, and the figure in them is the constant's."""
    assert STATED[name] in PAGE
    assert any(text in STATED[name] for text in figure(getattr(bounds, name)))


def test_the_page_states_what_tensorboard_gets() -> None:
    """The figures for pictures and videos that are shown as they are."""
    largest = f"up to {media.MAX_FILE_BYTES >> 20} MiB and {media.MAX_PICTURE_PIXELS // 10**6} million"
    assert largest in PAGE
    assert f"frames of up to {media.MAX_FRAME_PIXELS // 10**6} million pixels" in PAGE

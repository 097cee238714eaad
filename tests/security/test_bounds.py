"""docs/explanation/security.md states every limit, with the figure that the code has."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge import files
from bridge.exporters.tensorboard import media

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "explanation" / "security.md").read_text(encoding="utf-8")
STATED = {
    "LARGEST_JSON": "8 MiB in `sidecar.json`",
    "LARGEST_YAML": "1 MiB of YAML in `hparams.yaml`",
    "LARGEST_HPARAMS_FILE": "64 MiB in `hparams.yaml`",
    "LARGEST_PARAMS": "16 MiB of hyperparameters",
    "LONGEST_NAME": "500 characters of a run's id",
    "LONGEST_ROW": "8 MiB in one line of `metrics.csv`",
    "MOST_COLUMNS": "50,000 columns",
    "LARGEST_MEDIA_LIST": "16 MiB in `media.jsonl`",
    "LONGEST_EVENT": "1 MiB in one line of `media.jsonl`",
    "LARGEST_MEDIA": "1 GiB of one picture or video",
    "MOST_DECODED_PIXELS": "25 million pixels of a picture",
}


def figure(value: int) -> set[str]:
    """Return the ways in which a page may write a number: with commas, in binary units, in millions."""
    shown = {f"{value:,}"}
    shown |= {f"{value >> bits} {unit}" for bits, unit in ((20, "MiB"), (30, "GiB")) if value % (1 << bits) == 0}
    return shown | {f"{value // unit} million" for unit in (10**6, 1 << 20) if value % unit == 0}


@pytest.mark.parametrize("name", [name for name in vars(files) if name.startswith(("LARGEST", "LONGEST", "MOST"))])
def test_the_page_states_every_limit(name: str) -> None:
    """The page states each constant's figure in the expected words."""
    assert STATED[name] in PAGE
    assert any(text in STATED[name] for text in figure(getattr(files, name)))


def test_the_page_states_what_tensorboard_gets() -> None:
    """The page states the limits of images and videos shown as they are."""
    largest = f"up to {media.MAX_FILE_BYTES >> 20} MiB and {media.MAX_PICTURE_PIXELS // 10**6} million"
    assert largest in PAGE
    assert f"frames of up to {media.MAX_FRAME_PIXELS // 10**6} million pixels" in PAGE

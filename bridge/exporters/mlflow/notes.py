"""A run's notes as the description that MLflow shows above it."""

from __future__ import annotations

from bridge.model import Notice, NoticeKind

__all__ = ["NOTES_FILE", "NOTES_LIMIT", "description"]

NOTES_LIMIT = 8000
"""Characters of a description; MLflow cuts what is longer without a word."""

NOTES_FILE = "bridge/notes.md"
"""The artifact that holds notes in full that are too long for a description."""

_ENDING = f"\n\n*The notes go on in the artifact {NOTES_FILE}.*"


def description(notes: str) -> tuple[str, Notice | None]:
    """The description of a run, and the notice where the notes are longer than it can be."""
    if len(notes) <= NOTES_LIMIT:
        return notes, None
    detail = f"{len(notes)} characters; in full in {NOTES_FILE}"
    return notes[: NOTES_LIMIT - len(_ENDING)] + _ENDING, Notice(NoticeKind.CUT, "notes", detail)

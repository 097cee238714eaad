"""Edit what people may change of a run: its name, notes, tags and whether it is archived, all kept in the sidecar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.errors import BridgeError, RunDirectoryError
from bridge.rundir.discover import file_mark
from logger.files import replace_file
from logger.sidecar import SIDECAR_NAME, SidecarError, json_text, parse_json

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_TRIES = 20
"""Attempts at an edit, each of which fails if the running training writes its sidecar in between."""


def edit_run(
    run_dir: Path,
    *,
    name: str | None = None,
    notes: str | None = None,
    add_tags: Iterable[str] = (),
    remove_tags: Iterable[str] = (),
    archived: bool | None = None,
) -> None:
    """Change the sidecar of the run in `run_dir`; None leaves a field as it is, an empty name removes it.

    The file is replaced whole, and only if nobody changed it meanwhile. A training that is running takes the edit over.
    Raises RunDirectoryError for a directory without a readable sidecar and BridgeError where it cannot be written.
    """
    path = run_dir / SIDECAR_NAME
    changes: dict[str, Any] = {"display_name": name, "notes": notes, "archived": archived}
    removed = set(remove_tags)
    try:
        for _ in range(_TRIES):
            before = file_mark(path)
            data = parse_json(path.read_bytes(), path)
            data |= {key: value for key, value in changes.items() if value is not None}
            if name == "":
                del data["display_name"]
            held = data.get("tags") if isinstance(data.get("tags"), list) else []
            tags = [tag for tag in [*(held or ()), *add_tags] if tag not in removed]
            if tags or held:
                data["tags"] = list(dict.fromkeys(tags))
            if replace_file(path, json_text(data), confirm=lambda _, seen=before: file_mark(path) == seen):  # type: ignore[misc]
                return
    except FileNotFoundError:
        raise RunDirectoryError(
            f"{run_dir} has no sidecar.json, so its name, notes and tags cannot be changed: its logger keeps none."
        ) from None
    except SidecarError as error:
        raise RunDirectoryError(str(error)) from error
    except OSError as error:
        raise BridgeError(f"{path} cannot be changed: {error.strerror}.") from error
    raise BridgeError(f"{path} is being changed by another program.", hint="Try again.")

"""Read the facts of a run directory: identity, name, hyperparameters, notes; `times` adds status and times.

There are three kinds of run directory. RegistryLogger's has a sidecar.json that states these facts. CSVLogger's has
none, so its facts come from hparams.yaml, from names, and from the times of its files. TensorBoardLogger's has event
files, which `event_runs` reads.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict

from bridge.errors import RunDirectoryError
from bridge.files import (
    LARGEST_HPARAMS_FILE,
    LARGEST_JSON,
    LARGEST_PARAMS,
    LARGEST_YAML,
    LONGEST_NAME,
    Refused,
    clean,
    own_file,
    read_head,
    shortened,
)
from bridge.model import Notice, NoticeKind, Run, RunFile, fitting
from bridge.rundir.discover import LFS_POINTER, why_no_run
from bridge.rundir.event_runs import read_event_facts
from bridge.rundir.times import read_times, time_column_of
from logger.sidecar import Sidecar, SidecarError, Summary, decode_document
from logger.values import ClassName, flatten, param_scalar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bridge.model import Scalar
    from logger.sidecar import Document

RUN_FILES = ("sidecar.json", "summary.json", "hparams.yaml", "metrics.csv", "media.jsonl")
"""The files of a run directory that are read."""

_MOST_CONFIGS = 10
"""Files of Hydra's that are named among a run's own files; it writes three."""

_POINTER_BYTES = range(120, 200)
"""The sizes of Git LFS's pointers lie in this range: three short lines, the second of which has 76 bytes."""

MOST_NAMED = 20
"""Rows, lines and fields that are named one by one in notices of one kind; more are counted."""

EVENT_TIME = "wall_time"
"""The name of the column of times that event files stand for."""

_TOP_LEVEL_KEY = re.compile(rb"^(?=[^\s#-])", re.MULTILINE)
_SAYS_LITTLE = re.compile(r"0*\d{1,4}|(version|seed|fold|run|trial)[-_=0-9]*")
_NAMELESS = frozenset({"lightning_logs", "logs", "log", "csv_logs", "runs"})


def read_run(path: Path, *, heartbeat_timeout: float = 180.0, is_real: bool = False) -> Run:
    """Return what the run directory `path` says, checked and typed.

    `is_real` states that `path` is a real path, as `discover` finds them. A run that calls itself running, but gave no
    sign of life for `heartbeat_timeout` seconds, is killed. Fields of a wrong type are left out, and named in
    `notices`. Raises RunDirectoryError if `path` is no run directory, or if its sidecar cannot be read.
    """
    real = path if is_real else Path(os.path.realpath(path))
    notices: list[Notice] = []
    files = _own_files(real, notices)
    sidecar = _read_sidecar(real, files, notices)
    stats, summary_rows = _read_statistics(files, notices)
    is_other = bool({"sidecar.json", "metrics.csv"} & files.keys())
    events, first, last, event_params = ((), None, None, {}) if is_other else read_event_facts(real, notices)
    time_column = EVENT_TIME if events else time_column_of(sidecar, files)
    times = read_times(
        real,
        sidecar,
        files,
        time_column,
        heartbeat_timeout=heartbeat_timeout,
        events=events,
        first=first,
        last=last,
    )
    run_id = _bounded("run_id", (sidecar.run_id or real.name).replace("\0", "\ufffd"), notices)
    identity = (sidecar.uid or sidecar.run_id or str(real)).replace("\0", "\ufffd")
    name = sidecar.display_name or run_name(run_id if sidecar.run_id else "", str(real))
    summary = sidecar.summary or {metric: of["last"] for metric, of in stats.items() if of["last"] is not None}
    return Run(
        path=real,
        identity=fitting(shortened(clean(identity))),
        run_id=clean(run_id),
        status=times.status,
        status_word=sidecar.status,
        start=times.start,
        start_estimated=times.start_estimated,
        end=times.end,
        end_estimated=times.end_estimated,
        run_dir=sidecar.run_dir,
        last_alive=times.last_alive,
        name=_bounded("display_name", clean(name), notices),
        parent=clean(real.parent.name),
        params=_params(sidecar, files, notices) or event_params,
        tags=tuple(dict.fromkeys(sidecar.tags)),
        notes=sidecar.notes,
        archived=sidecar.archived,
        sessions=tuple(sidecar.sessions),
        checkpoint=sidecar.checkpoint_path,
        summary=summary,
        summary_stats=stats,
        summary_rows=summary_rows,
        time_column=time_column,
        files=files,
        kind="TensorBoardLogger" if events else "RegistryLogger" if "sidecar.json" in files else "CSVLogger",
        event_files=events,
        notices=tuple(notices),
    )


def run_name(run_id: str, path: str) -> str:
    """Return the name of a run without a display name, from its id ("" if it has none) and its real path.

    It is the last part of the id, or the folder's name. While the first part of a name says little (`0`, `version_0`),
    the part above it is put in front: first the other parts of the id, then the folders above the run directory.
    """
    folders = path.split("/")[1:]
    parts = [part for part in run_id.split("/") if part] or folders[-1:]
    above = folders[: -len(parts)] if folders[-len(parts) :] == parts else folders[:-1]
    above = [part for part in above if part not in _NAMELESS] + parts[:-1]
    name = [parts[-1]]
    while above and _SAYS_LITTLE.fullmatch(name[0]):
        name.insert(0, above.pop())
    return "/".join(name)


def first_named(notices: list[Notice], what: str, detail: str) -> list[Notice]:
    """Return the first of `notices`, and one notice with `what` and `detail` that stands for the others."""
    first, rest = notices[:MOST_NAMED], notices[MOST_NAMED:]
    if rest:
        first.append(Notice(rest[0].kind, what, detail, sum(notice.count for notice in rest)))
    return first


def _bounded(field: str, text: str, notices: list[Notice]) -> str:
    """Return `text` as `shortened` does, with a notice if it was too long."""
    short = shortened(text)
    if short != text:
        detail = f"of {len(text)} characters the first {LONGEST_NAME} are kept, with a digest as their end"
        notices.append(Notice(NoticeKind.CUT, f"sidecar.json: {field}", detail))
    return short


def _own_files(real: Path, notices: list[Notice]) -> dict[str, RunFile]:
    """Return the run's own files by name: those that are read, and the configurations of LightningCLI and Hydra."""
    files = {}
    for name in (*RUN_FILES, *_config_files(real)):
        try:
            found = own_file(real, name)
        except Refused as error:
            kind = NoticeKind.MISSING_FILE if error.missing else NoticeKind.REFUSED_PATH
            notices.append(Notice(kind, name, str(error)))
            continue
        if found is None:
            continue
        if _is_lfs_pointer(found):
            detail = "is a Git LFS pointer; `git lfs pull` fetches the file"
            notices.append(Notice(NoticeKind.MISSING_FILE, name, detail))
            continue
        if name not in RUN_FILES and found.size > LARGEST_YAML:
            detail = f"larger than {LARGEST_YAML >> 20} MiB, left out"
            notices.append(Notice(NoticeKind.TOO_LARGE, name, detail))
            continue
        files[name] = found
    return files


def _is_lfs_pointer(file: RunFile) -> bool:
    if file.size not in _POINTER_BYTES:
        return False
    try:
        return read_head(file.path, len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False


def _config_files(real: Path) -> list[str]:
    try:
        # A link may lead to a folder outside, of which not even the names may be read.
        with_hydra = stat.S_ISDIR(os.lstat(f"{real}/.hydra").st_mode)
        names = [entry.name for entry in os.scandir(real / ".hydra")] if with_hydra else []
    except OSError:
        names = []
    return ["config.yaml", *sorted(f".hydra/{name}" for name in names if name.endswith(".yaml"))[:_MOST_CONFIGS]]


def _read_sidecar(real: Path, files: Mapping[str, RunFile], notices: list[Notice]) -> Sidecar:
    """Return the sidecar; an empty one for a CSVLogger's directory. Raises RunDirectoryError."""
    if "sidecar.json" not in files:
        refused = next((notice.detail for notice in notices if notice.what == "sidecar.json"), None)
        if refused is not None:
            raise RunDirectoryError(
                f"{real}/sidecar.json {refused}.", hint="Put a plain file in its place, or move the run directory away."
            )
        reason = why_no_run(str(real))
        if reason:
            raise RunDirectoryError(
                f"{real} is not a run directory: {reason}.",
                hint="Give the folder that a RegistryLogger or a CSVLogger wrote, or one above it.",
            )
        return Sidecar()
    try:
        sidecar, problems = _decode(files["sidecar.json"], Sidecar)
    except SidecarError as error:
        raise RunDirectoryError(str(error), hint="Repair the file, or move the run directory away.") from error
    notices += _left_out("sidecar.json", problems)
    return sidecar


def _read_statistics(
    files: Mapping[str, RunFile], notices: list[Notice]
) -> tuple[dict[str, Mapping[str, float | int | None]], int | None]:
    """Return the statistics in summary.json by metric, and the number of rows that they cover.

    None if it cannot be read.
    """
    if "summary.json" not in files:
        return {}, None
    try:
        summary, problems = _decode(files["summary.json"], Summary)
    except SidecarError as error:
        is_large = files["summary.json"].size > LARGEST_JSON
        notices.append(Notice(NoticeKind.TOO_LARGE if is_large else NoticeKind.BAD_LINE, "summary.json", str(error)))
        return {}, None
    notices += _left_out("summary.json", problems)
    return {name: asdict(of) for name, of in summary.metrics.items()}, summary.rows


def _decode(file: RunFile, kind: type[Document]) -> tuple[Document, list[tuple[str, str]]]:
    """Return what a JSON file holds. Raises SidecarError if it cannot be read or is too large."""
    try:
        data = read_head(file.path, LARGEST_JSON + 1)
    except OSError as error:
        raise SidecarError(f"{file.path} cannot be read: {error.strerror}.") from error
    if len(data) > LARGEST_JSON:
        raise SidecarError(f"{file.path} is larger than {LARGEST_JSON >> 20} MiB; such a file has some kilobytes.")
    return decode_document(_encodable(data), file.path, kind)


def _left_out(file: str, problems: Sequence[tuple[str, str]]) -> list[Notice]:
    notices = [Notice(NoticeKind.LEFT_OUT, f"{file}: {field}", problem) for field, problem in problems]
    return first_named(notices, file, "further values of a wrong type")


def _encodable(data: bytes) -> bytes:
    r"""Return JSON text without lone surrogates (`"\ud800"`), which no target can encode."""
    if rb"\ud" not in data and rb"\uD" not in data:
        return data
    try:
        return clean(json.dumps(json.loads(data), ensure_ascii=False)).encode()
    except (ValueError, RecursionError):
        return data  # whoever parses it next says what is wrong


def _params(sidecar: Sidecar, files: Mapping[str, RunFile], notices: list[Notice]) -> dict[str, Scalar]:
    """Return the hyperparameters with flat, dotted keys, from the sidecar or else from hparams.yaml."""
    if sidecar.hparams:
        return _flat_params(sidecar.hparams, "sidecar.json: hparams", notices)
    if "hparams.yaml" not in files:
        return {}
    from logger.hparams import load_yaml

    try:
        text = read_head(files["hparams.yaml"].path, LARGEST_HPARAMS_FILE + 1)
        if len(text) > LARGEST_HPARAMS_FILE:
            detail = f"larger than {LARGEST_HPARAMS_FILE >> 20} MiB, not read"
            notices.append(Notice(NoticeKind.TOO_LARGE, "hparams.yaml", detail))
            return {}
        tree = load_yaml(text) if len(text) <= LARGEST_YAML else _small_keys(text, notices)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        notices.append(Notice(NoticeKind.BAD_LINE, "hparams.yaml", f"cannot be read: {reason}"))
        return {}
    if isinstance(tree, dict):
        return _flat_params(tree, "hparams.yaml", notices)
    if tree is not None:
        detail = f"holds a {type(tree).__name__}, not keys with values"
        notices.append(Notice(NoticeKind.BAD_LINE, "hparams.yaml", detail))
    return {}


def _small_keys(text: bytes, notices: list[Notice]) -> dict[str, Any]:
    """Return what a YAML file of more than LARGEST_YAML holds under its top-level keys, without the largest ones.

    A network that was saved as a hyperparameter takes megabytes, and must not cost the others.
    """
    from logger.hparams import load_yaml

    # A key begins at the start of a line; its value is indented, or a list whose items begin with a dash.
    blocks = [block for block in _TOP_LEVEL_KEY.split(text) if block.strip()]
    left = len(text)
    found: dict[str, Any] = {}
    for block in sorted(blocks, key=len, reverse=True):
        name = clean(block.partition(b":")[0].decode("utf-8", errors="replace"))
        if left > LARGEST_YAML:
            left -= len(block)
            detail = f"takes {len(block) >> 10:,} KiB of a file of more than {LARGEST_YAML >> 20} MiB, not read"
            notices.append(Notice(NoticeKind.TOO_LARGE, f"hparams.yaml: {shortened(name)}", detail))
            continue
        try:
            tree = load_yaml(block)
        except ValueError as error:
            notices.append(Notice(NoticeKind.BAD_LINE, f"hparams.yaml: {shortened(name)}", f"cannot be read: {error}"))
        else:
            found |= tree if isinstance(tree, dict) else {}
    return found


def _flat_params(tree: Mapping[str, Any], where: str, notices: list[Notice]) -> dict[str, Scalar]:
    """Return `tree` with dotted keys; lists become JSON text.

    Two keys that become one are both kept, the later with a number, as the logger does.
    """
    if not _fits(tree):
        detail = f"names and values of more than {LARGEST_PARAMS >> 20} million characters"
        notices.append(Notice(NoticeKind.TOO_LARGE, where, detail))
        return {}
    flat = flatten(tree)
    renamed = [
        Notice(NoticeKind.RENAMED, f"{where}: {key}", f"the name is taken; now {new}") for key, new in flat.renamed
    ]
    notices += first_named(renamed, where, "further params that share a name")
    classes = [
        Notice(NoticeKind.LEFT_OUT, f"{where}: {key}", f"an object that cannot be read; its class is {value}")
        for key, value in flat.values.items()
        if isinstance(value, ClassName)
    ]
    notices += first_named(classes, where, "further objects that cannot be read")
    params = {clean(key): param_scalar(value) for key, value in flat.values.items()}
    return {key: clean(str(value)) if isinstance(value, str) else value for key, value in params.items()}


def _fits(tree: Mapping[str, Any]) -> bool:
    """Return whether the flat form of `tree` stays within LARGEST_PARAMS.

    A nested name repeats the names above it, and an alias of YAML repeats what it stands for: both multiply.
    """
    left = LARGEST_PARAMS
    waiting: list[tuple[int, Any]] = [(0, tree)]
    while waiting and left >= 0:
        length, value = waiting.pop()
        left -= length + (len(value) if isinstance(value, str) else 16)
        if isinstance(value, dict):
            waiting += [(length + len(str(key)) + 1, item) for key, item in value.items()]
        elif isinstance(value, list):
            waiting += [(0, item) for item in value]
    return left >= 0

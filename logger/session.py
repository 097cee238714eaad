"""One entry of the sidecar's `sessions`: which process on which machine started the run this time, from which code."""

from __future__ import annotations

import getpass
import os
import re
import shlex
import socket
import sys
from pathlib import Path
from typing import Any

from logger.sidecar import now_iso

__all__ = ["git_commit", "host_name", "process_lives", "session_entry"]

_LONGEST_COMMAND = 4000
_SECRET = re.compile(r"passw(or)?d|secret|api_?key|access_?token|auth_?token|private_?key|credential", re.IGNORECASE)
_SLURM = {
    "SLURM_JOB_ID": "job_id",
    "SLURM_JOB_NAME": "job_name",
    "SLURM_ARRAY_JOB_ID": "array_job_id",
    "SLURM_ARRAY_TASK_ID": "array_task_id",
    "SLURM_STEP_ID": "step_id",
    "SLURM_CLUSTER_NAME": "cluster_name",
    "SLURM_JOB_PARTITION": "partition",
}


def session_entry(token: str, *, rows: int) -> dict[str, Any]:
    """What is known of this start. `token` tells it from other starts; `rows` is how many rows were there before it.

    What cannot be found out is left out.
    """
    entry: dict[str, Any] = {
        "id": token,
        "started_at": now_iso(),
        "host": host_name(),
        "user": _user(),
        "pid": os.getpid(),
        "command": _command(),
        "git_commit": git_commit(_script_folder()),
        "slurm": {name: os.environ[key] for key, name in _SLURM.items() if os.environ.get(key)},
        "restart_count": _restart_count(),
        "rows": rows,
    }
    return {key: value for key, value in entry.items() if value not in (None, "", {})}


def host_name() -> str:
    """The name of the machine."""
    return socket.gethostname()


def process_lives(pid: int) -> bool:
    """Whether a process `pid` other than this one runs on this machine."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # it is another user's
    return True


def git_commit(folder: Path) -> str | None:
    """The commit that is checked out in the repository around `folder`, read from its files; None outside of one."""
    try:
        folder = folder.resolve()
        for place in (folder, *folder.parents):
            if (place / ".git").exists():
                return _head(_git_folder(place / ".git"))
    except (OSError, ValueError, RuntimeError):
        pass
    return None


def _git_folder(place: Path) -> Path:
    """The folder with HEAD: `.git` itself or, in a work tree or submodule, where the file `.git` points."""
    if place.is_file():
        return (place.parent / place.read_text().removeprefix("gitdir:").strip()).resolve()
    return place


def _head(git: Path) -> str | None:
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref:"):
        return head or None
    name = head.removeprefix("ref:").strip()
    common = git / "commondir"
    shared = (git / common.read_text().strip()).resolve() if common.is_file() else git
    for place in (git, shared):
        if (place / name).is_file():
            return (place / name).read_text().strip() or None
    packed = shared / "packed-refs"
    if packed.is_file():
        for line in packed.read_text().splitlines():
            commit, _, ref = line.partition(" ")
            if ref == name:
                return commit
    return None


def _script_folder() -> Path:
    """Where the program's code lies: beside the main script, else the working directory."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return Path(script).resolve().parent if script else Path.cwd()


def _command() -> str:
    """The command line, without what follows options that name a secret: sidecars are read by others."""
    words: list[str] = []
    for word in sys.orig_argv:
        option, equals, _ = word.partition("=")
        if words and _names_secret(words[-1]) and "=" not in words[-1]:
            words.append("...")
        else:
            words.append(f"{option}=..." if equals and _names_secret(option) else word[:_LONGEST_COMMAND])
    command = shlex.join(words)
    return command if len(command) <= _LONGEST_COMMAND else command[:_LONGEST_COMMAND] + "..."


def _names_secret(word: str) -> bool:
    return len(word) < 100 and _SECRET.search(word.replace("-", "_")) is not None and " " not in word


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container without an entry for this user id
        return str(os.getuid())


def _restart_count() -> int | None:
    text = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(text) if text.isdigit() else None

"""Describe one start of a run: its process, machine, job and code, the Trainer in charge, and how it ended."""

from __future__ import annotations

import getpass
import os
import shlex
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logger.heartbeat import read_beat
from logger.sidecar import HEARTBEAT_TIMEOUT, TERMINAL_STATUSES, SessionEntry
from logger.values import names_secret

if TYPE_CHECKING:
    from logger.sidecar import Sidecar

_MAX_COMMAND = 4000
_GIT_TIMEOUT = 5.0
"""Seconds that a start waits for git."""

_SLURM = {
    "SLURM_JOB_ID": "job_id",
    "SLURM_JOB_NAME": "job_name",
    "SLURM_ARRAY_JOB_ID": "array_job_id",
    "SLURM_ARRAY_TASK_ID": "array_task_id",
    "SLURM_STEP_ID": "step_id",
    "SLURM_CLUSTER_NAME": "cluster_name",
    "SLURM_JOB_PARTITION": "partition",
}
_WORDS = {
    "success": "completed",
    "completed": "completed",
    "finished": "completed",
    "interrupted": "interrupted",
    "preempted": "interrupted",
    "killed": "interrupted",
}
_REQUEUE_HANDLER = "_slurm_sigusr_handler_fn"
"""Lightning's handler of SLURM's requeue signal, which finalizes loggers with "finished" in mid-training."""

_TRAINER_MODULES = frozenset({"lightning.pytorch.trainer.trainer", "pytorch_lightning.trainer.trainer"})


def session_entry(token: str, *, rows: int) -> SessionEntry:
    """Return the entry of this start in the sidecar; what cannot be found out is left out.

    `token` distinguishes this start from others, `rows` is the number of rows that were there before.
    """
    return SessionEntry(
        id=token,
        started_at=round(time.time(), 6),
        host=host_name(),
        user=_user(),
        pid=os.getpid(),
        command=_command() or None,
        git_commit=git_commit(_script_folder()),
        slurm={name: os.environ[key] for key, name in _SLURM.items() if os.environ.get(key)},
        restart_count=_restart_count(),
        rows=rows,
    )


def host_name() -> str:
    """Return the name of the machine."""
    return socket.gethostname()


def other_process(run_dir: Path, sidecar: Sidecar) -> str | None:
    """Return a sentence about another process that seems to be writing `run_dir` now, or None."""
    beat = read_beat(run_dir)
    age = HEARTBEAT_TIMEOUT if beat is None else max(0.0, time.time() - beat.mtime_ns / 1e9)
    if age >= HEARTBEAT_TIMEOUT or sidecar.status in TERMINAL_STATUSES:
        return None
    last = sidecar.sessions[-1] if sidecar.sessions else SessionEntry()
    if last.host == host_name() and last.pid is not None and not _process_lives(last.pid):
        return None
    who = f"process {last.pid} on {last.host}" if last.host else "another process"
    return (
        f"The last heartbeat in {run_dir} is {age:.0f} s old: {who} may still be writing there. "
        "Two processes in one run directory mix their rows; stop one of them, or give each its own directory."
    )


def running_trainer() -> Any | None:
    """Return the Lightning Trainer that is running this call, found on the call stack; None without one."""
    for frame, _ in traceback.walk_stack(sys._getframe()):
        if frame.f_globals.get("__name__") in _TRAINER_MODULES and "self" in frame.f_locals:
            trainer = frame.f_locals["self"]
            if hasattr(trainer, "state"):
                return trainer
    return None


def first_step(trainer: Any) -> int:
    """Return the `global_step` with which a fit begins, that of a checkpoint if one is about to be restored."""
    connector = getattr(trainer, "_checkpoint_connector", None)
    checkpoint = getattr(connector, "_loaded_checkpoint", None)
    step = checkpoint.get("global_step") if isinstance(checkpoint, dict) else None
    return trainer.global_step if step is None else step  # type: ignore[no-any-return]


def stage_of(trainer: Any | None) -> str | None:
    """Return the function of the Trainer that is running: fit, validate, test or predict; None without a Trainer."""
    name = getattr(getattr(trainer, "state", None), "fn", None)
    return None if name is None else str(getattr(name, "value", name))


def status_of(word: str) -> str:
    """Return the sidecar's status (completed, failed, interrupted) for the word that Lightning finalizes a logger with.

    Lightning says "failed" for a preemption and for Ctrl-C too; the exception in flight tells them apart. An unknown
    word is a failure if there is an exception in flight, and a completion otherwise.
    """
    if word in ("finished", "success") and any(
        frame.f_code.co_name == _REQUEUE_HANDLER for frame, _ in traceback.walk_stack(sys._getframe())
    ):
        return "interrupted"
    if word in _WORDS:
        return _WORDS[word]
    error = sys.exc_info()[1]
    if error is not None and (_interrupts(error) or was_pruned(error)):
        return "interrupted"
    return "failed" if word in ("failed", "aborted") or error is not None else "completed"


def was_pruned(error: BaseException | None) -> bool:
    """Return whether `error` ends a trial of a hyperparameter search early, as Optuna's TrialPruned does."""
    return any("Pruned" in kind.__name__ for kind in type(error).__mro__)


def _interrupts(error: BaseException) -> bool:
    # Each of Lightning's two packages has a SIGTERMException.
    if isinstance(error, KeyboardInterrupt) or any(kind.__name__ == "SIGTERMException" for kind in type(error).__mro__):
        return True
    return isinstance(error, SystemExit) and error.code in (None, 0)


def _process_lives(pid: int) -> bool:
    """Return whether a process `pid` other than this one runs on this machine."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # it is another user's
    return True


def git_commit(folder: Path | None) -> str | None:
    """Return the commit that is checked out in the repository around `folder`, None outside of one or without git."""
    if folder is None:
        return None
    try:
        place = next((place for place in (folder, *folder.parents) if (place / ".git").exists()), None)
        if place is None:
            return None
        # Where git is told of the repository it takes neither another one, which GIT_DIR names while a hook runs, nor
        # offence at one that belongs to another user, as in a container.
        command = ["git", "-C", str(place), "--git-dir=.git", "rev-parse", "--verify", "--quiet", "HEAD"]
        done = subprocess.run(  # noqa: S603
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False, timeout=_GIT_TIMEOUT
        )
    except (OSError, subprocess.TimeoutExpired):
        return None  # there is no git, or the file system does not answer
    return done.stdout.decode("ascii", errors="replace").strip() or None


def _script_folder() -> Path | None:
    """Return the folder of the main script, else the working directory; None if that was deleted."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    try:
        return Path(script).resolve().parent if script else Path.cwd()
    except OSError:
        return None


def _command() -> str:
    """Return the command line with the values of options that name a secret masked: others can read sidecars."""
    words: list[str] = []
    follows_secret = False
    for word in sys.orig_argv:
        option, equals, _ = word[:_MAX_COMMAND].partition("=")
        is_secret = names_secret(option.lstrip("-+"))
        words.append("..." if follows_secret else f"{option}=..." if equals and is_secret else word[:_MAX_COMMAND])
        follows_secret = is_secret and not equals and option.startswith("-")
    command = shlex.join(words)
    return command if len(command) <= _MAX_COMMAND else command[:_MAX_COMMAND] + "..."


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container without an entry for this user id
        return str(os.getuid())


def _restart_count() -> int | None:
    text = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(text) if text.isdigit() else None

"""Fork a child for each task from a process that has imported its packages: real processes at the price of a fork.

A child can SIGKILL itself at its n-th change of the file system, at its n-th use of it or after some time, whatever it
does then. The zygote never starts a thread, so that its children are complete.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CHANGES = frozenset({"os.rename", "os.remove", "os.truncate", "os.mkdir", "shutil.rmtree"})
USES = CHANGES | {"open", "os.utime", "os.scandir", "fcntl.flock"}


@dataclass(frozen=True)
class Kill:
    """The moment when a child kills itself: at its `change`-th change or `use`-th use of the file system, or by time.

    `seconds` count from the moment when the child is about to call its function.
    """

    change: int | None = None
    use: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Task:
    """A `function`, importable by name, for a child to call with `arguments`."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    kill: Kill | None = None


class KilledError(Exception):
    """The child was killed, as ordered, or ended itself without a result."""


class Zygote:
    """The parent's end of the zygote, which imports `modules` before its first fork."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from tests.zygote import main; main()", *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def run(self, *tasks: Task) -> list[Any]:
        """Run the tasks, which begin together; return each one's result, or its exception (KilledError)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        _send(self._process.stdin, pickle.dumps(tasks))
        outcomes: list[Any] = pickle.loads(_receive(self._process.stdout))
        return outcomes

    def is_killed(self, kill: Kill | None, function: Callable[..., Any], *arguments: Any) -> bool:
        """Run a task and return True if it was killed; raise its exception."""
        (outcome,) = self.run(Task(function, arguments, kill))
        if isinstance(outcome, Exception) and not isinstance(outcome, KilledError):
            raise outcome
        return isinstance(outcome, KilledError)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the zygote, which has no children between tasks."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


def _send(stream: Any, data: bytes) -> None:
    stream.write(struct.pack("<Q", len(data)) + data)
    stream.flush()


def _receive(stream: Any) -> bytes:
    (length,) = struct.unpack("<Q", stream.read(8))
    data: bytes = stream.read(length)
    return data


def _arm(kill: Kill) -> None:
    if kill.seconds is not None:
        # The alarm's own default is to end the process, at whatever instruction it is.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, kill.seconds)
    counted, left = (USES, kill.use) if kill.change is None else (CHANGES, kill.change)

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if left is not None and (writes or event in counted):
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    if left is not None:
        sys.addaudithook(count)


def _child(task: Task, together: int, writer: int) -> None:
    os.read(together, 1)  # until the parent closes its end, when all children are there
    try:
        if task.kill is not None:
            _arm(task.kill)
        outcome = task.function(*task.arguments)
    except Exception as error:  # noqa: BLE001 - told to the parent, whatever it is
        outcome = error
    with os.fdopen(writer, "wb") as stream:
        stream.write(pickle.dumps(outcome))
    os._exit(0)


def _run(tasks: tuple[Task, ...]) -> list[Any]:
    children = []
    together, begin = os.pipe()
    for task in tasks:
        reader, writer = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(begin)
            os.close(reader)
            _child(task, together, writer)
        os.close(writer)
        children.append((process, reader))
    os.close(begin)
    os.close(together)
    outcomes: list[Any] = []
    for process, reader in children:
        with os.fdopen(reader, "rb") as stream:
            answer = stream.read()
        _, status = os.waitpid(process, 0)
        if os.WIFSIGNALED(status) or not answer:
            outcomes.append(KilledError(f"signal {os.WTERMSIG(status)}"))
        else:
            outcomes.append(pickle.loads(answer))
    return outcomes


def main() -> None:
    """Serve tasks from stdin until it ends; the output of children goes to stderr."""
    from importlib import import_module

    for module in sys.argv[1:]:
        import_module(module)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests = sys.stdin.buffer
    while header := requests.read(8):
        (length,) = struct.unpack("<Q", header)
        _send(answers, pickle.dumps(_run(pickle.loads(requests.read(length)))))

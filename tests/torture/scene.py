"""Run trainings, followers and a server, with a killer among them."""

from __future__ import annotations

import contextlib
import csv
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fixtures.mlflow_server import MlflowServer, start_mlflow_server
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

END_WITHIN = 240.0
"""Seconds within which a training ends after it was told to."""


@dataclass
class Actor:
    """A process that is restarted whenever it is gone, with its output appended to `log`.

    `ended` are the exit codes of ends that nobody caused, which should stay empty.
    """

    name: str
    command: Sequence[str]
    folder: Path
    log: Path
    process: subprocess.Popen[bytes] | None = None
    ended: list[int] = field(default_factory=list)

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )

    def keep_alive(self) -> None:
        """Start the process if it is gone."""
        code = None if self.process is None else self.process.poll()
        if code is not None:
            self.ended.append(code)
        if self.process is None or code is not None:
            self.start()

    def kill(self) -> None:
        """Kill the process with SIGKILL and wait for its end."""
        if self.process is not None:
            self.process.kill()
            code = self.process.wait()
            self.ended += [] if code == -signal.SIGKILL else [code]
            self.process = None


@dataclass
class Scene:
    """All actors in `folder`; `play` runs and kills them, then verifies. It is seeded, but time is real."""

    folder: Path
    trainings: int
    seed: int
    say: Callable[[str], object]
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.runs = self.folder / "runs"
        self.stop = self.folder / "stop"
        self.port = free_port()
        self.server: MlflowServer | None = None
        self.targets = {
            "tensorboard": ["--to", "tensorboard", "--logdir", str(self.folder / "tb")],
            "mlflow on sqlite": self._mlflow(f"sqlite:///{self.folder / 'own.db'}"),
            "mlflow server": self._mlflow(f"http://127.0.0.1:{self.port}"),
        }
        self.trainers = [self._actor(f"training-{n}", self._training(n)) for n in range(self.trainings)]
        self.followers = [
            self._actor(name, [*self._bridge("export"), *options, "--follow", "--interval", "0.5"])
            for name, options in self.targets.items()
        ]

    def play(self, seconds: float) -> dict[str, str]:
        """Let the actors run for `seconds`, and return verify's report on each target."""
        self.runs.mkdir(parents=True)
        self._start_server()
        try:
            self._kill_for(seconds)
            self._let_trainings_end()
            for follower in self.followers:
                follower.kill()
                assert follower.ended == [], f"{follower.name} ended by itself:\n{follower.log.read_text()[-3000:]}"
            self.counts["rows"] = self._rows()
            return {name: self._settle(name, options) for name, options in self.targets.items()}
        finally:
            for actor in (*self.trainers, *self.followers):
                actor.kill()
            if self.server is not None:
                self.server.stop()

    def summary(self) -> str:
        """Return a one-line summary."""
        done = ", ".join(f"{count} x {what}" for what, count in sorted(self.counts.items()) if what != "rows")
        return f"{len(self.trainers)} trainings wrote {self.counts['rows']:,} rows; {done}; seed {self.seed}"

    def _kill_for(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        actions = [
            *((self._kill_one, trainer) for trainer in self.trainers),
            *((self._kill_one, follower) for follower in self.followers * 2),
            (self._starve, self.followers[0]),
            (self._starve, self.followers[1]),
        ]
        while time.monotonic() < deadline:
            for actor in (*self.trainers, *self.followers):
                actor.keep_alive()
            time.sleep(self.random.uniform(0.2, 4.0))
            if self.random.random() < 0.1:
                self._restart_server()
                continue
            action, actor = self.random.choice(actions)
            action(actor)

    def _kill_one(self, actor: Actor) -> None:
        actor.kill()
        self.counts[f"killed {'training' if actor in self.trainers else actor.name}"] += 1

    def _starve(self, actor: Actor) -> None:
        """Keep files of this process from growing for a moment, as on a full disk.

        Python ignores the kernel's signal for that and raises an OSError instead.
        """
        if actor.process is None or actor.process.poll() is not None:
            return
        largest = max((path.stat().st_size for path in self.folder.rglob("*") if path.is_file()), default=0)
        limit = self.random.randint(0, max(largest // 4, 1))
        with contextlib.suppress(ProcessLookupError, PermissionError):
            before = resource.prlimit(actor.process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            time.sleep(self.random.uniform(0.5, 2.0))
            resource.prlimit(actor.process.pid, resource.RLIMIT_FSIZE, before)
            self.counts[f"disk full for {actor.name}"] += 1

    def _start_server(self) -> None:
        backend = f"sqlite:///{self.folder / 'server.db'}"
        self.server = start_mlflow_server(backend, self.folder / "server", port=self.port)

    def _restart_server(self) -> None:
        if self.server is not None:
            self.server.stop()
            time.sleep(self.random.uniform(0.0, 2.0))
            self._start_server()
            self.counts["server restarted"] += 1

    def _let_trainings_end(self) -> None:
        self.stop.touch()
        deadline = time.monotonic() + END_WITHIN
        for trainer in self.trainers:
            trainer.keep_alive()
        for trainer in self.trainers:
            assert trainer.process is not None
            assert trainer.ended == [], f"{trainer.name} ended by itself:\n{trainer.log.read_text()[-3000:]}"
            code = trainer.process.wait(max(deadline - time.monotonic(), 1))
            assert code == 0, f"{trainer.name} ended with {code}:\n{trainer.log.read_text()[-3000:]}"

    def _settle(self, name: str, options: Sequence[str]) -> str:
        """Run a last clean export, then verify."""
        export = self._run([*self._bridge("export"), *options, "--quiet"])
        assert export.returncode == 0, f"{name}: {export.stdout}\n{export.stderr}"
        verify = self._run([*self._bridge("verify"), *options, "--strict"])
        return f"exit {verify.returncode}: {verify.stdout.strip().splitlines()[-1] if verify.stdout else verify.stderr}"

    def _run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=600, check=False)

    def _bridge(self, verb: str) -> list[str]:
        return [sys.executable, "-m", "bridge", verb, str(self.runs)]

    def _mlflow(self, uri: str) -> list[str]:
        return ["--to", "mlflow", "--tracking-uri", uri, "--experiment", "torture"]

    def _training(self, number: int) -> list[str]:
        return [sys.executable, "-m", "tests.torture.training", str(self.runs / f"run{number}"), str(self.stop)]

    def _actor(self, name: str, command: Sequence[str]) -> Actor:
        # From the project's root, where `tests` can be imported.
        return Actor(name, command, Path(__file__).parents[2], self.folder / f"{name.replace(' ', '-')}.log")

    def _rows(self) -> int:
        total = 0
        for path in self.runs.glob("*/metrics.csv"):
            with path.open(newline="") as file:
                total += sum(1 for _ in csv.reader(file)) - 1
        return total

"""A directory of event files that lives: its files grow, tear, and are begun again and deleted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.pictures import png
from tests.run_dirs import CREATED_S
from tests.rundir.event_writing import age, record, scalar, version
from tests.rundir.event_writing import picture as picture_event

if TYPE_CHECKING:
    from pathlib import Path

    from tensorboard.compat.proto.event_pb2 import Event


@dataclass
class LivingEvents:
    """One run directory of TensorBoardLogger, written record by record.

    `clock` counts seconds since the start, one for each record.
    """

    path: Path
    files: list[Path] = field(default_factory=list)
    step: int = 0
    highest: int = 0
    clock: int = 0
    pictures: int = 0

    def __post_init__(self) -> None:
        self.path.mkdir(parents=True)
        (self.path / "hparams.yaml").write_text("lr: 0.1\n")
        self.begin(0)

    def begin(self, back: int) -> None:
        """Start a new process, which writes a new file, from a checkpoint that lies `back` steps behind."""
        self.step = max(self.step - back, 0)
        self.clock += 100
        self.files.append(self.path / f"events.out.tfevents.{int(CREATED_S) + self.clock}.host.1.{len(self.files)}")
        self.files[-1].touch()
        self._add(self.files[-1], version(CREATED_S + self.clock))

    def log(self, tag: str, value: float, *, stride: int) -> None:
        """Log one value at a step that is `stride` further on."""
        self.step += stride
        self.highest = max(self.highest, self.step)
        self._add(self.files[-1], scalar(tag, self.step, value, self._tick()))

    def log_before(self, tag: str, back: int) -> None:
        """Log a value that was never seen before, `back` steps behind, into the file before the newest one."""
        step, then = max(self.step - back, 0), self._tick()
        self.highest = max(self.highest, step)
        self._add(self.files[-2], scalar(tag, step, 1000 + self.clock, then))

    def add_scalars(self, curve: str, value: float) -> None:
        """Log a value as `add_scalars` does: in a folder of the curve, whose file goes on beside the others."""
        file = self.path / f"both_{curve}" / f"events.out.tfevents.{int(CREATED_S)}.host.1.{curve}"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            file.touch()
            self._add(file, version(CREATED_S + self.clock))
        self._add(file, scalar("both", self.step, value, self._tick()))

    def picture(self, tag: str, *, is_tensor: bool) -> None:
        """Log a picture that was never seen before."""
        self.pictures += 1
        event = picture_event(tag, self.step, self._tick(), png(self.pictures), is_tensor=is_tensor)
        self._add(self.files[-1], event)

    def tear(self, size: int) -> None:
        """Leave the beginning of a record, as a process does that dies while it writes."""
        with self.files[-1].open("ab") as file:
            file.write(record(scalar("loss", self.step, 0.5, CREATED_S))[:size])
        self.begin(0)

    def delete_oldest(self) -> None:
        """Delete the oldest file, as people do to save space."""
        self.files.pop(0).unlink()

    def end(self) -> None:
        """Make all files old."""
        age(self.path)

    def _tick(self) -> float:
        self.clock += 1
        return CREATED_S + self.clock

    def _add(self, file: Path, event: Event) -> None:
        with file.open("ab") as stream:
            stream.write(record(event))

"""RegistryLogger: Lightning's logger hooks over a RunWriter, on rank zero only."""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
import sys
import uuid
from collections.abc import Sequence  # noqa: TC003 - LightningCLI evaluates the signature
from typing import TYPE_CHECKING, Any, TypeVar, cast

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only

from logger.open_run import OnExisting, Settings, refuse_existing, unique_tags
from logger.other_loggers import Unsupported, WarnOnce, is_method_of_other_logger
from logger.run_writer import open_writer
from logger.session import host_name, running_trainer, stage_of
from logger.sidecar import read_sidecar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from logger.run_writer import RunWriter

_Hook = TypeVar("_Hook", bound="Callable[..., None]")


def _hook(method: _Hook) -> _Hook:
    """Make `method` a hook that runs on rank zero only and never ends the training.

    Only a directory that cannot be opened raises, so that nobody trains all night without a log.
    """

    @rank_zero_only
    @functools.wraps(method)
    def call(self: RegistryLogger, *args: Any, **kwargs: Any) -> None:
        _ = self.experiment
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - a hook must not end a training
            self._warn(method.__name__, f"{method.__name__} of RegistryLogger failed: {type(error).__name__}: {error}")

    return cast("_Hook", call)


class RegistryLogger(CSVLogger):
    """A Lightning logger that writes a run to the directory `run_dir`.

    A directory that holds a run is resumed by default: its rows, its statistics and people's edits stay.
    `on_existing="new"` renames the old run aside when the new one is first written, `"error"` raises FileExistsError at
    once. `run_id` identifies the run; `tags`, `notes` and `display_name` are those it begins with. Rows are written
    after every `flush_logs_every_n_steps` of them, whenever the Trainer saves, and within seconds in any case.
    `time_column` is the column with each row's time (None: no times); `prefix` stands before every metric's name.

    Nothing is written before the first use, and nothing at all on ranks other than zero.
    """

    def __init__(  # noqa: PLR0913 - every option of a run
        self,
        run_dir: str | os.PathLike[str],
        run_id: str,
        *,
        tags: Sequence[str] | None = None,
        notes: str | None = None,
        display_name: str | None = None,
        flush_logs_every_n_steps: int = 50,
        on_existing: OnExisting = "resume",
        time_column: str | None = "wall_time",
        prefix: str = "",
    ) -> None:
        settings = Settings.make(
            run_dir,
            run_id,
            tags=tags,
            notes=notes or "",
            display_name=display_name or "",
            flush_every=flush_logs_every_n_steps,
            on_existing=on_existing,
            time_column=time_column or None,
        )
        super().__init__(
            save_dir=settings.run_dir,
            name="",
            version="",
            prefix=prefix,
            flush_logs_every_n_steps=flush_logs_every_n_steps,
        )
        self._settings = settings
        self._made_by = (host_name(), os.getpid())
        self._warn = WarnOnce()
        _register_with_pytorch_lightning()
        rank_zero_only(refuse_existing)(settings)

    @property
    def run_dir(self) -> Path:
        """Return the absolute path of the run directory."""
        return self._settings.run_dir

    @property
    def run_id(self) -> str:
        """Return the run's id, as given."""
        return self._settings.run_id

    @property
    def log_dir(self) -> str:
        """Return the run directory."""
        return str(self.run_dir)

    @property
    def root_dir(self) -> str:
        """Return the run directory, because there are no versions below it."""
        return str(self.run_dir)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Return the RunWriter of the directory, opened at the first use.

        On ranks other than zero it is an object that does nothing.
        """
        writer: RunWriter | None = self._experiment  # type: ignore[assignment]
        if writer is None or not writer.usable():
            writer = open_writer(self._settings, log_info=rank_zero_info)
            self._experiment = writer  # type: ignore[assignment]
        return writer

    @property
    def _writer(self) -> RunWriter:
        """Return the open writer, within a hook."""
        return self._experiment  # type: ignore[return-value]

    @property
    def tags(self) -> list[str]:
        """Return the tags of the run; setting them writes them to the sidecar at once."""
        held = read_sidecar(self.run_dir)
        return list(self._settings.tags) if held is None else held.tags

    @tags.setter
    def tags(self, tags: Iterable[str]) -> None:
        self._edit(tags=unique_tags(tags))

    @property
    def _tags(self) -> list[str]:
        """Return the tags, under the name that stable-pretraining's Manager reads."""
        return self.tags

    @property
    def notes(self) -> str:
        """Return the notes of the run; setting them writes them to the sidecar at once."""
        held = read_sidecar(self.run_dir)
        return self._settings.notes if held is None else held.notes

    @notes.setter
    def notes(self, notes: str) -> None:
        self._edit(notes=str(notes))

    @_hook
    def _edit(self, **fields: Any) -> None:
        self._writer.edit(**fields)

    if not TYPE_CHECKING:  # a type checker would take every misspelling for an attribute

        def __getattr__(self, name: str) -> Any:
            if is_method_of_other_logger(name):
                return Unsupported(name, self._warn)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @_hook
    def log_hyperparams(self, params: object = None, *args: Any, **kwargs: Any) -> None:
        """Add hyperparameters: a mapping, Namespace, dataclass, OmegaConf container, or an object's attributes."""
        if params is not None:
            self._writer.log_hparams(params)

    @_hook
    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Store nothing. The Trainer calls this hook when it begins: in `fit` the run is running from now on."""
        trainer = running_trainer()
        if stage_of(trainer) == "fit":
            self._writer.begin_fit(trainer)

    @_hook
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row. Without `step`, its step is that of the last row plus 1."""
        if self._prefix:
            metrics = {f"{self._prefix}{self.LOGGER_JOIN_CHAR}{name}": value for name, value in metrics.items()}
        self._writer.log_metrics(metrics, step)

    @_hook
    def log_image(
        self,
        key: str,
        images: Any,
        step: int | None = None,
        caption: Sequence[str | None] | str | None = None,
        **kwargs: Any,
    ) -> None:
        """Store images (arrays, tensors, PIL images, figures, paths, bytes) under `key`, as WandbLogger does.

        Without `step`, they get the step of the last row. `caption` is one for each image. Other options are ignored.
        """
        self._ignored("log_image", kwargs)
        self._writer.log_image(key, images, step, caption)

    @_hook
    def log_video(
        self,
        key: str,
        videos: Any,
        step: int | None = None,
        caption: Sequence[str | None] | str | None = None,
        fps: Sequence[float] | float | None = None,
        format: Sequence[str] | str | None = None,  # noqa: A002 - WandbLogger's name
        **kwargs: Any,
    ) -> None:
        """Store videos (paths, bytes, or arrays of time, channels, height, width) under `key`, as WandbLogger does.

        `caption`, `fps` and `format` are one for each video, or one for all. Other options are ignored.
        """
        self._ignored("log_video", kwargs)
        self._writer.log_video(key, videos, step, caption, fps, format)

    @_hook
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Name the best checkpoint, or else the last one, in the sidecar."""
        path = getattr(checkpoint_callback, "best_model_path", "") or getattr(
            checkpoint_callback, "last_model_path", ""
        )
        if path:
            self._writer.set_checkpoint(str(path))

    @_hook
    def save(self) -> None:
        """Bring the rows to disk; the sidecar and the summary follow within seconds."""
        self._writer.save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Bring everything to disk and, in a fit, end the run as Lightning's word and the exception in flight say.

        A fit that ends before its first training step leaves the run as it was before. Does nothing if nothing was
        logged, in this process or in a child that left the run running.
        """
        if self._experiment is not None or self._left_running():
            self._finalize(status)

    @_hook
    def _finalize(self, status: str) -> None:
        self._writer.finalize(status)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy.

        In another process the copy opens the directory again. In this process all copies share a writer.
        """
        if self._experiment is not None:
            self._writer.may_be_overtaken = True  # by a spawned child, for which the copy may be
        return {**self.__dict__, "_experiment": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        host, pid = self._made_by
        parent = multiprocessing.parent_process()
        family = {os.getpid(), os.getppid(), parent.pid if parent else None}
        if host != host_name() or pid not in family:
            # Loaded by a process that the logger's own did not start: this is another start of the run.
            self._settings = dataclasses.replace(self._settings, token=uuid.uuid4().hex)
        _register_with_pytorch_lightning()

    def _left_running(self) -> bool:
        """Return whether a child of this start wrote the run and ended without finalizing it: then it failed."""
        held = read_sidecar(self.run_dir)
        if held is None or not held.sessions or held.status != "running":
            return False
        last = held.sessions[-1]
        return last.id == self._settings.token and last.fit is True

    def _ignored(self, method: str, options: Mapping[str, Any]) -> None:
        for name in options:
            self._warn(f"{method} {name}", f"{method} of RegistryLogger does not store {name!r}; it is ignored.")


def _register_with_pytorch_lightning() -> None:
    """Let the package pytorch_lightning, if it is in use, accept RegistryLogger as one of its CSVLoggers."""
    loggers = sys.modules.get("pytorch_lightning.loggers")
    if loggers is not None and not issubclass(RegistryLogger, loggers.CSVLogger):
        loggers.CSVLogger.register(RegistryLogger)

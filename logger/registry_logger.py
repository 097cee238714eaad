"""RegistryLogger: Lightning's hooks over a run directory, on rank zero only."""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
import sys
import uuid
from collections.abc import Sequence  # noqa: TC003 - LightningCLI evaluates the signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only

from logger.opened import open_run
from logger.opening import METRICS_NAME
from logger.pictures import encode_image, encode_video, single_images
from logger.session import host_name
from logger.settings import TIME_COLUMN, Settings
from logger.sidecar import SIDECAR_NAME, SidecarError, read_sidecar
from logger.status import status_of
from logger.troubles import RegistryLoggerWarning, Troubles

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from logger.run_writer import RunWriter

__all__ = ["RegistryLogger", "RegistryLoggerWarning"]

OnExisting = Literal["resume", "new", "error"]
_Hook = TypeVar("_Hook", bound="Callable[..., None]")


def _hook(method: _Hook) -> _Hook:
    """A hook of the training: on rank zero only, and no failure in it ends the training.

    Only a directory that cannot be opened at all raises: better at once than after a night without a log.
    """

    @rank_zero_only
    @functools.wraps(method)
    def call(self: RegistryLogger, *args: Any, **kwargs: Any) -> None:
        _ = self.experiment
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - a hook must not end a training
            self._troubles.tell(
                method.__name__, f"{method.__name__} of RegistryLogger failed: {type(error).__name__}: {error}"
            )

    return cast("_Hook", call)


class RegistryLogger(CSVLogger):
    """Writes a run to the directory `run_dir`: metrics, hyperparameters, media, status, a heartbeat.

    A directory that holds a run is resumed by default: its rows, its statistics and what people edited stay. `on_existing="new"`
    renames it aside, `"error"` raises FileExistsError; both when the logger is made. `run_id` names the run; `tags` and
    `notes` are those it begins with. Rows are on disk after every `flush_logs_every_n_steps` of them, and whenever the Trainer saves.
    `time_column` is the column with each row's time (None: no times); `prefix` stands before every metric's name.

    Nothing is touched before the first use (but for `on_existing="new"`), nothing at all on other ranks than zero.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        run_id: str,
        *,
        tags: Sequence[str] | None = None,
        notes: str | None = None,
        flush_logs_every_n_steps: int = 50,
        on_existing: OnExisting = "resume",
        time_column: str | None = TIME_COLUMN,
        prefix: str = "",
    ) -> None:
        if "://" in str(run_dir):
            raise ValueError(f"run_dir must be a directory of this machine's file system, not {run_dir}.")
        if on_existing not in ("resume", "new", "error"):
            raise ValueError(f'on_existing must be "resume", "new" or "error", not {on_existing!r}.')
        self._run_dir = Path(os.path.abspath(Path(run_dir).expanduser()))  # noqa: PTH100 - links stay as people wrote them
        super().__init__(
            save_dir=self._run_dir,
            name="",
            version="",
            prefix=prefix,
            flush_logs_every_n_steps=flush_logs_every_n_steps,
        )
        sweep = os.environ.get("SLURM_ARRAY_JOB_ID")
        given = [tags] if isinstance(tags, str) else [*(tags or ())]
        self._settings = Settings(
            run_dir=self._run_dir,
            run_id=str(run_id),
            token=uuid.uuid4().hex,
            tags=tuple(dict.fromkeys([*map(str, given), *([f"sweep:{sweep}"] if sweep else [])])),
            notes=notes or "",
            flush_every=max(1, flush_logs_every_n_steps),
            time_column=time_column or None,
        )
        self._made_by = (host_name(), os.getpid())
        self._troubles = Troubles()
        _be_known_to_pytorch_lightning()
        self._meet_existing(on_existing)

    @property
    def run_dir(self) -> Path:
        """The run directory, absolute."""
        return self._run_dir

    @property
    def run_id(self) -> str:
        """The run's id, as given."""
        return self._settings.run_id

    @property
    def log_dir(self) -> str:
        """The run directory itself."""
        return str(self._run_dir)

    @property
    def root_dir(self) -> str:
        """The run directory itself: there are no versions below it."""
        return str(self._run_dir)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The RunWriter of the directory, opened at the first use; on other ranks than zero one that does nothing."""
        writer: RunWriter | None = self._experiment  # type: ignore[assignment]
        if writer is None or not writer.usable():
            writer = open_run(self._settings, announce=rank_zero_info)
            self._experiment = writer  # type: ignore[assignment]
        return writer

    @property
    def _writer(self) -> RunWriter:
        """The writer, in a hook, where it is open."""
        return self._experiment  # type: ignore[return-value]

    @_hook
    def log_hyperparams(self, params: object = None, *args: Any, **kwargs: Any) -> None:
        """Add hyperparameters of any kind: a mapping, Namespace, dataclass, OmegaConf container, or an object's attributes."""
        if params is not None:
            self._writer.log_hparams(params)

    @_hook
    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Store nothing. The Trainer calls this when it begins: where that is another `fit`, a run that had ended is running again.

        `test`, `validate` and `predict` after a fit leave the status as it is.
        """
        if _is_fitting(model):
            self._writer.go_on()

    @_hook
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row; without `step` it gets the last one + 1."""
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

        Without `step` they belong to the last row's. `caption` is one for each image. Other options are ignored.
        """
        self._ignored("log_image", kwargs)
        items = single_images(images)
        for item, text in zip(items, _captions(caption, len(items)), strict=True):
            self._writer.log_media(key, "image", functools.partial(encode_image, item), step=step, caption=text)

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
        items = list(videos) if isinstance(videos, list | tuple) else [videos]
        count = len(items)
        for item, text, rate, kind in zip(
            items, _captions(caption, count), _each(fps, count), _each(format, count), strict=True
        ):
            encode = functools.partial(encode_video, item, fps=rate, format=kind)
            self._writer.log_media(key, "video", encode, step=step, caption=text)

    @_hook
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Name the best checkpoint, else the last one, in the sidecar."""
        path = getattr(checkpoint_callback, "best_model_path", "") or getattr(
            checkpoint_callback, "last_model_path", ""
        )
        if path:
            self._writer.set_checkpoint(str(path))

    @_hook
    def save(self) -> None:
        """Bring the rows to disk; the sidecar and the summary too, as far as that costs at most 2 % of the time."""
        self._writer.save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Bring everything to disk, with the status that Lightning's word and the exception in flight tell.

        Does nothing where nothing was logged, in this process or (and left running) in a child that it started. Rows may follow; they
        keep the status.
        """
        if self._experiment is not None or self._left_running():
            self._finalize(status_of(status))

    @_hook
    def _finalize(self, status: str) -> None:
        self._writer.finalize(status)

    def __getstate__(self) -> dict[str, Any]:
        """A copy, in whatever process, opens the directory for itself; in this process all copies share one writer."""
        return {**self.__dict__, "_experiment": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        host, pid = self._made_by
        parent = multiprocessing.parent_process()
        family = {os.getpid(), os.getppid(), parent.pid if parent else None}
        if host != host_name() or pid not in family:
            # Loaded by a process that has nothing to do with the one that made it: a start of its own.
            self._settings = _with_new_token(self._settings)
        _be_known_to_pytorch_lightning()

    def _left_running(self) -> bool:
        """Whether a spawned child of this start wrote the run and ended without an end of it: it failed."""
        try:
            sidecar = read_sidecar(self._run_dir)
            return bool(sidecar["status"] == "running" and sidecar["sessions"][-1]["id"] == self._settings.token)
        except (OSError, SidecarError, LookupError, TypeError):
            return False

    @rank_zero_only
    def _meet_existing(self, on_existing: OnExisting) -> None:
        if on_existing == "resume" or not any((self._run_dir / name).exists() for name in (SIDECAR_NAME, METRICS_NAME)):
            return
        if on_existing == "error":
            raise FileExistsError(
                f'{self._run_dir} holds a run already. Give another run_dir, or on_existing="resume" or "new".'
            )
        number = 1
        while (aside := self._run_dir.with_name(f"{self._run_dir.name}.old-{number}")).exists():
            number += 1
        self._run_dir.rename(aside)
        rank_zero_info(f"{self._run_dir} held a run, which is now {aside}.")

    def _ignored(self, method: str, options: Mapping[str, Any]) -> None:
        for name in options:
            self._troubles.tell(
                f"{method} {name}", f"{method} of RegistryLogger does not store {name!r}; it is ignored."
            )


def _is_fitting(model: Any) -> bool:
    """Whether the Trainer that `model` (a LightningModule, or any module) belongs to is in `fit`."""
    try:
        return bool(model.trainer.state.fn == "fit")
    except (AttributeError, RuntimeError):  # Lightning raises RuntimeError where no Trainer is attached
        return False


def _captions(caption: Sequence[str | None] | str | None, count: int) -> list[str | None]:
    return [None if text is None else str(text) for text in _each(caption, count)]


def _each(option: Any, count: int) -> list[Any]:
    """One value for each of `count` items: a list as far as it goes, one value for all."""
    if isinstance(option, list | tuple):
        return [*option[:count], *[None] * (count - len(option))]
    return [option] * count


def _with_new_token(settings: Settings) -> Settings:
    return dataclasses.replace(settings, token=uuid.uuid4().hex)


def _be_known_to_pytorch_lightning() -> None:
    """Let the separate package pytorch_lightning, where it is in use, take RegistryLogger for a CSVLogger of its own."""
    loggers = sys.modules.get("pytorch_lightning.loggers")
    if loggers is not None and not issubclass(RegistryLogger, loggers.CSVLogger):
        loggers.CSVLogger.register(RegistryLogger)

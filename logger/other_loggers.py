"""Accept the calls that trainings make to other loggers: store what a run directory has a place for, ignore the rest.

Library code calls `logger.experiment.add_image(...)` or `logger.watch(model)` whatever logger is in use. An
AttributeError there would end the training.
"""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from typing import TYPE_CHECKING, Any

from logger.media import encode_image

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_OTHER_METHODS = frozenset(
    {
        "watch",
        "unwatch",
        "use_artifact",
        "download_artifact",
        "track",
        "define_metric",
        "alert",
        "add_graph",
        "experiment_id",
    }
)
_PREFIXES = ("log_", "add_", "track_", "upload_", "set_")
_log = logging.getLogger(__name__)


def is_method_of_other_logger(name: str) -> bool:
    """Return whether a Lightning logger of another package may have a method called `name`."""
    return name in _OTHER_METHODS or name.startswith(_PREFIXES)


class RegistryLoggerWarning(UserWarning):
    """Something could not be logged as it was, or needs attention; the training goes on."""


class WarnOnce:
    """Warns once for each key."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def __call__(self, key: str, message: str) -> None:
        """Warn with `message` if it is the first time for `key`."""
        if key not in self._warned:
            self._warned.add(key)
            try:
                warnings.warn(message, RegistryLoggerWarning, stacklevel=4)
            except RegistryLoggerWarning:
                _log.warning("%s", message)  # where warnings are errors this would end the training


class Unsupported:
    """A method or attribute of another logger that run directories have no place for.

    Using it warns once and does nothing.
    """

    def __init__(self, name: str, warn: Callable[[str, str], None]) -> None:
        self._name = name
        self._warn = warn

    def __call__(self, *_: Any, **__: Any) -> None:
        """Warn once."""
        self._warn(self._name, f"{self._name} is not supported by RegistryLogger and is ignored.")

    def __getattr__(self, name: str) -> Unsupported:
        if name.startswith("_"):
            raise AttributeError(name)
        return Unsupported(f"{self._name}.{name}", self._warn)

    def __setitem__(self, key: object, value: object) -> None:
        self()


class SummaryWriterMethods:
    """Methods of TensorBoard's SummaryWriter, for a class that logs rows and media.

    Every other public name is Unsupported.
    """

    warn: Callable[[str, str], None]
    log_metrics: Callable[..., None]
    log_media: Callable[..., None]
    log_image: Callable[..., None]
    log_video: Callable[..., None]
    save: Callable[[], None]

    if not TYPE_CHECKING:  # a type checker would take every misspelling for an attribute

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            return Unsupported(f"experiment.{name}", self.warn)

    def add_scalar(self, tag: str, scalar_value: Any, global_step: Any = None, *_: Any, **__: Any) -> None:
        """Add a row with one metric."""
        self.log_metrics({tag: scalar_value}, global_step)

    def add_scalars(
        self, main_tag: str, tag_scalar_dict: Mapping[str, Any], global_step: Any = None, *_: Any, **__: Any
    ) -> None:
        """Add a row with the metrics `main_tag/name`."""
        self.log_metrics({f"{main_tag}/{name}": value for name, value in tag_scalar_dict.items()}, global_step)

    def add_image(
        self, tag: str, img_tensor: Any, global_step: Any = None, walltime: Any = None, dataformats: str = "CHW"
    ) -> None:
        """Store one image, whose dimensions `dataformats` names; its time is that of the call."""
        encode = functools.partial(encode_image, img_tensor, channels_first=dataformats == "CHW")
        self.log_media(tag, "image", encode, step=global_step, caption=None)

    def add_images(
        self, tag: str, img_tensor: Any, global_step: Any = None, walltime: Any = None, dataformats: str = "NCHW"
    ) -> None:
        """Store a batch of images."""
        for image in img_tensor:
            self.add_image(tag, image, global_step, walltime, dataformats[1:])

    def add_figure(self, tag: str, figure: Any, global_step: Any = None, close: bool = True, *_: Any) -> None:
        """Store a matplotlib figure, or each of a list, and close it."""
        figures = list(figure) if isinstance(figure, list | tuple) else [figure]
        self.log_image(tag, figures, global_step)
        pyplot = sys.modules.get("matplotlib.pyplot")
        if close and pyplot is not None:
            for one in figures:
                pyplot.close(one)

    def add_video(self, tag: str, vid_tensor: Any, global_step: Any = None, fps: float = 4, *_: Any) -> None:
        """Store a batch of videos (batch, time, channels, height, width)."""
        self.log_video(tag, list(vid_tensor), global_step, fps=fps)

    def flush(self) -> None:
        """Bring the rows to disk."""
        self.save()

    def close(self) -> None:
        """Bring the rows to disk; the logger's `finalize` ends the run."""
        self.save()

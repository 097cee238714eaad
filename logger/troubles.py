"""What went wrong and did not end the training: warned about once each, and counted."""

from __future__ import annotations

import logging
import warnings

__all__ = ["RegistryLoggerWarning", "Troubles"]

_log = logging.getLogger(__name__)


class RegistryLoggerWarning(UserWarning):
    """Something could not be logged as it was, or needs a look; the training goes on."""


class Troubles:
    """Counts troubles by what they are about: `counts`."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def tell(self, what: str, message: str) -> None:
        """Warn with `message`, if it is the first time for `what`."""
        count = self.counts[what] = self.counts.get(what, 0) + 1
        if count == 1:
            try:
                warnings.warn(message, RegistryLoggerWarning, stacklevel=4)
            except RegistryLoggerWarning:
                _log.warning("%s", message)  # where warnings are errors they would end the training

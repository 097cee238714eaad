"""Write training runs to plain directories, without a network.

RegistryLogger is for Lightning, RunWriter for other training loops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logger.other_loggers import RegistryLoggerWarning
    from logger.registry_logger import RegistryLogger
    from logger.run_writer import RunWriter

__all__ = ["RegistryLogger", "RegistryLoggerWarning", "RunWriter"]


def __getattr__(name: str) -> Any:
    """Load a public class at its first use: readers of run directories need neither lightning nor torch.

    Raises ImportError with the command to install it if lightning is missing.
    """
    if name == "RegistryLogger":
        try:
            from logger.registry_logger import RegistryLogger
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in ("lightning", "lightning_utilities", "torch"):
                raise
            hint = 'pip install "registry-bridge[logger]"'
            raise ImportError(f"RegistryLogger needs the package {package}: {hint}", name=package) from error
        return RegistryLogger
    if name == "RegistryLoggerWarning":
        from logger.other_loggers import RegistryLoggerWarning

        return RegistryLoggerWarning
    if name == "RunWriter":
        from logger.run_writer import RunWriter

        return RunWriter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

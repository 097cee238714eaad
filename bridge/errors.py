"""The errors of the bridge.

BridgeError                 what happened, where, and (hint) what to try
├── UsageError              the command line or the configuration is wrong               exit 2
├── MissingExtraError       an optional package is not installed; names the pip line     exit 1
├── RunError                one run cannot be done; the others go on                     exit 3
│   ├── RunDirectoryError   the run directory cannot be read as it is
│   ├── IdentityError       two directories with one identity, or one identity with other rows
│   └── NewerFormatError    what a target holds was made by a newer bridge
└── TargetError             the target did not take or give what it was asked for
    ├── TargetUnavailableError  for now: a network, a server, a lock; worth another try
    │   └── ConflictError       another export changed the target meanwhile
    ├── TargetRefusedError      for good: credentials, a wrong address, a full disk
    └── RebuildNeededError      this delta cannot be brought in, only a fresh target can hold it
"""

from __future__ import annotations


class BridgeError(Exception):
    """An error that speaks to a person: `str()` says what happened and where, `hint` what to try."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(BridgeError):
    """The command line, the configuration or an argument is wrong."""


class MissingExtraError(BridgeError):
    """An optional package is needed and not installed."""

    @classmethod
    def of(cls, extra: str, *, purpose: str) -> MissingExtraError:
        """Return the error for `extra` (a name in pyproject's optional dependencies), with its pip line."""
        return cls(
            f"{purpose} needs the extra {extra!r}, which is not installed.",
            hint=f'pip install "registry-bridge[{extra}]"',
        )


class RunError(BridgeError):
    """One run cannot be done; the others go on."""


class RunDirectoryError(RunError):
    """A run directory cannot be read as it is."""


class IdentityError(RunError):
    """Two directories share one identity, or one identity came back with other rows."""


class NewerFormatError(RunError):
    """A cursor or state file carries a format number that this version does not know."""


class TargetError(BridgeError):
    """The target did not take, or did not give, what it was asked for."""


class TargetUnavailableError(TargetError):
    """The target cannot be reached at the moment; the same call may succeed later."""


class ConflictError(TargetUnavailableError):
    """Another export, or a person, changed the target meanwhile; what it holds now is to be asked for again."""


class TargetRefusedError(TargetError):
    """The target refuses for good until a person changes something."""


class RebuildNeededError(TargetError):
    """`Target.apply` changed nothing: what is new contradicts what the target cannot change. `str()` says what."""


def counted(count: int, noun: str) -> str:
    """Return `1 run`, `2 runs`, `12,000 runs`, for a message."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"

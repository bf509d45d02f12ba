"""What can go wrong, as the user meets it: one line, a hint, an exit code.

Foreign exceptions are translated into these once, at the boundary, with their cause kept.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = [
    "AgentMissingError",
    "AuthenticationRefusedError",
    "BadInputError",
    "BusyError",
    "ExitCode",
    "GateRefusedError",
    "HostKeyChangedError",
    "IncompatibleError",
    "IntegrityError",
    "InternalError",
    "KedgeError",
    "NoSpaceError",
    "OutcomeUnknownError",
    "UnknownHostKeyError",
    "UnreachableError",
    "error_of_kind",
    "first_line",
]


class ExitCode(IntEnum):
    """Exit codes of `kedge` and `kedge-agent`; docs/exit-codes.md says what to do about each."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    BAD_INPUT = 3
    UNREACHABLE = 4
    GATE = 5
    INTEGRITY = 6
    INCOMPATIBLE = 7
    NO_SPACE = 8
    AUTHENTICATION = 9
    DOCTOR = 10
    FLEET = 11
    OUTCOME_UNKNOWN = 12
    BUSY = 13
    NO_AGENT = 14
    INTERRUPTED = 130


class KedgeError(Exception):
    """Root of every error a user can meet.

    Args:
        message: one line, what is wrong.
        hint: one line, what to do about it.
        told: the command has given its result already, and that says so too.
    """

    exit_code: ExitCode = ExitCode.INTERNAL

    def __init__(self, message: str, *, hint: str = "", told: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.told = told


class InternalError(KedgeError):
    """Something that should not happen did, here or in the agent."""


class BadInputError(KedgeError):
    """A file, value or name given by the user cannot be used."""

    exit_code = ExitCode.BAD_INPUT


class UnreachableError(KedgeError):
    """The device does not answer."""

    exit_code = ExitCode.UNREACHABLE


class GateRefusedError(KedgeError):
    """A condition did not hold: on the device, where nothing was switched then, or of the accuracy that was kept."""

    exit_code = ExitCode.GATE


class IntegrityError(KedgeError):
    """Bytes are not those that were named, or a signature or key does not hold."""

    exit_code = ExitCode.INTEGRITY


class HostKeyChangedError(IntegrityError):
    """The device shows another host key than the one pinned for it."""


class IncompatibleError(KedgeError):
    """Engine, target, runtime or protocol do not fit the device."""

    exit_code = ExitCode.INCOMPATIBLE


class NoSpaceError(KedgeError):
    """The device lacks disk space or memory."""

    exit_code = ExitCode.NO_SPACE


class AuthenticationRefusedError(KedgeError):
    """The device does not accept any key we offered."""

    exit_code = ExitCode.AUTHENTICATION


class UnknownHostKeyError(KedgeError):
    """No host key is pinned for the device yet."""

    exit_code = ExitCode.AUTHENTICATION


class OutcomeUnknownError(KedgeError):
    """The connection broke while the device was changing something."""

    exit_code = ExitCode.OUTCOME_UNKNOWN


class BusyError(KedgeError):
    """Somebody else is doing the same thing now."""

    exit_code = ExitCode.BUSY


class AgentMissingError(KedgeError):
    """The device answers, but no agent runs there."""

    exit_code = ExitCode.NO_AGENT


_BY_KIND: dict[str, type[KedgeError]] = {
    "internal": InternalError,
    "bad_input": BadInputError,
    "not_found": BadInputError,
    "method": InternalError,
    "too_large": BadInputError,
    "gate": GateRefusedError,
    "integrity": IntegrityError,
    "incompatible": IncompatibleError,
    "space": NoSpaceError,
    "forbidden": AuthenticationRefusedError,
    "busy": BusyError,
    "no_agent": AgentMissingError,
}


def error_of_kind(kind: str | None, message: str, hint: str) -> KedgeError:
    """The error for a fault the agent reported (`kedge_agent.wire.FAULTS`)."""
    return _BY_KIND.get(kind or "internal", InternalError)(message, hint=hint)


def first_line(error: Exception) -> str:
    """What a foreign exception says first, for a message of one line; its class when it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__

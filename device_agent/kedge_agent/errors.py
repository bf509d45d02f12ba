"""The agent's one error type: a line that says what is wrong, a hint that says what to do."""

from __future__ import annotations

from .wire import FAULTS

__all__ = ["AgentError"]


class AgentError(Exception):
    """A failure a user can act on.

    Args:
        message: one line, what is wrong.
        kind: a key of `wire.FAULTS`; decides HTTP status and exit code.
        hint: one line, what to do about it.
    """

    def __init__(self, message: str, *, kind: str = "bad_input", hint: str = "") -> None:
        if kind not in FAULTS:
            raise ValueError(f"unknown fault kind {kind!r}")
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.hint = hint

    def to_json(self) -> dict[str, str]:
        """The body of an HTTP error: `error` is what the Open Inference Protocol asks for."""
        return {"error": self.message, "hint": self.hint, "kind": self.kind}

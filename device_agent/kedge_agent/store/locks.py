"""Who may do what to the store at once. Every lock dies with its holder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from .files import exclusive_lock, make_directory, translate_os_error
from .layout import Layout

__all__ = ["collecting", "deploying", "using_store"]


@contextlib.contextmanager
def deploying(layout: Layout, model: str) -> Iterator[None]:
    """One push or activation of a model at a time, on whatever side of the daemon's door.

    Raises:
        AgentError: somebody else is at it (busy), or the lock cannot be made.
    """
    folder = layout.root / "locks"
    layout.model(model)  # the name is checked before it becomes a path
    with contextlib.ExitStack() as stack:
        try:
            make_directory(folder)
            busy = f"somebody else is deploying {model} to this device"
            stack.enter_context(exclusive_lock(folder / model, busy))
        except OSError as error:
            raise translate_os_error(error, f"locking {model}") from error
        yield


@contextlib.contextmanager
def using_store(layout: Layout) -> Iterator[None]:
    """While the context is open, no object that somebody has found in the store is collected. Shared by all users.

    Waits for a collection that is under way: it takes moments.
    """
    with _store_lock(layout, fcntl.LOCK_SH):
        yield


@contextlib.contextmanager
def collecting(layout: Layout) -> Iterator[bool]:
    """The store to oneself; False at once where somebody uses it, and nothing may then be removed."""
    with contextlib.ExitStack() as stack:
        alone = True
        try:
            stack.enter_context(_store_lock(layout, fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            alone = False
        yield alone


@contextlib.contextmanager
def _store_lock(layout: Layout, operation: int) -> Iterator[None]:
    make_directory(layout.root, mode=0o700)
    handle = os.open(layout.root / "store.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, operation)
        yield
    finally:
        os.close(handle)

"""What the daemon gives up in the background: what nobody needs on disk, and memory that was freed."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import threading

from ..measure.scratch import sweep
from ..store.collect import collect
from .site import Site

__all__ = ["tidy_later"]

_LOG = logging.getLogger("kedge.housekeeping")


def tidy_later(site: Site) -> None:
    """Remove what nobody needs, and give memory back, in a thread of its own: nobody waits, and nothing fails with it.

    To be called when models have been loaded, or have gone.
    """
    threading.Thread(target=_tidy, args=(site,), daemon=True).start()


def _tidy(site: Site) -> None:
    _collect(site)
    swept = sweep()
    if swept:
        _LOG.info("removed %d temporary folders of agents that were killed", swept)
    _give_memory_back()


def _collect(site: Site) -> None:
    try:
        # What serves may be none of those that the state names, where one was damaged.
        found = collect(site.layout, site.rules(), keep={live.manifest.digest for live in site.repository.live()})
    except OSError as error:
        _LOG.error("the store was not cleared: %s", error)
        return
    if found is not None and found.releases:
        _LOG.info("removed %d releases, %d bytes", len(found.releases), found.freed_bytes)


def _give_memory_back() -> None:
    """Have the C library give what was freed to the system: it keeps what lies between pieces that are in use.

    A model's load leaves such memory behind, a model that went does, and so does an agent's first start, which compiles
    its modules.
    """
    # malloc_trim(3) is glibc's.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)

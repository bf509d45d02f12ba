"""What the daemon removes from the store, in the background."""

from __future__ import annotations

import logging
import threading

from ..store.collect import collect
from .site import Site

__all__ = ["collect_later"]

_LOG = logging.getLogger("kedge.housekeeping")


def collect_later(site: Site) -> None:
    """Remove what nobody needs, in a thread of its own: nobody waits for it, and nothing fails with it."""
    threading.Thread(target=_collect, args=(site,), daemon=True).start()


def _collect(site: Site) -> None:
    try:
        # What serves may be none of those that the state names, where one was damaged.
        found = collect(site.layout, site.rules(), keep={live.manifest.digest for live in site.repository.live()})
    except OSError as error:
        _LOG.error("the store was not cleared: %s", error)
        return
    if found is not None and found.releases:
        _LOG.info("removed %d releases, %d bytes", len(found.releases), found.freed_bytes)

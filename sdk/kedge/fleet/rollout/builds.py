"""Engines of a rollout: of each kind one device builds, and the others of its passport wait for what it built."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["Builds"]


class Builds:
    """Who builds which engine, who waits for it, and which are there. Devices are known by their index."""

    def __init__(self) -> None:
        self.engines: dict[str, Mapping[str, Any]] = {}
        self.built: dict[str, Mapping[str, Any]] = {}
        """Engines by their key that a device has built, and that the host has yet to vouch for: the answer."""
        self._from: dict[str, str] = {}
        self._builder: dict[str, int] = {}
        self._waiting: defaultdict[str, deque[int]] = defaultdict(deque)

    def clear(self) -> None:
        """Nobody builds or waits; what was built stays."""
        self._builder.clear()
        self._waiting.clear()

    def ask(self, key: str, index: int) -> str:
        """A device asks for an engine: it is there ("deploy"), on its way ("wait"), or this one builds it ("build")."""
        if key in self.engines:
            return "deploy"
        if key in self._builder or key in self.built:
            self._waiting[key].append(index)
            return "wait"
        self._builder[key] = index
        return "build"

    def next_builder(self, key: str) -> int | None:
        """Its builder failed: who builds now; None: nobody asks for it any more."""
        self._builder.pop(key, None)
        self.built.pop(key, None)
        if not self._waiting[key]:
            return None
        self._builder[key] = self._waiting[key].popleft()
        return self._builder[key]

    def finish(self, key: str, engine: Mapping[str, Any], builder: str) -> Iterator[int]:
        """An engine is there: whoever waited for it."""
        self.engines[key] = engine
        self._from[str(engine["release"]["digest"])] = builder
        self._builder.pop(key, None)
        self.built.pop(key, None)
        yield from self._waiting.pop(key, ())

    def came_from(self, release: str | None) -> str | None:
        """The device that built the engine of a completed release; None: it is not one of these."""
        return None if release is None else self._from.get(release)

    def releases(self) -> frozenset[str]:
        """Digests of the completed releases."""
        return frozenset(self._from)

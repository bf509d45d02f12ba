"""Candidates judged elsewhere: the same function over many models, here or by helpers, with the same results."""

from __future__ import annotations

import platform
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from importlib import metadata
from typing import Any, TypeVar

from ..errors import KedgeError
from .code import code_digest
from .work import Helpers

__all__ = ["judging_facts", "spread"]

R = TypeVar("R")

# Models that were built and not judged yet: as many as a site's workers judge at a time, and no more in memory.
_AHEAD = 32


def spread(
    function: Callable[[Any, bytes], R], shared: Any, models: Iterable[bytes], helpers: Helpers | None
) -> Iterator[R]:
    """function(shared, model) of each model, in their order.

    Args:
        function: of a module, so that helpers find it by its name.
        shared: what it needs each time: it goes to each helper once.
        models: ONNX files' bytes; they are made one after another, as they are needed.

    Raises:
        KedgeError: what the function raises; or the helpers are gone.
    """
    if helpers is None:
        for model in models:
            yield function(shared, model)
        return
    handle = helpers.share(shared)
    ahead: deque[Future[R]] = deque()
    try:
        for model in models:
            ahead.append(helpers.executor.submit(function, handle, model))
            if len(ahead) == _AHEAD:
                yield _result(ahead.popleft(), helpers)
        while ahead:
            yield _result(ahead.popleft(), helpers)
    finally:
        for future in ahead:
            future.cancel()


def _result(future: Future[R], helpers: Helpers) -> R:
    try:
        return future.result()
    except KedgeError:
        raise
    except (Exception, CancelledError) as error:  # a helper's library has its own classes
        raise helpers.explain(error) from error


def judging_facts() -> dict[str, str]:
    """What decides the numbers that a candidate is judged by: the same on every helper, or they judge otherwise."""
    return {
        "passes": code_digest()[:12],
        "onnxruntime": metadata.version("onnxruntime"),
        "processor": platform.machine(),
        "vnni": str(_has_vnni()),
    }


def _has_vnni() -> bool:
    """Without it INT8 saturates on x86: outputs differ."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return "vnni" in file.read(64 * 1024)
    except OSError:
        return False

"""Engines built on this host: by TensorRT for RTX for GPUs that are not here, by TensorRT for the one that is."""

from __future__ import annotations

from collections.abc import Callable

from kedge_agent.engine.apart import Limits, compile_apart
from kedge_agent.engine.here import built_passport, passport_here
from kedge_agent.engine.library import RUNTIMES
from kedge_agent.engine.order import Order, engine_key
from kedge_agent.engine.report import EngineError

from ..errors import IncompatibleError, KedgeError, error_of_kind
from .cache import CachedEngine, EngineCache
from .plan import Host, Plan

__all__ = ["build_engine", "host_builders", "order_of", "translated"]

_TIMEOUT_S = 3600.0

Progress = Callable[[str, float], None]


def host_builders(compute_capabilities: tuple[str, ...] = ()) -> Host:
    """What can compile on this host.

    Args:
        compute_capabilities: that a compiler for GPUs that are not here would be asked for.
    """
    found = {}
    for name, library in RUNTIMES.items():
        passport = passport_here(name, compute_capabilities if library.cross else None)
        if passport is not None and (library.cross or passport.compute_capabilities):
            found[name] = passport
    return Host(found)


def order_of(choice: Plan, *, sparse_weights: bool = False, workspace_bytes: int | None = None) -> Order:
    """What a plan has compiled."""
    return Order(
        runtime=choice.runtime,
        compute_capabilities=choice.compute_capabilities if RUNTIMES[choice.runtime].cross else (),
        profiles=dict(choice.profiles),
        sparse_weights=sparse_weights,
        workspace_bytes=workspace_bytes,
    )


def build_engine(
    model: bytes, onnx_sha256: str, order: Order, *, cache: EngineCache, progress: Progress
) -> tuple[CachedEngine, bool]:
    """The engine of a model: one from the cache whose passport fits, else built here, in a child process.

    Returns:
        The engine, and whether it was built now.

    Raises:
        IncompatibleError: the compiler is missing, or refuses the model.
        NoSpaceError: memory ran out.
    """
    here = passport_here(order.runtime, order.compute_capabilities or None)
    if here is None:
        library = RUNTIMES[order.runtime]
        raise IncompatibleError(f"{library.title} is not installed here", hint=library.hint)
    key = engine_key(onnx_sha256, order, here)
    with cache.building(key):
        found = cache.find(onnx_sha256, order, here)
        if found is not None:
            return found[0], False

        def tell(_phase: str, step: int, steps: int) -> bool:
            if steps:
                progress("compiling", min(step / steps, 1.0))
            return True

        progress("compiling", 0.0)
        try:
            report = compile_apart(model, order, progress=tell, limits=Limits(timeout_s=_TIMEOUT_S))
        except EngineError as error:
            raise translated(error) from error
        passport = built_passport(report.engine, here)
        return cache.put(key, onnx_sha256, order, passport, report.engine, report.to_json()), True


def translated(error: EngineError) -> KedgeError:
    """A compiler's failure as one of ours."""
    ask = "kedge preflight says which node it is about" if error.kind == "refused" and not error.hint else ""
    return error_of_kind(error.fault, error.message, "; ".join(part for part in (ask, error.advice()) if part))

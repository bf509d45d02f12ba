"""An ONNX model to an engine: one adapter for TensorRT 10.3 to 11 and for TensorRT for RTX.

The compiler is native code and can end its process on a model it does not expect (a convolution whose scale is not a
constant does that to TensorRT for RTX 1.7.1): for models of unknown origin use `apart.compile_apart`, which runs this
in a child. Precisions are those in the ONNX file (Q/DQ pairs, casts): networks are strongly typed.
"""

from __future__ import annotations

import time
from typing import Any

from .here import gpu_here, peak_rss
from .library import Heard, Library, capture, library_of
from .order import Order
from .parse import check_model_size, findings_of, layers_of, make_builder, make_network, refusal, tensors_of
from .report import CompileReport, EngineError, ParserFinding, Progress

__all__ = ["COMPUTE_CAPABILITIES", "compile_onnx", "inspect"]

# What TensorRT for RTX compiles for, and its own name for each.
COMPUTE_CAPABILITIES = {"7.5": "SM75", "8.0": "SM80", "8.6": "SM86", "8.9": "SM89", "12.0": "SM120", "12.1": "SM121"}

_MAX_ENGINE_BYTES = 1 << 33
_MAX_CACHE_BYTES = 1 << 28
_MAX_LAYER_CHARACTERS = 16 << 20
_OUT_OF_MEMORY = ("bad_alloc", "out of memory", "outofmemory", "insufficient memory")


def compile_onnx(
    model: bytes,
    order: Order,
    *,
    progress: Progress | None = None,
    timing_cache: bytes = b"",
) -> CompileReport:
    """Compile an ONNX model, in this process.

    Args:
        model: an ONNX file's bytes, weights inside.
        progress: told of each step; when it returns False the compilation ends within milliseconds. What TensorRT says
            meanwhile comes the same way, as the phase "log: …" of no steps.
        timing_cache: of an earlier build under the same passport; tensorrt alone.

    Raises:
        EngineError: the compiler is missing, the order does not fit the model, the model was refused (with what the
            parser found), memory ran out, or progress said stop.
    """
    library = library_of(order.runtime)
    check_model_size(model)
    _check_capabilities(library, order)
    trt = library.load()
    with capture(library, _tell_log(progress)) as said:
        started = time.perf_counter()
        builder = make_builder(trt, library, said.logger)
        network = make_network(trt, builder)
        parser = trt.OnnxParser(network, said.logger)
        if not parser.parse(model):
            last = said.last_error("the parser refused the model without a word")
            raise refusal(library, findings_of(parser) or (ParserFinding("", "", last),), said.complaints)
        config = builder.create_builder_config()
        _configure(trt, library, config, order)
        _set_shapes(builder, config, network, dict(order.profiles))
        cache = _timing_cache(library, config, timing_cache)
        monitor = _monitor(trt, progress) if progress is not None else None
        if monitor is not None:
            config.progress_monitor = monitor
        built = builder.build_serialized_network(network, config)
        if monitor is not None and monitor.raised is not None:
            raise monitor.raised
        if monitor is not None and monitor.stopped:
            raise EngineError("the compilation was cancelled", kind="cancelled")
        if built is None:
            raise _refused_by_compiler(library, said)
        if built.nbytes > _MAX_ENGINE_BYTES:
            raise EngineError(f"the engine has {built.nbytes} bytes, more than a release takes", kind="refused")
        engine = bytes(built)
        return CompileReport(
            engine=engine,
            seconds=time.perf_counter() - started,
            runtime=library.name,
            runtime_version=str(trt.__version__),
            compute_capabilities=tuple(order.compute_capabilities) or _capability_here(),
            network=layers_of(network),
            inputs=tensors_of(network, "input"),
            outputs=tensors_of(network, "output"),
            log=said.complaints,
            peak_rss_bytes=peak_rss(),
            timing_cache=_learnt(cache),
        )


def _check_capabilities(library: Library, order: Order) -> None:
    given = order.compute_capabilities
    if not library.cross:
        here = _capability_here()
        if given and given != here:
            raise EngineError(
                f"{library.title} builds for the GPU it runs on ({', '.join(here) or 'none'}), not {', '.join(given)}",
                kind="bad_input",
                hint="build on such a device, or for a target of tensorrt-rtx",
            )
        return
    unknown = [name for name in given if name not in COMPUTE_CAPABILITIES]
    if unknown or not given or len(set(given)) != len(given):
        raise EngineError(
            f"{library.title} does not compile for compute capability {', '.join(unknown) or 'none, or one twice'}",
            kind="bad_input",
            hint=f"it compiles for: {', '.join(COMPUTE_CAPABILITIES)}",
        )


def _capability_here() -> tuple[str, ...]:
    gpu = gpu_here()
    return () if gpu is None else (gpu.compute_capability,)


def _configure(trt: Any, library: Library, config: Any, order: Order) -> None:
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if library.cross:
        config.num_compute_capabilities = len(order.compute_capabilities)
        for index, name in enumerate(order.compute_capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, COMPUTE_CAPABILITIES[name]), index)
    if order.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, order.workspace_bytes)
    if order.tactic_dram_bytes is not None and not library.cross:
        config.set_memory_pool_limit(trt.MemoryPoolType.TACTIC_DRAM, order.tactic_dram_bytes)
    if order.sparse_weights:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if order.optimization_level is not None:
        config.builder_optimization_level = order.optimization_level


def _timing_cache(library: Library, config: Any, given: bytes) -> Any:
    """TensorRT for RTX tries no kernels, and a timing cache would make it ask for a GPU."""
    if library.cross:
        return None
    cache = config.create_timing_cache(given)
    # A damaged one, or one of another passport, is refused by TensorRT itself; the build goes on with an empty one.
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _learnt(cache: Any) -> bytes:
    """What a timing cache holds now; nothing where that is more than is kept, for half a cache is none."""
    data = b"" if cache is None else bytes(cache.serialize())
    return data if len(data) <= _MAX_CACHE_BYTES else b""


def _set_shapes(builder: Any, config: Any, network: Any, profiles: dict[str, Any]) -> None:
    """Give every input with free dimensions its optimisation profile: without one, nothing compiles."""
    profile, free = builder.create_optimization_profile(), False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        known = tuple(int(dim) for dim in tensor.shape)
        if -1 not in known and not tensor.is_shape_tensor:
            _check_profile(tensor.name, known, profiles.pop(tensor.name, (known,) * 3))
            continue
        if tensor.is_shape_tensor:
            raise EngineError(
                f"input {tensor.name} holds a shape that is given at run time, which is not supported",
                kind="refused",
                hint="export the model with that shape fixed",
            )
        one = tuple(1 if dim < 0 else dim for dim in known)
        least, best, greatest = _check_profile(tensor.name, known, profiles.pop(tensor.name, (one,) * 3))
        profile.set_shape(tensor.name, least, best, greatest)
        free = True
    if profiles:
        raise EngineError(
            f"the model has no input {', '.join(sorted(profiles))[:200]}, for which a profile was given",
            kind="bad_input",
        )
    if free:
        config.add_optimization_profile(profile)


def _check_profile(name: str, known: tuple[int, ...], given: Any) -> tuple[tuple[int, ...], ...]:
    shapes = tuple(tuple(shape) for shape in given)
    fits = len(shapes) == 3 and all(
        len(shape) == len(known)
        and all(type(dim) is int and dim >= 1 for dim in shape)
        and all(fixed in (-1, dim) for fixed, dim in zip(known, shape, strict=True))
        for shape in shapes
    )
    if not fits or any(not low <= mid <= high for low, mid, high in zip(*shapes, strict=True)):
        raise EngineError(
            f"the profile of input {name} does not fit its shape {list(known)}: {list(map(list, shapes))}",
            kind="bad_input",
            hint="give least, best and greatest shape, each dimension in that order, fixed ones as they are",
        )
    return shapes


def _tell_log(progress: Progress | None) -> Any:
    return None if progress is None else lambda line: progress(f"log: {line}", 0, 0)


def _monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.stopped = False
            self.raised: BaseException | None = None
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if self.stopped:
                return False
            try:
                self.stopped = not progress(phase_name, step + 1, self._steps.get(phase_name, 0))
            except BaseException as error:  # it may not pass through native code: raised again when that has ended
                self.raised, self.stopped = error, True
            return not self.stopped

    return Monitor()


def _refused_by_compiler(library: Library, said: Heard) -> EngineError:
    last = said.last_error("it did not say why")
    whole = " ".join(said.complaints).lower()
    kind = "memory" if any(sign in whole for sign in _OUT_OF_MEMORY) else "refused"
    return EngineError(f"{library.title} cannot compile the model: {last}", kind=kind, log=said.lines)


def inspect(engine: bytes, runtime: str) -> str:
    """The engine's layers as JSON, by TensorRT's inspector; empty where no GPU is: there an engine cannot be loaded.

    It needs the engine's memory once more: whoever built it saves it first.
    """
    if gpu_here() is None:
        return ""
    library = library_of(runtime)
    trt = library.load()
    try:
        with capture(library) as said:
            loaded = trt.Runtime(said.logger).deserialize_cuda_engine(engine)
            if loaded is None:
                return ""
            inspector = loaded.create_engine_inspector()
            text = str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    except Exception:  # a report without layers is better than no engine
        return ""
    return text if len(text) <= _MAX_LAYER_CHARACTERS else ""

"""TensorRT for RTX: an ONNX model to an engine, on a machine that needs no GPU.

The compiler is native code and can end its process on a model it does not expect (a convolution whose scale is not a
constant does that to 1.7.1): for models of unknown origin use `apart.compile_apart`, which runs this in a child.

Precisions are those in the ONNX file (Q/DQ pairs, casts): networks are strongly typed, no flag changes a type.
"""

from __future__ import annotations

import importlib
import threading
import time
from functools import cache
from typing import Any

from .report import CompileReport, EngineError, EngineTensor, ParserFinding, Profiles, Progress

__all__ = ["COMPUTE_CAPABILITIES", "RUNTIME", "compile_onnx", "version"]

RUNTIME = "tensorrt-rtx"

# What TensorRT for RTX compiles for, and its own name for each.
COMPUTE_CAPABILITIES = {"7.5": "SM75", "8.0": "SM80", "8.6": "SM86", "8.9": "SM89", "12.0": "SM120", "12.1": "SM121"}

_MAX_MODEL_BYTES = (1 << 31) - 1  # protobuf reads no more in one message
_MAX_ENGINE_BYTES = 1 << 33
_MAX_FINDINGS = 64
_MAX_LOG_LINES = 500
_MAX_LINE_CHARACTERS = 1000
_MAX_DIMENSION = (1 << 31) - 1

# A machine without a driver gets this beside every error; it explains none of them.
_NOISE = ("CUDA driver version is insufficient", "no CUDA-capable device", "The logger passed into")


def version() -> str | None:
    """Version of the installed TensorRT for RTX, without loading it; None when it is missing."""
    from importlib import metadata

    for name in ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings", "tensorrt-rtx"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


@cache
def _library() -> Any:
    try:
        return importlib.import_module("tensorrt_rtx_bindings")
    except Exception as error:  # besides ImportError: OSError of a library that does not load
        raise EngineError(
            f"TensorRT for RTX cannot be imported: {_line(str(error) or type(error).__name__)}",
            kind="missing",
            hint="pip install 'kedge[tensorrt]'",
        ) from error


_one_at_a_time = threading.Lock()
_lines: list[str] = []


@cache
def _logger() -> Any:
    """TensorRT keeps the first logger of a process for good: so there is one, and one compilation at a time."""
    trt = _library()

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def log(self, severity: Any, message: str) -> None:
            worth = severity in (trt.ILogger.WARNING, trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)
            if worth and len(_lines) < _MAX_LOG_LINES and not any(noise in message for noise in _NOISE):
                _lines.append(f"{severity.name}: {_line(message)}")

    return Logger()


def _line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if not any(noise in line for noise in _NOISE)]
    return " ".join(lines)[:_MAX_LINE_CHARACTERS]


def compile_onnx(
    model: bytes,
    *,
    compute_capabilities: tuple[str, ...],
    profiles: Profiles | None = None,
    progress: Progress | None = None,
) -> CompileReport:
    """Compile an ONNX model, in this process.

    Args:
        model: an ONNX file's bytes, weights inside.
        compute_capabilities: of the GPUs the engine is for, as "8.9".
        profiles: shapes of the inputs whose shape is not fixed; an input left out gets 1 for each free dimension.
        progress: told of each step; when it returns False the compilation ends within milliseconds.

    Raises:
        EngineError: TensorRT for RTX is missing, the arguments do not fit the model, the model was refused (with what
            the parser found), or progress said stop.
    """
    if not 0 < len(model) <= _MAX_MODEL_BYTES:
        raise EngineError(f"a model of {len(model)} bytes is not ONNX that can be parsed", kind="bad_input")
    targets = _targets(compute_capabilities)
    trt = _library()
    with _one_at_a_time:
        _lines.clear()
        started = time.perf_counter()
        builder = trt.Builder(_logger())
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, _logger())
        if not parser.parse(model):
            raise _refused_by_parser(parser)
        config = builder.create_builder_config()
        config.num_compute_capabilities = len(targets)
        for index, name in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
        _set_shapes(builder, config, network, dict(profiles or {}))
        monitor = _monitor(trt, progress) if progress is not None else None
        if monitor is not None:
            config.progress_monitor = monitor
        built = builder.build_serialized_network(network, config)
        if monitor is not None and monitor.raised is not None:
            raise monitor.raised
        if monitor is not None and monitor.stopped:
            raise EngineError("the compilation was cancelled", kind="cancelled")
        if built is None:
            raise _refused_by_compiler()
        if built.nbytes > _MAX_ENGINE_BYTES:
            raise EngineError(f"the engine has {built.nbytes} bytes, more than a release takes", kind="refused")
        return CompileReport(
            engine=bytes(built),
            seconds=time.perf_counter() - started,
            runtime=RUNTIME,
            runtime_version=str(trt.__version__),
            compute_capabilities=tuple(compute_capabilities),
            layers=int(network.num_layers),
            inputs=tuple(_tensor(network.get_input(index)) for index in range(network.num_inputs)),
            outputs=tuple(_tensor(network.get_output(index)) for index in range(network.num_outputs)),
            log=tuple(_lines),
        )


def _targets(compute_capabilities: tuple[str, ...]) -> list[str]:
    unknown = [name for name in compute_capabilities if name not in COMPUTE_CAPABILITIES]
    if unknown or not compute_capabilities or len(set(compute_capabilities)) != len(compute_capabilities):
        raise EngineError(
            f"TensorRT for RTX does not compile for compute capability {', '.join(unknown) or 'none, or one twice'}",
            kind="bad_input",
            hint=f"it compiles for: {', '.join(COMPUTE_CAPABILITIES)}",
        )
    return [COMPUTE_CAPABILITIES[name] for name in compute_capabilities]


def _tensor(tensor: Any) -> EngineTensor:
    return EngineTensor(str(tensor.name), str(tensor.dtype.name), tuple(int(dim) for dim in tensor.shape))


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
        and all(type(dim) is int and 1 <= dim <= _MAX_DIMENSION for dim in shape)
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


def _refused_by_parser(parser: Any) -> EngineError:
    findings = []
    for index in range(min(parser.num_errors, _MAX_FINDINGS)):
        error = parser.get_error(index)
        node, op, said = _line(error.node_name() or ""), _line(error.node_operator() or ""), _line(error.desc() or "")
        # For an operator it does not have, the parser's own words are the condition that failed: "false".
        if said in ("", "false"):
            said = "TensorRT has no such operator"
        elif "Plugin not found" in said:
            said = "TensorRT has no such operator, and no plugin of its name"
        findings.append(ParserFinding(node, op, said.removeprefix("Assertion failed: ")))
    if not findings:
        findings = [ParserFinding("", "", _last_error("the parser refused the model without a word"))]
    first = findings[0]
    where = f"{first.op} {first.node}".strip()
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    return EngineError(
        f"TensorRT for RTX refuses {where or 'the model'}: {first.message}{more}",
        kind="refused",
        findings=tuple(findings),
        log=tuple(_lines),
    )


def _refused_by_compiler() -> EngineError:
    return EngineError(
        f"TensorRT for RTX cannot compile the model: {_last_error('it did not say why')}",
        kind="refused",
        log=tuple(_lines),
    )


def _last_error(otherwise: str) -> str:
    errors = [line.partition(": ")[2] for line in _lines if not line.startswith("WARNING")]
    return errors[-1] if errors else otherwise

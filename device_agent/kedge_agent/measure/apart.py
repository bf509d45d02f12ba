"""Loading, running and profiling a model in a child process: a file that crashes its runtime takes nothing with it.

`try_gates` is asked before a release goes live, `try_load` before one is loaded that may have ended the agent.
`measure_phases` and `profile_layers` measure beside the live model, which is left alone.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..child import Ended, Limits, run_child
from ..errors import AgentError
from ..formats.latency import LatencySummary
from ..formats.oip import encode_request
from ..runtime.base import LayerTime, LoadOptions
from .parity import OutputParity
from .schedule import TimingRules
from .scratch import scratch_folder

__all__ = ["GateTrial", "Trial", "measure_phases", "profile_layers", "try_gates", "try_load"]

# A little less than whoever serves.
_NICE = 5
_OWN_HANDLE = re.compile(r"/proc/self/fd/([0-9]+)")
_OUT_OF_MEMORY = (
    "bad_alloc",
    "MemoryError",
    "Cannot allocate memory",
    "Failed to allocate memory",
    "Memory allocation still failed",
    "failed to map segment",
    "out of memory",
)
_ENTRY = "kedge_agent.measure.apart_child:"


@dataclass(frozen=True)
class Trial:
    """What a load in a child process took. run_ms: one inference, None where no inputs were given.

    import_ms: the runtime's library; it is in no other figure. peak_rss_bytes: of the whole child. peak_bytes: without
    program and libraries, as `memory.OwnPeak` has it. None: unavailable.
    """

    import_ms: float
    load_ms: float
    run_ms: float | None
    peak_rss_bytes: int | None
    peak_bytes: int | None


def try_load(
    path: Path,
    runtime_name: str,
    options: LoadOptions,
    inputs: Mapping[str, NDArray[Any]] | None,
    *,
    timeout_s: float,
    address_space_bytes: int | None = None,
    started: Callable[[int], None] | None = None,
) -> Trial:
    """Load a model file in a child process, and run it once.

    Args:
        path: the file; `/proc/self/fd/N` is an open file of this process.
        inputs: for one run; None: it is loaded only.
        address_space_bytes: the child's limit (RLIMIT_AS); None: none. Libraries of a GPU reserve more than they use.
        started: told the child's process id.

    Raises:
        AgentError: the runtime refuses the file or crashed on it (incompatible), there is not enough memory (space), it
            took too long (busy), or the inputs do not fit (bad_input).
        OSError: it could not be tried, which is no fault of the file: there is no room for temporary files, say.
    """
    limits = Limits(timeout_s, address_space_bytes, _NICE, started)
    tensors = {} if inputs is None else {"inputs": inputs}
    return Trial(**_asked("trial", "while it loaded the model", path, runtime_name, options, tensors, limits))


@dataclass(frozen=True)
class GateTrial:
    """A load in a child process, and what it was held against.

    imported_bytes: the child's own memory once the runtime's library was imported. libraries_bytes: what was resident
    of program and libraries in the end, which is in neither that nor `trial.peak_bytes`. None: unavailable. parity: of
    each golden output. latency: of the golden inputs' compute time.
    """

    trial: Trial
    imported_bytes: int | None
    libraries_bytes: int | None
    parity: Mapping[str, OutputParity]
    latency: LatencySummary


def try_gates(
    path: Path,
    runtime_name: str,
    options: LoadOptions,
    inputs: Mapping[str, NDArray[Any]],
    golden: Mapping[str, NDArray[Any]],
    timing: TimingRules,
    *,
    timeout_s: float,
    memory_bytes: int | None = None,
    started: Callable[[int], None] | None = None,
) -> GateTrial:
    """Load a model file in a child process, compare its outputs with recorded ones, and time it.

    Args:
        golden: the recorded outputs; empty: it is timed only.
        memory_bytes: of address space that the child may take beyond what it has when the runtime's library is
            imported; None: no limit. Libraries of a GPU reserve more than they use.

    Raises:
        AgentError: as `try_load`; or the recorded tensors are not of this model (incompatible).
    """
    limits = Limits(timeout_s, None, _NICE, started)
    more = {"memory_bytes": memory_bytes, "timing": asdict(timing)}
    tensors = {"inputs": inputs, "outputs": golden}
    answer = _asked("gate", "while its gates were tried", path, runtime_name, options, tensors, limits, **more)
    return GateTrial(
        Trial(**answer["trial"]),
        answer["imported_bytes"],
        answer["libraries_bytes"],
        {row["output"]: OutputParity(**row) for row in answer["parity"]},
        LatencySummary(**answer["latency"]),
    )


def measure_phases(
    path: Path,
    runtime_name: str,
    options: LoadOptions,
    inputs: Mapping[str, NDArray[Any]],
    *,
    runs: int,
    timeout_s: float,
    started: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Time and memory of a first load, a warm one and of inference: docs/bench-report.md, `phases`.

    Raises:
        AgentError: as `try_load`.
    """
    limits = Limits(timeout_s, None, _NICE, started)
    # What the device learnt of this model before would make the first load a warm one.
    cold = replace(options, cache=None)
    tensors = {"inputs": inputs}
    return _asked("phases", "while its load was measured", path, runtime_name, cold, tensors, limits, runs=runs)


def profile_layers(
    path: Path,
    runtime_name: str,
    options: LoadOptions,
    inputs: Mapping[str, NDArray[Any]],
    *,
    runs: int,
    timeout_s: float,
) -> tuple[LayerTime, ...]:
    """What each layer takes, as `Runtime.layers` tells it.

    Raises:
        AgentError: as `try_load`; or the runtime cannot profile (incompatible).
    """
    limits = Limits(timeout_s, nice=_NICE)
    tensors = {"inputs": inputs}
    answer = _asked("layers", "while it profiled the model", path, runtime_name, options, tensors, limits, runs=runs)
    return tuple(LayerTime(row["name"], row["kind"], tuple(row["times_ms"])) for row in answer["layers"])


def _asked(
    task: str,
    doing: str,
    path: Path,
    runtime_name: str,
    options: LoadOptions,
    tensors: Mapping[str, Mapping[str, NDArray[Any]]],
    limits: Limits,
    **more: Any,
) -> dict[str, Any]:
    own = _OWN_HANDLE.fullmatch(str(path))
    told = asdict(options) | {"cache": None if options.cache is None else str(options.cache)}
    request = {"path": str(path if own else path.absolute()), "runtime": runtime_name, "options": told, **more}
    encoded = {what: encode_request(arrays) for what, arrays in tensors.items()}
    size = sum(len(header) + sum(memoryview(each).nbytes for each in buffers) for header, buffers in encoded.values())
    with scratch_folder(size) as folder:
        for what, (header, buffers) in encoded.items():
            (folder / f"{what}.json").write_bytes(header)
            with (folder / f"{what}.bin").open("wb") as file:
                file.writelines(buffers)
        ended = run_child(_ENTRY + task, folder, request, limits, (int(own[1]),) if own else ())
    answer = ended.answer
    if answer is None:
        raise _fallen(runtime_name, doing, ended, limits.timeout_s)
    if "error" in answer:
        raise _refused(answer["error"])
    return dict(answer)


def _refused(error: Mapping[str, str]) -> AgentError:
    out_of_memory = any(sign in error["message"] for sign in _OUT_OF_MEMORY)
    kind = "space" if out_of_memory else error["kind"]
    hint = "free memory on the device" if out_of_memory else error["hint"]
    return AgentError(error["message"], kind=kind, hint=hint)


def _fallen(runtime: str, doing: str, ended: Ended, timeout_s: float) -> AgentError:
    if ended.late:
        return AgentError(
            f"{runtime} was not done after {timeout_s:g} s {doing}", kind="busy", hint="try again when the device rests"
        )
    if ended.code == -signal.SIGKILL:
        return AgentError(
            f"{runtime} was killed {doing}, as the kernel does when memory runs out",
            kind="space",
            hint="free memory on the device, or make the model smaller",
        )
    said = " | ".join(ended.printed)[-300:]
    if any(sign in line for line in ended.printed for sign in _OUT_OF_MEMORY):
        return AgentError(f"{runtime} ran out of memory {doing}", kind="space", hint="free memory on the device")
    how = f"with signal {-ended.code} ({_signal(-ended.code)})" if ended.code < 0 else f"and ended with {ended.code}"
    return AgentError(
        f"{runtime} crashed {doing}, {how}",
        kind="incompatible",
        hint=f"build the model for this device's target again; it said: {said}" if said else "see the agent's log",
    )


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"

"""What binds a session of onnxruntime to buffers, and runs it.

Outputs whose sizes follow from the inputs' (fixed, or named by the same symbol) are bound to our memory too. Where a
model's output sizes depend on its data, onnxruntime allocates them in each run. What a model declares may be wrong;
onnxruntime then refuses our memory, and allocates those outputs from there on. In the arena that models share, such an
output would keep the block in which it lies for as long as its request lasts: there it is copied out within the run.

Where a provider computes in memory of its own, onnxruntime copies an input when it is bound (IOBinding::BindInput), and
not when it runs: there inputs are bound anew for each run.

Strings cannot be bound: a model that takes or gives them goes through `InferenceSession.run`.

What it costs (x86-64, onnxruntime 1.32, one node, median): `InferenceSession.run` with a numpy array 5.0 µs, a bare
bound run 2.5 µs, `submit` and `wait` 3.5 µs, with an output that onnxruntime allocates 7.2 µs; at 602 KB in and out
each takes 17 to 20 µs, which is the node itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import AgentError
from ..formats.providers import CPU
from ..formats.strings import as_text
from ..formats.tensors import BYTES, DYNAMIC, TensorSpec
from ..wire import WireError
from .base import Buffers, Shapes, Split
from .onnx_arena import SharedArena, shrinking
from .peak import Peak

__all__ = ["BoundBinding", "Served", "StringBinding", "first_line"]

_Result = TypeVar("_Result")

# Providers whose memory is a GPU's, from an arena.
_CUDA = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
# How onnxruntime 1.20 to 1.32 refuses memory that was made for another shape.
_OTHER_SHAPE = ("provided for output", "invalid dimensions for output", "shape verification failed")


@dataclass
class Served:
    """What all slots of a model share.

    shared: the arena that it computes in together with others; None: it has its own.
    misdeclared: outputs whose shape turned out to be another than the one that follows from what the model says.
    peak: by the input bytes of the runs.
    """

    session: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    shared: SharedArena | None = None
    misdeclared: set[str] = field(default_factory=set)
    peak: Peak = field(default_factory=Peak)

    def run(self, call: Callable[[Any], _Result], input_bytes: int) -> tuple[_Result, Split]:
        """Run `call`, which is given onnxruntime's RunOptions or None, and see that the arena gives memory back.

        Without its arena onnxruntime asks the system for every activation, from every thread: MobileNetV2 then runs a
        hundredth slower, and the process comes to twice the memory. With it, one large request would keep its peak for
        years. So a run gives back what an earlier one needed, when enough have passed that needed less. Who shares an
        arena has requests whose size is bounded.

        The time does not count what the run waited for while a shared arena gave memory back.
        """
        if self.shared is None:
            options = shrinking(self._arenas()) if self.peak.passed(input_bytes) else None
            return _timed(call, options)
        self.shared.enter()
        try:
            return _timed(call, None)
        finally:
            self.shared.leave()

    @property
    def elsewhere(self) -> bool:
        """Whether another provider than the CPU's takes part, which may have memory of its own."""
        return any(name != CPU for name in self.session.get_providers())

    def _arenas(self) -> list[str]:
        """The arenas of this session, as onnxruntime names them: the CPU's, and those of its GPUs."""
        given = self.session.get_provider_options()
        numbers = {given[name].get("device_id", "0") for name in _CUDA if name in given}
        return ["cpu:0", *(f"gpu:{number}" for number in sorted(numbers))]

    @property
    def has_strings(self) -> bool:
        """Whether anything it takes or gives is text."""
        return any(spec.datatype == BYTES for spec in (*self.inputs, *self.outputs))

    def output_shapes(self, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        """Those that follow from the inputs'.

        Raises:
            AgentError: two inputs have different sizes where the model has one name for both.
        """
        known: dict[str, int] = {}
        for spec in self.inputs:
            for symbol, dim in zip(spec.symbols, shapes[spec.name], strict=True):
                if symbol and known.setdefault(symbol, dim) != dim:
                    raise AgentError(f"inputs disagree about the size of dimension {symbol!r}")
        out: dict[str, tuple[int, ...]] = {}
        for spec in self.outputs:
            dims = [
                dim if dim != DYNAMIC else known.get(symbol)
                for dim, symbol in zip(spec.shape, spec.symbols, strict=True)
            ]
            # No dimensions: a scalar, or a shape that nobody knows. onnxruntime shows both alike.
            if dims and None not in dims and spec.name not in self.misdeclared:
                out[spec.name] = tuple(dim for dim in dims if dim is not None)
        return out


class BoundBinding:
    """An onnxruntime IOBinding over a slot's memory."""

    def __init__(self, served: Served, inputs: Buffers, results: Mapping[str, NDArray[Any]]) -> None:
        self.inputs = inputs
        self.outputs: Buffers = dict(results)
        self._served = served
        self._ours = dict(results)
        # onnxruntime gives outputs in the order in which their names were first bound.
        self._order = (*results, *(spec.name for spec in served.outputs if spec.name not in results))
        self._allocated = self._order[len(results) :]
        self.input_bytes = sum(array.nbytes for array in inputs.values())
        self._io = served.session.io_binding()
        self._run = partial(served.session.run_with_iobinding, self._io)
        self._elsewhere = served.elsewhere
        self._bind_inputs()
        for name, array in results.items():
            self._io.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        self._let_go()
        self._split = Split(0)

    @property
    def copied(self) -> tuple[str, ...]:
        """Tensors that do not lie in the slot's memory: onnxruntime allocates them in each run."""
        return self._allocated

    def forget(self) -> None:
        """Let go of what onnxruntime allocated for the last request: its size says nothing of the next."""
        self.outputs = self._ours

    def submit(self) -> None:
        """Execute once; the outputs then hold the results.

        Raises:
            AgentError: onnxruntime failed on these inputs.
        """
        try:
            self._execute()
        except Exception as error:  # onnxruntime raises many unrelated classes
            if not self._ours or not any(words in str(error) for words in _OTHER_SHAPE):
                raise _failed(error) from error
            self._take_back()

    def wait(self) -> Split:
        """The time the run took; it is over already."""
        return self._split

    def _bind_inputs(self) -> None:
        for name, array in self.inputs.items():
            self._io.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def _execute(self) -> None:
        if self._elsewhere:
            self._bind_inputs()
        allocated, self._split = self._served.run(self._once if self._allocated else self._run, self.input_bytes)
        if allocated:
            self.outputs = {**self._ours, **allocated}

    def _once(self, options: Any) -> Buffers:
        """Run, and take out what onnxruntime allocated."""
        try:
            self._run(options)
            values = self._io.get_outputs_as_ortvaluevector()
            first = len(self._order) - len(self._allocated)
            found = {name: values[first + index].numpy() for index, name in enumerate(self._allocated)}
            # A view, as of onnxruntime 1.32.
            return {name: array.copy() for name, array in found.items()} if self._served.shared is not None else found
        finally:
            self._let_go()

    def _let_go(self) -> None:
        # What onnxruntime allocated for one run has that run's size: for the next it must allocate again.
        for name in self._allocated:
            self._io.bind_output(name, "cpu")

    def _take_back(self) -> None:
        """Run with all outputs allocated by onnxruntime, and remember which are not what the model declares."""
        expected, self._ours, self._allocated = self._ours, {}, self._order
        self._let_go()
        try:
            self._execute()
        except Exception as error:  # onnxruntime raises many unrelated classes
            raise _failed(error) from error
        self._served.misdeclared.update(
            name for name, array in expected.items() if self.outputs[name].shape != array.shape
        )


class StringBinding:
    """A run of a session that takes or gives text, once bound and for one request."""

    def __init__(self, served: Served, inputs: Buffers, results: Mapping[str, NDArray[Any]]) -> None:
        self.inputs = inputs
        self.outputs: Buffers = dict(results)
        self._served = served
        self._ours = dict(results)
        self._split = Split(0)

    @property
    def copied(self) -> tuple[str, ...]:
        """Tensors that are copied on their way, or do not lie in the slot's memory: texts, and everything it gives."""
        texts = [spec.name for spec in self._served.inputs if spec.datatype == BYTES]
        return (*texts, *(spec.name for spec in self._served.outputs))

    def submit(self) -> None:
        """Execute once; the outputs then hold the results, text as `str`.

        Raises:
            AgentError: a string is not UTF-8 (kind bad_input), or onnxruntime failed on these inputs.
        """
        feed = {name: _text(name, array) if array.dtype == object else array for name, array in self.inputs.items()}
        try:
            self.outputs, self._split = self._served.run(partial(self._once, feed), sum(map(_bytes, feed.values())))
        except Exception as error:  # onnxruntime raises many unrelated classes
            raise _failed(error) from error

    def wait(self) -> Split:
        """The time the run took; it is over already."""
        return self._split

    def _once(self, feed: Buffers, options: Any) -> Buffers:
        values = self._served.session.run([spec.name for spec in self._served.outputs], feed, options)
        return {
            spec.name: self._settled(spec, np.asarray(value))
            for spec, value in zip(self._served.outputs, values, strict=True)
        }

    def _settled(self, spec: TensorSpec, value: NDArray[Any]) -> NDArray[Any]:
        ours = self._ours.get(spec.name)
        if ours is None or ours.shape != value.shape:
            return value.astype(object if spec.datatype == BYTES else value.dtype)
        ours[...] = value
        return ours


def _timed(call: Callable[[Any], _Result], options: Any) -> tuple[_Result, Split]:
    begin = time.perf_counter_ns()
    result = call(options)
    return result, Split(time.perf_counter_ns() - begin)


def _bytes(array: NDArray[Any]) -> int:
    return sum(map(len, array.ravel().tolist())) if array.dtype == object else array.nbytes


def _text(name: str, array: NDArray[Any]) -> NDArray[Any]:
    try:
        return as_text(array)
    except WireError as error:
        raise AgentError(
            f"input {name!r}: {error}", kind="bad_input", hint="onnxruntime takes UTF-8 text alone"
        ) from error


def _failed(error: Exception) -> AgentError:
    kind = "bad_input" if "INVALID_ARGUMENT" in str(error) else "internal"
    return AgentError(f"inference failed: {first_line(error)}", kind=kind, hint="see the agent's log")


def first_line(error: Exception) -> str:
    """What a foreign exception says first; its class when it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__

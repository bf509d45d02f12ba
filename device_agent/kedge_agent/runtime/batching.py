"""Dynamic batching: requests that come at nearly the same time are joined along their first dimension and run as one.

The first request of a batch leads it. It waits a little for others, then for its turn to compute, and takes whoever has
come until then: on a busy model batches fill while the run before them goes on. Rows are copied into a slot of the
batch's own and out of it again, which pays where one run of many samples costs less than many runs of one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from ..errors import AgentError
from .base import Binding, LoadedModel, Shapes, Slot, Split
from .turns import late_error

__all__ = ["Batcher", "Joined"]

Key = tuple[tuple[str, tuple[int, ...]], ...]


class Joined:
    """What a run was, for one of its members. led: samples of the run, told to its leader alone, else 0."""

    __slots__ = ("begin_ns", "end_ns", "led", "members", "split")

    def __init__(self, members: int, led: int, begin_ns: int, end_ns: int, split: Split) -> None:
        self.members = members
        self.led = led
        self.begin_ns = begin_ns
        self.end_ns = end_ns
        self.split = split


class _Batch:
    def __init__(self) -> None:
        self.members: list[Binding] = []
        self.rows = 0
        self.shut = False
        self.full = threading.Event()
        self.done = threading.Event()
        self.error: AgentError | None = None
        self.span: tuple[int, int, Split] = (0, 0, Split(0))


class Batcher:
    """Joins runs of one model.

    Args:
        model: its first dimensions count samples.
        most: samples of a run.
        delay_us: how long the first request of a batch waits for others.
        turn: a context in which the model may be run, taken by the given moment of `time.monotonic`.
    """

    def __init__(
        self,
        model: LoadedModel,
        most: int,
        delay_us: int,
        turn: Callable[[float], AbstractContextManager[None]],
    ) -> None:
        self._model = model
        self._most = most
        self._delay_s = delay_us / 1e6
        self._turn = turn
        self._guard = threading.Lock()
        self._open: dict[Key, _Batch] = {}
        self._slots: list[Slot] = []

    def run(self, binding: Binding, deadline: float) -> Joined | None:
        """Run a binding together with others; None when it cannot be joined and is yet to be run alone.

        Raises:
            AgentError: the turn did not come in time (kind busy).
        """
        rows = self._rows(binding)
        if rows is None or rows >= self._most:
            return None
        batch, leads = self._join(binding, rows)
        if leads:
            self._lead(batch, binding, deadline)
        elif not batch.done.wait(max(0.0, deadline - time.monotonic())):
            self._leave(batch, binding, rows)
            batch.done.wait()
        if batch.error is not None:
            raise batch.error
        begin, end, split = batch.span
        if not end:
            return None
        return Joined(len(batch.members), batch.rows if leads else 0, begin, end, split)

    def close(self) -> None:
        """Give the buffers back."""
        while self._slots:
            self._slots.pop().close()

    def _rows(self, binding: Binding) -> int | None:
        """Samples of a binding; None where its tensors do not agree about them, or an output is not sized yet."""
        if len(binding.outputs) < len(self._model.outputs):
            return None
        tensors = [*binding.inputs.values(), *binding.outputs.values()]
        sizes = {array.shape[0] if array.ndim else None for array in tensors}
        (rows,) = sizes if len(sizes) == 1 else (None,)
        return rows or None

    def _join(self, binding: Binding, rows: int) -> tuple[_Batch, bool]:
        key = _key(binding)
        with self._guard:
            batch = self._open.get(key)
            leads = batch is None or batch.rows + rows > self._most
            if batch is None or leads:
                if batch is not None:
                    batch.full.set()
                batch = self._open[key] = _Batch()
            batch.members.append(binding)
            batch.rows += rows
            if batch.rows == self._most:
                self._shut(key, batch)
            return batch, leads

    def _leave(self, batch: _Batch, binding: Binding, rows: int) -> None:
        """Take a member out whose deadline has passed, unless its batch is being run.

        Raises:
            AgentError: it is out (kind busy).
        """
        with self._guard:
            if batch.shut:
                return
            batch.members.remove(binding)
            batch.rows -= rows
        raise late_error()

    def _shut(self, key: Key, batch: _Batch) -> None:
        batch.shut = True
        if self._open.get(key) is batch:
            del self._open[key]
        batch.full.set()

    def _lead(self, batch: _Batch, binding: Binding, deadline: float) -> None:
        key = _key(binding)
        try:
            batch.full.wait(min(self._delay_s, max(0.0, deadline - time.monotonic())))
            with self._turn(deadline):
                with self._guard:
                    self._shut(key, batch)
                self._run(batch)
        except AgentError as error:
            if time.monotonic() >= deadline:
                # The leader's own: the others have deadlines of their own, and run alone.
                raise
            batch.error = error
        except BaseException:
            batch.error = AgentError("the run of which this request was a part failed", kind="internal")
            raise
        finally:
            with self._guard:
                self._shut(key, batch)
            batch.done.set()

    def _run(self, batch: _Batch) -> None:
        begin = time.perf_counter_ns()
        if len(batch.members) == 1:
            (only,) = batch.members
            only.submit()
            split = only.wait()
            batch.span = (begin, time.perf_counter_ns(), split)
            return
        with self._guard:
            kept = self._slots.pop() if self._slots else None
        slot = kept or self._model.slot()
        try:
            batch.span = self._run_joined(batch, slot, begin)
        finally:
            with self._guard:
                self._slots.append(slot)

    def _run_joined(self, batch: _Batch, slot: Slot, begin: int) -> tuple[int, int, Split]:
        first = batch.members[0]
        shapes: Shapes = {name: (batch.rows, *array.shape[1:]) for name, array in first.inputs.items()}
        try:
            joined = slot.bind(shapes)
            if not _joinable(joined, first, batch.rows):
                return begin, 0, Split(0)
            _copy(batch.members, joined, inwards=True)
            joined.submit()
            split = joined.wait()
            # A model may declare a shape that its outputs turn out not to have.
            if not _joinable(joined, first, batch.rows):
                return begin, 0, Split(0)
        except AgentError:
            # One member may have spoilt it for all: each is told by a run of its own.
            return begin, 0, Split(0)
        _copy(batch.members, joined, inwards=False)
        return begin, time.perf_counter_ns(), split


def _key(binding: Binding) -> Key:
    return tuple((name, array.shape[1:]) for name, array in binding.inputs.items())


def _joinable(joined: Binding, member: Binding, rows: int) -> bool:
    """Whether each output has a row for each sample, like those of a member."""
    return all(
        name in joined.outputs and joined.outputs[name].shape == (rows, *array.shape[1:])
        for name, array in member.outputs.items()
    )


def _copy(members: list[Binding], joined: Binding, *, inwards: bool) -> None:
    row = 0
    for member in members:
        mine: dict[str, Any] = dict(member.inputs if inwards else member.outputs)
        whole = joined.inputs if inwards else joined.outputs
        rows = next(iter(member.inputs.values())).shape[0]
        for name, array in mine.items():
            if inwards:
                whole[name][row : row + rows] = array
            else:
                array[...] = whole[name][row : row + rows]
        row += rows

"""One arena for sessions of onnxruntime on the CPU of this process, and when it gives memory back.

Left to itself, each session has an arena of its own and keeps in it what its largest run needed, though models seldom
compute at the same moment. In one arena, what one model computes in serves the next as well. tools/arena.py measures
what that saves and costs; docs/agent.md has the figures.

Shared by models whose inputs are bounded: of fixed sizes, or of a batch that is limited. Elsewhere there are peaks
to give back, and onnxruntime holds the arena's lock while it returns a block to the system, which takes the longer the
larger it is: whoever computes then would wait for another model's peak. With an arena of its own, the model whose peak
it was waits.

Three things follow from sharing:

- Weights must lie outside the arena (`session.use_device_allocator_for_initializers`): in it, those of a model that is
  loaded later would keep all of the block in which they lie.
- A block can go only while nothing lies in it. With an arena of its own, a model's block is empty once its run is over;
  here another model may compute in it. So the arena shrinks while nothing computes, and what onnxruntime allocates for
  a run's outputs is not left in it.
- What a model that was unloaded computed in is still there, and is given back when it goes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from typing import Any

__all__ = ["SharedArena", "arena_of_process", "shrinking"]

# How long a moment in which nothing computes is waited for before it is made: until then it costs nobody anything.
_PAUSE_S = 1.0
# For how long no run may begin for it. Most models' runs are shorter; where they are not, it is tried again later.
_HUSH_S = 0.05

# An ONNX model (IR version 7, opset 13) of one node, y = Identity(x), of one float: shrinking takes a run.
_IDENTITY = bytes.fromhex(
    "08073a370a100a017812017922084964656e74697479"
    "1201675a0f0a0178120a0a08080112040a020801"
    "620f0a0179120a0a08080112040a0208014202100d"
)


def shrinking(arenas: Sequence[str]) -> Any:
    """Options of a run after which these arenas, as onnxruntime names them (`cpu:0`), give back empty blocks."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", ";".join(arenas))
    return options


class SharedArena:
    """The arena that onnxruntime has for this process, and who computes in it.

    Every run stands between `enter` and `leave`.
    """

    def __init__(self) -> None:
        # The lock of every run: Condition's own `with` is of Python, and takes half a microsecond.
        self._guard = threading.Lock()
        self._changed = threading.Condition(self._guard)
        self._inside = 0
        self._hushed = False
        self._due_at: float | None = None
        self._pause_s = _PAUSE_S

    def share(self, settings: Any) -> None:
        """Have the session that is made with these SessionOptions compute here."""
        settings.add_session_config_entry("session.use_env_allocators", "1")
        settings.add_session_config_entry("session.use_device_allocator_for_initializers", "1")

    def enter(self) -> None:
        """A run begins; at once, unless memory is to be given back.

        Then it waits for the runs in progress, 50 ms at most, and while the system takes the memory.
        """
        with self._guard:
            while self._hushed:
                self._changed.wait()
            self._inside += 1

    def leave(self) -> None:
        """It has ended."""
        with self._guard:
            self._inside -= 1
            if self._hushed or self._due_at is not None:
                self._settle()

    def give_back(self) -> None:
        """Give back all that no run is using, now or soon: a model has gone."""
        with self._guard:
            if self._due_at is None:
                self._due_at = time.monotonic() + self._pause_s
            self._settle()

    def _settle(self) -> None:
        if self._hushed:
            if self._inside == 0:
                self._changed.notify_all()
            return
        if self._due_at is None:
            return
        if self._inside and time.monotonic() < self._due_at:
            return
        self._hushed = True
        try:
            if self._changed.wait_for(lambda: self._inside == 0, _HUSH_S):
                self._shrink()
                self._due_at, self._pause_s = None, _PAUSE_S
            else:
                # Some run is long: the longer it is tried, the less it may cost the others.
                self._pause_s *= 2
                self._due_at = time.monotonic() + self._pause_s
        finally:
            self._hushed = False
            self._changed.notify_all()

    def _shrink(self) -> None:
        import numpy as np

        x, y = np.zeros((2, 1), np.float32)
        # No request may fail because memory could not be given back; onnxruntime raises many unrelated classes.
        with contextlib.suppress(Exception):
            session = self._identity()
            binding = session.io_binding()
            binding.bind_input("x", "cpu", 0, np.float32, x.shape, x.ctypes.data)
            # To memory of ours: an output in the arena would keep the very block in which it lies.
            binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
            session.run_with_iobinding(binding, shrinking(["cpu:0"]))

    def _identity(self) -> Any:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        settings.log_severity_level = 4
        self.share(settings)
        return onnxruntime.InferenceSession(_IDENTITY, settings, providers=["CPUExecutionProvider"])

    def open(self) -> None:
        """Have the first block made, which onnxruntime never gives back, while it is of the least size.

        Raises:
            Exception: of onnxruntime.
        """
        import numpy as np

        self._identity().run(None, {"x": np.zeros(1, np.float32)})


_guard = threading.Lock()
_arena: list[SharedArena | None] = []


def arena_of_process() -> SharedArena | None:
    """The one arena of this process, made when it is first asked for; None where this onnxruntime makes none."""
    with _guard:
        if not _arena:
            _arena.append(_registered())
        return _arena[0]


def _registered() -> SharedArena | None:
    import onnxruntime

    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    # No limit; blocks of powers of two; the first, which is kept for good, of the least size.
    rules = onnxruntime.OrtArenaCfg(0, 0, 256, -1)
    arena = SharedArena()
    try:
        onnxruntime.create_and_register_allocator(memory, rules)
        arena.open()
    except Exception:  # whatever a build raises that was made without it: sessions then have arenas of their own
        return None
    return arena

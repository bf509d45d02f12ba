"""The seam through the real `cuda.bindings`, over a driver without a GPU that is compiled here: calls, flags, ends."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kedge_agent.errors import AgentError
from kedge_agent.runtime import cuda
from kedge_agent.runtime.cuda import Resource, properties_of
from tests.support.environment import lacks

DRIVER = Path(__file__).parents[1] / "support" / "libcuda.c"

PROGRAM = """
import ctypes, json, threading
from kedge_agent.errors import AgentError
from kedge_agent.runtime.cuda_bindings import BindingsCuda

stub = ctypes.CDLL("libcuda.so.1")
count = lambda name: ctypes.c_int.in_dll(stub, name).value
said = {}
cuda = BindingsCuda.open()
said["device"], said["graphs"], said["binding"] = cuda.device.to_json(), cuda.graphs, cuda.binding
held, flags = [], {}

def made(name, make, *arguments):
    held.append(make(*arguments))
    flags[name] = count("stub_flags")
    return held[-1]

def work():
    with cuda.current():
        stream = made("stream", cuda.stream)
        begin, end = cuda.event(), cuda.event()
        pinned = made("pinned", cuda.pinned, 1024)
        managed = made("managed", cuda.managed, 1024)
        device = cuda.memory(1024)
        held.extend([begin, end, device])
        pinned.array[:] = 7
        begin.record(stream)
        stream.h2d(device.address, pinned.array[:512])
        end.record(stream)
        stream.wait(end)
        stream.d2h(pinned.array[512:], device.address)
        end.synchronise()
        stream.synchronise()
        said["copied"] = pinned.array[512:].tolist() == [7] * 512
        said["elapsed"] = end.elapsed_ms(begin) >= 0
        said["mapped"] = pinned.address == pinned.array.ctypes.data
        said["free"] = cuda.free_bytes()
        graph = cuda.capture(stream, lambda: None)
        graph.launch(stream)
        graph.close()
        flags["capture"] = count("stub_flags")
        try:
            cuda.capture(stream, lambda: 1 / 0)
        except ZeroDivisionError:
            said["capture ended"] = True
        for name, fail in (("space", lambda: cuda.memory(1 << 40)), ("host", lambda: device.array)):
            try:
                fail()
            except AgentError as error:
                said[name] = [error.kind, error.message]
    try:
        cuda.stream()
    except AgentError as error:
        said["no context"] = error.message

thread = threading.Thread(target=work)
thread.start()
thread.join()
said["open"] = count("stub_open")
for each in held:
    each.close()
    each.close()
try:
    held[0].synchronise()
except AgentError as error:
    said["closed"] = error.message
said["left"], said["depth"], said["flags"] = count("stub_open"), count("stub_depth"), flags
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process says that uses all of the seam."""
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        lacks("cuda-bindings", "no cuda.bindings on this machine (pip install cuda-bindings)")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        lacks("cuda-bindings", "no C compiler on this machine (Debian: gcc)")
    folder = tmp_path_factory.mktemp("driver")
    library = folder / "libcuda.so.1"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", "-o", library, DRIVER, "-ldl"], check=True
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_gpu_is_described_by_the_drivers_attributes(said: dict[str, Any]) -> None:
    assert said["device"] == {
        "compute_capability": "8.7",
        "integrated": True,
        "unified_addressing": True,
        "can_map_host_memory": True,
        "managed_memory": True,
        "concurrent_managed_access": False,
        "pageable_memory_access": False,
    }
    assert said["binding"].startswith("cuda.bindings ")


def test_bytes_go_to_the_device_and_back(said: dict[str, Any]) -> None:
    assert said["copied"]
    assert said["elapsed"]
    assert said["mapped"]
    assert said["free"] == 5


def test_streams_do_not_wait_for_the_default_stream_and_memory_has_the_flags_it_needs(said: dict[str, Any]) -> None:
    # CU_STREAM_NON_BLOCKING, CU_MEMHOSTALLOC_DEVICEMAP, CU_MEM_ATTACH_GLOBAL, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL.
    assert said["flags"] == {"stream": 1, "pinned": 2, "managed": 1, "capture": 1}


def test_errors_are_ours_and_want_of_memory_has_its_kind(said: dict[str, Any]) -> None:
    assert said["space"][0] == "space"
    assert "CUDA_ERROR_OUT_OF_MEMORY" in said["space"][1]
    assert said["host"] == ["internal", "the host does not see device memory"]
    assert "CUDA_ERROR_INVALID_CONTEXT" in said["no context"]


def test_what_one_thread_made_another_gives_back_and_using_it_then_is_an_error(said: dict[str, Any]) -> None:
    assert said["open"] == 6
    assert said["capture ended"]
    assert (said["left"], said["depth"]) == (0, 0)
    assert said["closed"] == "a CUDA stream was used after it was closed"


def test_properties_say_which_ways_of_moving_tensors_there_are() -> None:
    def device(**values: int) -> cuda.DeviceProperties:
        return properties_of(lambda name: values.get(name, 0))

    assert device(COMPUTE_CAPABILITY_MAJOR=11).compute_capability == "11.0"
    assert "canMapHostMemory" in str(device().lacking("mapped"))
    assert "managedMemory" in str(device().lacking("managed"))
    assert "concurrentManagedAccess" in str(device(MANAGED_MEMORY=1).lacking("managed"))
    both = device(MANAGED_MEMORY=1, CONCURRENT_MANAGED_ACCESS=1, CAN_MAP_HOST_MEMORY=1)
    assert [both.lacking(way) for way in ("copy", "mapped", "managed")] == [None] * 3


def test_without_any_binding_the_error_names_both_and_says_what_to_install() -> None:
    def absent(name: str) -> Any:
        def way() -> Any:
            raise ModuleNotFoundError(f"No module named {name!r}")

        return way

    with pytest.raises(AgentError, match=r"'pycuda'.*'cuda'") as caught:
        cuda._first_of(absent("pycuda"), absent("cuda"))
    assert caught.value.kind == "incompatible"
    assert "pip install pycuda" in caught.value.hint


def test_a_resource_is_released_once_and_by_its_context_manager() -> None:
    released = []

    class Thing(Resource):
        def _release(self) -> None:
            released.append(1)

        def use(self) -> None:
            self._check()

    with Thing() as thing:
        thing.use()
    thing.close()
    assert released == [1]
    with pytest.raises(AgentError, match="a CUDA thing was used after it was closed"):
        thing.use()


def test_what_cannot_be_freed_is_logged_and_counts_as_closed(caplog: pytest.LogCaptureFixture) -> None:
    class Thing(Resource):
        def _release(self) -> None:
            raise AgentError("CUDA failed: freeing what the GPU held: CUDA_ERROR_ILLEGAL_ADDRESS", kind="internal")

    thing = Thing()
    thing.close()
    thing.close()
    assert [record.getMessage() for record in caplog.records] == [
        "CUDA failed: freeing what the GPU held: CUDA_ERROR_ILLEGAL_ADDRESS"
    ]

"""What a daemon loads that has nothing to do yet: its memory is the model's, on a device that has little."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# What numpy itself loads is not the agent's to choose.
_SCRIPT = """
import sys, numpy
its = set(sys.modules)
import kedge_agent.cli, kedge_agent.daemon
from kedge_agent.runtime.table import RUNTIMES, runtime_named
for name in RUNTIMES:
    runtime_named(name)
print(*set(sys.modules) - its)
"""

_FREED = """
import ctypes, sys, time
from pathlib import Path
from types import SimpleNamespace
from kedge_agent.measure.memory import read_memory
from kedge_agent.serving.housekeeping import tidy_later
from kedge_agent.store.layout import Layout
from kedge_agent.store.rules import ReleaseRules

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
blocks = [libc.malloc(4000) for _ in range(10_000)]
for block in blocks:
    ctypes.memset(block, 1, 4000)
in_use = libc.malloc(4000)
for block in blocks:
    libc.free(block)
before = read_memory().rss_bytes
tidy_later(SimpleNamespace(layout=Layout(Path(sys.argv[1])), rules=ReleaseRules, repository=SimpleNamespace(live=list)))
end = time.monotonic() + 20
while before - read_memory().rss_bytes < 20_000_000 and time.monotonic() < end:
    time.sleep(0.02)
print(before - read_memory().rss_bytes)
"""


@pytest.fixture(scope="module")
def loaded() -> frozenset[str]:
    """Modules of a daemon that is about to serve."""
    said = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True).stdout
    return frozenset(said.split())


def test_a_daemon_loads_no_library_that_only_a_deploy_or_an_upgrade_needs(loaded: frozenset[str]) -> None:
    # The first is OpenSSL: 3.5 MB.
    unwanted = {"_hashlib", "decimal", "email", "http.client", "importlib.metadata", "random", "statistics", "tempfile"}
    assert "kedge_agent.serving.server" in loaded
    assert not unwanted & loaded


def test_a_daemon_loads_no_runtime_s_library(loaded: frozenset[str]) -> None:
    assert {"kedge_agent.runtime.onnxruntime", "kedge_agent.runtime.tensorrt"} <= loaded
    assert not {"onnxruntime", "tensorrt", "tensorrt_rtx", "pycuda", "cuda"} & loaded


def test_a_daemon_loads_what_pushes_upgrades_trials_and_engines_need_when_there_is_one(loaded: frozenset[str]) -> None:
    unwanted = (
        "diagnose.facts",
        "engine.apart",
        "measure.apart",
        "runtime.tensorrt_model",
        "standby",
        "store.accept",
        "store.agents",
        "store.receive",
        "store.signers",
    )
    assert not {f"kedge_agent.{name}" for name in unwanted} & loaded


def test_memory_that_was_freed_below_what_is_in_use_is_given_back_to_the_system(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _FREED, str(tmp_path)]
    given_back = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    # Of 40 MB.
    assert given_back > 20_000_000

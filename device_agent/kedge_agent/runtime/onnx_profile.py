"""onnxruntime's own profile of a session, read as times of nodes.

The file is a JSON list in the trace-event format, one event a line (checked: 1.23 and 1.32), in the order in which they
ended: the nodes of a run, then the run. It is read line by line, because it has half a kilobyte for each node and run.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from ..errors import AgentError
from ..wire import WireError, parse_json
from .base import LayerTime

__all__ = ["MAX_PROFILED_RUNS", "read_profile"]

MAX_PROFILED_RUNS = 10_000

_MAX_BYTES = 1 << 30
_MAX_LINE_BYTES = 1 << 18
_NODE_SUFFIX = "_kernel_time"


def read_profile(path: Path, runs: int) -> tuple[LayerTime, ...]:
    """What each node took in each of the last `runs` runs, in the order in which they first ended.

    A node that ran more than once in a run, in a loop, has the sum; one that did not run has 0. A node that holds a
    graph (If, Loop, Scan) includes what is in it.

    Raises:
        AgentError: the file holds fewer runs, because onnxruntime drops events beyond a million (kind too_large), or is
            not such a file (kind internal).
    """
    per_run: list[dict[tuple[str, str], int]] = []
    current: dict[tuple[str, str], int] = defaultdict(int)
    for event in _events(path):
        name = event["name"]
        if event.get("cat") == "Node" and name.endswith(_NODE_SUFFIX):
            kind = event.get("args", {}).get("op_name", "")
            current[name.removesuffix(_NODE_SUFFIX), str(kind)] += event["dur"]
        elif name == "model_run":
            per_run.append(current)
            current = defaultdict(int)
    if len(per_run) < runs or not all(per_run):
        raise AgentError(
            f"onnxruntime's profile holds {sum(map(bool, per_run))} of {runs} runs",
            kind="too_large",
            hint="profile fewer runs",
        )
    wanted = per_run[len(per_run) - runs :]
    nodes = dict.fromkeys(node for run in wanted for node in run)
    return tuple(LayerTime(name, kind, tuple(run.get((name, kind), 0) / 1e3 for run in wanted)) for name, kind in nodes)


def _events(path: Path) -> Any:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise AgentError(
                f"onnxruntime's profile has {path.stat().st_size} bytes", kind="too_large", hint="profile fewer runs"
            )
        with path.open("rb") as handle:
            while line := handle.readline(_MAX_LINE_BYTES):
                text = line.strip().rstrip(b",")
                if text.startswith(b"{"):
                    event = parse_json(text, floats=True)
                    if type(event.get("name")) is str and type(event.get("dur")) is int:
                        yield event
    except (OSError, WireError, AttributeError) as error:
        raise AgentError(f"onnxruntime's profile cannot be read: {error}", kind="internal") from error

"""What the agent of a simulated device answers (docs/wire-protocol.md), and what is on its disk.

Its figures are made up, and always the same for a device: they say nothing of any device.
"""

from __future__ import annotations

import json
import os
import platform
import re
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kedge_agent.formats.manifest import Manifest

__all__ = ["AnswerError", "Disk", "answer"]

_VERSION = "0.1.0"
_DEPLOY = re.compile(r"/kedge/v1/deploys/([0-9a-f]{64})(?:\?.*)?")
_ROLLBACK = re.compile(r"/kedge/v1/models/([^/]+)/rollback")


class AnswerError(Exception):
    """An answer that is an error, of one of `wire.FAULTS`."""

    def __init__(self, kind: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.hint = hint


@dataclass
class Disk:
    """What a device keeps. fault: what is broken there; None: nothing.

    accepted: releases that were pushed, as `Deployed` describes a side. deploys: how each ended. live, previous: by
    model. objects: hashes of the files that it has.
    """

    path: Path
    fault: str | None = None
    accepted: dict[str, dict[str, Any]] = field(default_factory=dict)
    deploys: dict[str, dict[str, Any]] = field(default_factory=dict)
    live: dict[str, str] = field(default_factory=dict)
    previous: dict[str, str] = field(default_factory=dict)
    objects: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path, device: str) -> Disk:
        """A device that nobody has been to has nothing."""
        path = folder / f"{device}.json"
        try:
            return cls(path, **json.loads(path.read_bytes()))
        except FileNotFoundError:
            return cls(path)

    def write(self) -> None:
        """Keep it."""
        body = asdict(self)
        del body["path"]
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(body))
        partial.replace(self.path)

    @property
    def p99_ms(self) -> float:
        """Of every model, from 1 to 2 by the device's name."""
        return 1 + zlib.crc32(os.fsencode(self.path.stem)) / 0xFFFFFFFF

    def accept(self, manifest: Manifest) -> None:
        """A release has arrived."""
        self.accepted[manifest.digest] = {
            "model": manifest.model,
            "release": manifest.digest,
            "version": manifest.version,
            "runtime": manifest.artefacts[0].runtime,
            "precision": manifest.artefacts[0].precision,
            "size_bytes": manifest.total_bytes,
            "p99_ms": self.p99_ms,
            "peak_bytes": None,
        }
        self.objects = sorted({*self.objects, *(entry.sha256 for entry in manifest.files)})
        self.write()


def answer(disk: Disk, method: str, target: str, body: Any) -> Any:
    """The JSON of an answer, or its text.

    Raises:
        AnswerError: it is an error.
    """
    if (method, target) == ("GET", "/kedge/v1/info"):
        return _info(disk)
    if (method, target) == ("GET", "/kedge/v1/status"):
        return {"ready": True, "safe_mode": None, "models": [_row(disk, model) for model in sorted(disk.live)]}
    if (method, target) == ("POST", "/kedge/v1/deploys"):
        return _deploy(disk, str(body["release"]))
    if method == "GET" and (found := _DEPLOY.fullmatch(target)):
        return _told(disk, found[1])
    if method == "POST" and (found := _ROLLBACK.fullmatch(target)):
        return _rollback(disk, found[1])
    if (method, target) == ("GET", "/metrics"):
        return _metrics(disk)
    if method == "GET" and target.startswith("/kedge/v1/history"):
        return {"entries": []}
    raise AnswerError("not_found", f"no such resource: {method} {target}")


def _info(disk: Disk) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "protocols": [1, 2],
        "python": platform.python_version(),
        "os": platform.system().lower(),
        "arch": platform.machine(),
        "cores": 1,
        "threads": 1,
        "pid": 1,
        "uid": 1000,
        "uptime_s": 1.0,
        "state": str(disk.path),
        "settings": {"file": "/etc/kedge/agent.json", "problem": None},
        "signatures": {
            "required": False,
            "file": "/etc/kedge/allowed_signers",
            "threshold": 1,
            "problem": None,
            "binding": None,
        },
        "runtimes": {"onnxruntime": "1.23.2", "tensorrt": None, "tensorrt-rtx": None},
        "compilers": {},
        "gpu": None,
        "compatible": [],
        "l4t": None,
        "memory": {"rss_bytes": None, "pss_bytes": None, "peak_rss_bytes": None, "available_bytes": None},
    }


def _row(disk: Disk, model: str) -> dict[str, Any]:
    side = disk.accepted[disk.live[model]]
    return {
        "model": model,
        "state": "serving",
        **{name: side[name] for name in ("release", "version", "runtime", "precision")},
        "current": disk.live[model],
        "previous": disk.previous.get(model),
        "problem": None,
        "version_floor": side["version"],
        "downgrade_serial": 0,
        "signed": False,
        "probation": None,
        "last": None,
    }


def _deploy(disk: Disk, digest: str) -> dict[str, Any]:
    side = disk.accepted.get(digest)
    if side is None:
        raise AnswerError("not_found", f"release {digest[:12]} was not pushed", "push it first")
    model = side["model"]
    before = disk.live.get(model)
    refused = disk.fault == "gate"
    disk.deploys = {digest: {"refused": refused, "before": before}}
    if not refused and before != digest:
        disk.live[model] = digest
        if before is not None:
            disk.previous[model] = before
    disk.write()
    return {"release": digest, "model": model, "state": "running"}


def _told(disk: Disk, digest: str) -> dict[str, Any]:
    deploy = disk.deploys.get(digest)
    if deploy is None:
        raise AnswerError("not_found", f"no deploy of release {digest[:12]} is known here")
    refused, before, after = deploy["refused"], deploy["before"], disk.accepted[digest]
    gates = _gates(disk, refused=refused)
    steps = ("stage", "gate") if refused else ("stage", "gate", "switch", "probation", "done")
    events: list[dict[str, Any]] = [{"event": "step", "step": step} for step in steps]
    events[2:2] = gates
    probation = {"elapsed_s": 0.0, "seconds": 0, "requests": 0, "errors": 0, "p99_ms": None}
    error = {
        "error": f"release {digest[:12]} was refused: latency gate: p99 of 250 runs is {disk.p99_ms:.3f} ms",
        "hint": "the live release serves on; build for this device's target, or loosen the gate in the build",
        "kind": "gate",
    }
    result = {
        **{name: after[name] for name in ("model", "release", "version")},
        "previous": disk.previous.get(after["model"]),
        "load": {"load_ms": 1.0},
        "parity": gates[0]["figures"]["outputs"],
        "gates": gates,
        "probation": {**probation, "cut_by": None},
        "before": None if before is None else _side(disk, before),
        "after": _side(disk, digest),
    }
    return {
        "release": digest,
        "model": after["model"],
        "step": steps[-1],
        "events": events,
        "next": len(events),
        **({"state": "refused", "result": None, "error": error} if refused else {}),
        **({} if refused else {"state": "done", "result": result, "error": None}),
    }


def _side(disk: Disk, digest: str) -> dict[str, Any]:
    return {name: value for name, value in disk.accepted[digest].items() if name != "model"}


def _gates(disk: Disk, *, refused: bool) -> list[dict[str, Any]]:
    output = {"output": "logits", "cosine": 1.0, "max_abs_error": 0.0, "relative_error": 0.0}
    times = {"runs": 250, "median_ms": 1.0, "p99_ms": disk.p99_ms, "live_p99_ms": None, "p99_ratio": None}
    told = (
        ("parity", True, {"outputs": [output]}, {"outputs": {}}),
        ("latency", not refused, times, {"p99_ms": 0.5 if refused else None, "p99_ratio_max": None}),
        ("memory", True, {"peak_bytes": None, "model_bytes": None, "libraries_bytes": None}, {"peak_bytes": None}),
    )
    return [
        {"event": "gate", "gate": gate, "passed": passed, "figures": figures, "limits": limits}
        for gate, passed, figures, limits in told
    ]


def _rollback(disk: Disk, model: str) -> dict[str, Any]:
    previous = disk.previous.get(model)
    if previous is None:
        raise AnswerError("not_found", f"{model} has no release to go back to")
    disk.previous[model], disk.live[model] = disk.live[model], previous
    disk.deploys = {}
    disk.write()
    side = disk.accepted[previous]
    return {
        "model": model,
        "release": previous,
        "version": side["version"],
        "previous": disk.previous[model],
        "parity": None,
        "load": {},
    }


def _metrics(disk: Disk) -> str:
    lines = []
    for model, digest in sorted(disk.live.items()):
        of = f'model="{model}",version="{disk.accepted[digest]["version"]}"'
        lines += [
            f"nv_inference_request_success{{{of}}} 100",
            f'nv_inference_request_failure{{{of},reason="internal"}} 0',
            f'kedge_inference_last_minute_seconds{{{of},part="compute",quantile="0.99"}} {disk.p99_ms / 1e3}',
            f"kedge_inference_last_minute_requests{{{of}}} 100",
        ]
    return "".join(f"{line}\n" for line in lines)

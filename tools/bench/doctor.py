"""How long `kedge doctor` takes, from the command to its last line: of this machine, and of a device over OpenSSH.

    python tools/bench/doctor.py [--runs 10] [--smoke] [--out FILE.json]

Both devices are healthy and serve a small model. Over SSH it is a real sshd on loopback, so that the way there costs
what keys, channels and processes cost, and nothing of a network. `device` is what the device took of it to tell its
facts, by its own clock; half a second of that is the window over which swapping and processes are watched.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from facts import conditions, not_measured

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.conftest import make_release
from tests.support.sshd import make_sshd, remove_sshd

GOAL_S = 5.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="of each device (default: 10)")
    parser.add_argument("--smoke", action="store_true", help="each device twice")
    parser.add_argument("--out", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.runs = 2
    started = os.getloadavg()
    try:
        with tempfile.TemporaryDirectory(prefix="kedge-bench-") as name:
            devices = measured(Path(name), arguments.runs)
    except pytest.skip.Exception as error:
        return not_measured(str(error))
    document = {
        "conditions": conditions(started),
        "devices": devices,
        "goal_s": GOAL_S,
    }
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(table(devices))
    return 0


def measured(folder: Path, runs: int) -> dict[str, Any]:
    """Figures of each device."""
    environment = {**os.environ, "XDG_CONFIG_HOME": str(folder / "config"), "XDG_STATE_HOME": str(folder / "state")}
    environment.pop("SSH_AUTH_SOCK", None)
    release = make_release(folder, version=1)
    server = make_sshd()
    try:
        address, key = server.address, ("--key", str(server.key))
        kedge(environment, "device", "add", "ssh", address, "--target", f"cpu-generic-{os.uname().machine}", *key)
        kedge(environment, "device", "trust", "ssh", "--fingerprint", server.fingerprint())
        kedge(environment, "device", "provision", "ssh", "--no-service")
        for device in ("local", "ssh"):
            kedge(environment, "deploy", str(release.folder), "--to", device)
        return {device: _measured(environment, device, runs) for device in ("local", "ssh")}
    finally:
        remove_sshd(server)


def _measured(environment: dict[str, str], device: str, runs: int) -> dict[str, Any]:
    took_s, device_s = [], []
    found: dict[str, list[str]] = {"fault": [], "warning": []}
    for _ in range(runs):
        begin = time.perf_counter()
        done = kedge(environment, "doctor", "--on", device, "--json", codes=(0, 10))
        took_s.append(time.perf_counter() - begin)
        told = json.loads(done)
        device_s.append(told["facts_seconds"])
        for result, evidence in found.items():
            evidence += [each["evidence"] for each in told["findings"] if each["result"] == result]
    return {
        "runs": runs,
        "median_s": statistics.median(took_s),
        "worst_s": max(took_s),
        "device_median_s": statistics.median(device_s),
        "checks": len(told["findings"]),
        "ok": sum(each["result"] == "ok" for each in told["findings"]),
        "unknown": sum(each["result"] == "unknown" for each in told["findings"]),
        "faults": found["fault"],
        "warnings": found["warning"],
    }


def kedge(environment: dict[str, str], *words: str, codes: Sequence[int] = (0,)) -> str:
    """What a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "kedge", *words], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode not in codes:
        raise SystemExit(f"kedge {' '.join(words)}: {done.stderr}")
    return done.stdout


def table(devices: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [f"{'device':8} {'median':>8} {'worst':>8} {'device':>8}   checks"]
    for name, each in devices.items():
        lines.append(
            f"{name:8} {each['median_s']:6.2f} s {each['worst_s']:6.2f} s {each['device_median_s']:6.2f} s"
            f"   {each['ok']} of {each['checks']} ok, {each['unknown']} could not be looked at; "
            f"{len(each['faults'])} faults, {len(each['warnings'])} warnings in {each['runs']} runs"
        )
    return "\n".join([*lines, f"goal: less than {GOAL_S:g} s"])


if __name__ == "__main__":
    raise SystemExit(main())

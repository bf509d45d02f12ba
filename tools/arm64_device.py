"""An emulated aarch64 device: Debian for arm64 behind a real sshd, in namespaces of its own, on any machine with qemu.

    python -m tools.arm64_device make
    python -m tools.arm64_device start [NAME]
    python -m tools.arm64_device shell [NAME]
    python -m tools.arm64_device stop|remove [NAME]

`make` makes the root that all devices share, once; `start` does so too where there is none. docs/arm64.md says what it
is and what it is not. Needs root, and Debian's debootstrap and qemu-user-static.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from tools.arm64 import device as devices
from tools.arm64.root import UnavailableError, cached_root, make_root

_TARGET = "cpu-generic-aarch64"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.arm64_device", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("do", choices=tuple(_COMMANDS))
    parser.add_argument("name", nargs="?", default="arm64", help="of the device  [arm64]")
    arguments = parser.parse_args()
    try:
        return _COMMANDS[arguments.do](arguments.name)
    except UnavailableError as error:
        print(error, file=sys.stderr)
        return 1


def _make(_: str) -> int:
    begin, known = time.monotonic(), cached_root() is not None
    root = make_root(note=lambda line: print(line, flush=True))
    print(f"{root} {'was there already' if known else f'made in {time.monotonic() - begin:.0f} s'}")
    return 0


def _start(name: str) -> int:
    _make(name)
    begin = time.monotonic()
    made = devices.start(name)
    print(f"{name} answers after {time.monotonic() - begin:.1f} s. Next:")
    for line in next_lines(made, os.environ.get("SUDO_USER")):
        print(f"  {line}")
    return 0


def next_lines(made: devices.EmulatedDevice, user: str | None) -> list[str]:
    """What its user types next. user: who ran this by sudo; None: nobody did."""
    lines, key = [], str(made.key)
    if user is not None:
        # It lies below a folder of root's, which nobody else may enter.
        key = f"~/.ssh/kedge-{made.name}"
        lines.append(f"sudo install -m 600 -o {user} {made.key} {key}")
    return [
        *lines,
        f"kedge device add {made.name} {made.ssh} --target {_TARGET} --key {key}",
        f"kedge device trust {made.name} --fingerprint {made.fingerprint()}",
        f"kedge device provision {made.name} --no-service",
    ]


def _shell(name: str) -> int:
    found = devices.find(name)
    if found is None:
        raise UnavailableError(f"{name} does not run: python -m tools.arm64_device start {name}")
    return subprocess.run(found.inside("/bin/sh"), check=False).returncode


def _stop(name: str) -> int:
    print(f"{name} {'is stopped' if devices.stop(name) else 'did not run'}")
    return 0


def _remove(name: str) -> int:
    print(f"{name} {'is gone' if devices.remove(name) else 'is not there'}")
    return 0


_COMMANDS = {"make": _make, "start": _start, "shell": _shell, "stop": _stop, "remove": _remove}

if __name__ == "__main__":
    sys.exit(main())

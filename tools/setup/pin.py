"""Write constraints.txt: what pip resolves today for the oldest Python we serve, and for the newer ones.

    python tools/setup/pin.py python3.10 python3.11

One line a package; where the two Pythons resolve differently, a marker tells them apart.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "tools" / "setup" / "constraints.txt"
# torch is pinned by hand: the newest that has a CPU build everywhere CI runs.
TORCH = "2.13.0"
HEADER = """\
# What CI uses, and what `make` installs. Written by tools/setup/pin.py; torch is pinned there by hand.
# CUDA libraries are not listed: nothing here asks for them.
"""


def main() -> None:
    old, new = (resolve(python) for python in sys.argv[1:3])
    lines = []
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) == new.get(name):
            lines.append(f"{name}=={new[name]}")
            continue
        if name in old:
            lines.append(f"{name}=={old[name]} ; python_version < '3.11'")
        if name in new:
            lines.append(f"{name}=={new[name]} ; python_version >= '3.11'")
    TARGET.write_text(HEADER + "\n".join(lines) + "\n")


def resolve(python: str) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", "--upgrade", "pip"], check=True)
        command = [
            *pip,
            "install",
            "--dry-run",
            "--quiet",
            "--report",
            "-",
            f"{ROOT}[optimize,agent,cuda,dev,tensorrt,modelopt]",
            f"torch=={TORCH}",
        ]
        report = json.loads(subprocess.run([*command, "pip"], check=True, capture_output=True, text=True).stdout)
        versions = {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in report["install"]}
        listed = subprocess.run([*pip, "list", "--format", "json"], check=True, capture_output=True, text=True).stdout
        versions["pip"] = next(item["version"] for item in json.loads(listed) if item["name"] == "pip")
    skip = ("nvidia-", "cuda-", "triton", "kedge")
    kept = ("nvidia-modelopt", "nvidia-ml-py", "tritonclient", "cuda-bindings", "cuda-pathfinder")
    return {
        name: version.partition("+")[0]
        for name, version in versions.items()
        if name in kept or not name.startswith(skip)
    }


if __name__ == "__main__":
    main()

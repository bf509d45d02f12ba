"""Make a virtual environment and install kedge into it. Standard library only: it runs on a bare Python.

Torch comes first, by itself: its default wheel on PyPI brings several gigabytes of CUDA libraries,
which a machine without an NVIDIA GPU has no use for. The CPU build is taken from wherever pip is
configured to find one, else from PyTorch's own CPU index; if neither has it, the size of what is
about to be downloaded is printed first.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "tools" / "setup" / "constraints.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
OLDEST = (3, 10)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--extras", required=True, help="comma-separated extras of kedge")
    arguments = parser.parse_args()
    problem = missing()
    if problem is not None:
        print(problem, file=sys.stderr)
        return 1
    python = arguments.folder / "bin" / "python"
    if not works(python):
        print(f"creating {arguments.folder} with Python {'.'.join(map(str, sys.version_info[:3]))}", flush=True)
        shutil.rmtree(arguments.folder, ignore_errors=True)
        run([sys.executable, "-m", "venv", str(arguments.folder)])
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    # The pip that Ubuntu 22.04's Python brings has no --report.
    run([*pip, "install", "--quiet", "--upgrade", "--constraint", str(CONSTRAINTS), "pip"])
    if "optimize" in arguments.extras.split(","):
        install_torch(pip, python)
    print(f"installing kedge[{arguments.extras}]", flush=True)
    run([*pip, "install", "--quiet", "--constraint", str(CONSTRAINTS), "--editable", f"{ROOT}[{arguments.extras}]"])
    return 0


def missing() -> str | None:
    """One line on what the machine lacks, or None."""
    if sys.version_info[:2] < OLDEST:
        found = ".".join(map(str, sys.version_info[:3]))
        return f"kedge needs Python 3.10 or newer, this is {found}: name another with make PYTHON=python3.12"
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        version = ".".join(map(str, sys.version_info[:2]))
        return f"this Python cannot make virtual environments: sudo apt-get install python{version}-venv"
    return None


def works(python: Path) -> bool:
    """Whether there is an environment whose interpreter still runs and has pip."""
    if not python.exists():
        return False
    return subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0


def install_torch(pip: list[str], python: Path) -> None:
    """Install torch alone, the CPU build where there is no GPU and an index offers it."""
    if subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode == 0:
        return
    source: list[str] = []
    plan = resolve(pip, source)
    if is_cuda(plan) and not has_gpu():
        print("pip's index offers torch with CUDA only; looking for the CPU build on PyTorch's own", flush=True)
        other = ["--extra-index-url", CPU_INDEX]
        found = resolve(pip, [*other, "--retries", "0", "--timeout", "20"])
        if found and not is_cuda(found):
            source, plan = other, found
        else:
            print("there is none within reach: the CUDA build runs on this machine too, it is only large", flush=True)
    version = next((item["metadata"]["version"] for item in plan if item["metadata"]["name"] == "torch"), "?")
    print(f"installing torch {version} and what it needs: {len(plan)} packages, {size_of(plan)}", flush=True)
    run([*pip, "install", "--quiet", "--constraint", str(CONSTRAINTS), *source, "torch"])


def resolve(pip: list[str], source: list[str]) -> list[dict]:
    """What pip would install for torch, from its own dry run; empty when it cannot say."""
    command = [
        *pip,
        "install",
        "--dry-run",
        "--quiet",
        "--report",
        "-",
        "--constraint",
        str(CONSTRAINTS),
        *source,
        "torch",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout)["install"]
    except (ValueError, KeyError):
        return []


def is_cuda(plan: list[dict]) -> bool:
    names = [item["metadata"]["name"].lower() for item in plan]
    return any(name.startswith(("nvidia-", "cuda-")) or name == "triton" for name in names)


def has_gpu() -> bool:
    return Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None


def size_of(plan: list[dict]) -> str:
    """The download in words; what an index does not tell is said to be unknown."""
    total = 0
    for item in plan:
        url = item["download_info"]["url"]
        size = file_size(url)
        if size is None:
            return "size unknown"
        total += size
    return f"{total / 1e6:,.0f} MB to download"


def file_size(url: str) -> int | None:
    parts = urllib.parse.urlsplit(url)
    try:
        if parts.scheme == "file":
            return Path(urllib.parse.unquote(parts.path)).stat().st_size
        request = urllib.request.Request(url, method="HEAD")  # noqa: S310  (pip named it)
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
            return int(response.headers["Content-Length"])
    except (OSError, ValueError, TypeError):
        return None


def run(command: list[str]) -> None:
    done = subprocess.run(command, check=False)
    if done.returncode != 0:
        raise SystemExit(f"failed: {' '.join(command)}")


if __name__ == "__main__":
    sys.exit(main())

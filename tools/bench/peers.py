"""Makes the environments of those whom a benchmark compares with, once: python tools/bench/peers.py NAME FOLDER

NAME: serving (MLServer; FastAPI and uvicorn), push (asyncssh) or modelopt (NVIDIA's ModelOpt, with torch: large).
"""

from __future__ import annotations

import argparse
import shutil
from importlib import metadata
from pathlib import Path

DONE = "done"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("serving", "push", "modelopt"))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    if (folder / DONE).exists():
        return 0
    # What an interrupted run left is not to be built upon.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if arguments.name == "serving":
        from serving_servers import make_peers

        make_peers(folder, metadata.version("onnxruntime"))
    elif arguments.name == "push":
        from push import make_peers as make_asyncssh

        make_asyncssh(folder)
    else:
        from optimize_tools import make_modelopt

        make_modelopt(folder, {name: metadata.version(name) for name in ("onnx", "onnxruntime", "torch")})
    (folder / DONE).touch()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

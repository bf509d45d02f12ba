"""`kedge demo` as it is, with its conditions: the figures that README.md shows.

    python tools/bench/demo.py [--smoke] [--out FILE.json]

It has one size: --smoke changes nothing. `python tools/check_figures.py --write` makes README's table of the document.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

from facts import ROOT, conditions, not_measured


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="the same")
    parser.add_argument("--out", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        return not_measured("torch is not installed: the demo trains with it")
    started = os.getloadavg()
    done = subprocess.run(
        [sys.executable, "-m", "kedge", "demo", "--json"], stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT
    )
    if done.returncode:
        print(f"kedge demo ended with {done.returncode}", file=sys.stderr)
        return 1
    document = {"benchmark": "demo", "conditions": conditions(started), "demo": json.loads(done.stdout)}
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(document["demo"]["int8_over_fp32"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Kills receiving processes at random offsets of uploads, by the thousand.

    python -m tools.faults [--kills 1000] [--seed N]

Real receiving processes are sent releases, one after another, and die by SIGKILL on the way; each push resumes the one
before. A real daemon serves from the same store. Nothing that was acknowledged may be asked for again, and the live
release must stay whole and be answered for. What does not hold ends the run, with exit code 1, and says at which kill;
the same seed makes the same offsets.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tools.faults.kills import kill_uploads


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=1000, help="how many processes die  [1000]")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000, help="of the offsets  [the time]")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="kedge-faults-") as folder:
        try:
            done = kill_uploads(Path(folder), arguments.kills, arguments.seed, lambda line: print(line, flush=True))
        except AssertionError as error:
            print(f"FAILED: {error}", file=sys.stderr)
            return 1
    print(f"passed: {done.kills} kills, {done.late} of them after all had been sent")
    print(f"{done.acknowledged} frames were acknowledged and never asked for again; {done.accepted} releases went live")
    print(f"{done.restarts} daemons were killed or stopped, and answered in time when they were started again")
    return 0


if __name__ == "__main__":
    sys.exit(main())

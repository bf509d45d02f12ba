"""Hostile input for the agent's HTTP server: is it answered or cut off in time, and does the agent serve on?

    python -m tools.fuzz [--cases 100000] [--seed 0] [--out FILE.json]

A real agent runs as a child, with models of floats, integers, truth and strings, shared memory on. Over its two Unix
sockets it gets cases of eight families (tools/fuzz/cases.py), made by hypothesis. What must hold:

- within 15 s each request is answered, or the connection ended; every answer is whole and correct HTTP, with a status
  that is documented; every error is JSON with the key `error`;
- no 500 without an error in the agent's log;
- after each batch of 250 cases the agent serves a good request of each model correctly, by both doors, and has no more
  threads than before;
- its memory stops growing.

A finding is shrunk by hypothesis and ends the run with exit code 1. The same seed sends the same cases.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tools.fuzz.run import fuzz


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=100_000, help="how many (default: 100000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first batch (default: 0)")
    parser.add_argument("--out", type=Path, help="write what was found to this file")
    arguments = parser.parse_args()

    def progress(done: int) -> None:
        print(f"\r{done:,} of {arguments.cases:,} cases", end="", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="kedge-fuzz-") as name:
        outcome = fuzz(Path(name), arguments.cases, arguments.seed, progress)
    print(file=sys.stderr)
    text = json.dumps(outcome.to_json(), indent=1)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 1 if outcome.findings else 0


if __name__ == "__main__":
    sys.exit(main())

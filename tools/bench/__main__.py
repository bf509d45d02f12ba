"""All benchmarks, one after the other, and the page of their figures.

    python -m tools.bench [--smoke] [--only NAME …] [--skip NAME …] [--peers FOLDER] [--page]

Each benchmark writes benchmarks/results/NAME.json, and benchmarks/README.md is made of all of them. The full size takes
hours; `--only` and `--skip` take it up again by benchmark. `--smoke` (`make bench`) ends within 15 minutes on two
cores: its figures go to NAME.smoke.json, stand on the page in a column of their own, and are judged by nobody.

What this machine lacks (root, an SSH server, models, a GPU) is "not measured" with the reason, and one benchmark that
fails keeps no other from running; the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from tools.bench.catalogue import BENCHMARKS, RESULTS, peers_folder
from tools.bench.runner import FAILED, Size, run_all

NAMES = tuple(benchmark.name for benchmark in BENCHMARKS)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="the small size, kept apart from the full one's figures")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--skip", nargs="+", choices=NAMES, metavar="NAME", default=[], help="all but these")
    parser.add_argument(
        "--peers",
        type=Path,
        metavar="FOLDER",
        default=peers_folder(),
        help="environments of peers (default: %(default)s)",
    )
    parser.add_argument("--page", action="store_true", help="measure nothing: make the page of what was measured")
    arguments = parser.parse_args(words)
    chosen = [each for each in BENCHMARKS if each.name in (arguments.only or NAMES) and each.name not in arguments.skip]
    outcomes = {}
    if not arguments.page:
        size = Size(arguments.smoke, arguments.peers.absolute(), RESULTS)
        with _ended_by_signals():
            outcomes = run_all(chosen, size, lambda text: print(text, file=sys.stderr, flush=True))
    from tools.bench.page import write_page

    print(write_page(RESULTS.parent, smoke=arguments.smoke))
    failed = [name for name, outcome in outcomes.items() if outcome.outcome == FAILED]
    for name in failed:
        print(f"{name} failed: {outcomes[name].reason}", file=sys.stderr)
    return 1 if failed else 0


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end this as Ctrl-C does: with the benchmark that runs, and all that it started.

    One that is ignored stays so: hours under nohup are meant to outlive the terminal.
    """
    numbers = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]

    def end(number: int, _: FrameType | None) -> None:
        # A second one must not cut the ending short.
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    before = [signal.signal(number, end) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())

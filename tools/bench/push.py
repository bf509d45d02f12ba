"""A push, and the ways in which people bring files to devices, to the same sshd, in one run, proven at the far end.

    python tools/bench/push.py [--make-peers FOLDER] [--size MB] [--large] [--runs N] [--smoke] [--out FILE.json]

Measured: the seconds from the connection (of a program: from its start) until the file is there, on links of several
round trips and rates; the bytes that travel when a release is deployed again after parts of its weights changed; what
an interrupted push sends twice. The ways take turns, in an order drawn anew in each run. --make-peers makes the
environment of asyncssh in a folder, once. Links other than "0 ms" are a proxy of ours (push_link.py): its delay is no
network's, and hides congestion control.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from facts import commit, not_measured, now, processor
from push_link import LINKS, Link, linked
from push_table import markdown
from push_ways import KEDGE, WAYS, Bench, bench, sha256_of, versions

from kedge.errors import KedgeError

GOALS = {"of_the_best": 0.95, "contiguous_share": 0.06}
COUNTED = Link("counted")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make-peers", type=Path, metavar="FOLDER", help="make the environment of asyncssh here")
    parser.add_argument("--asyncssh-python", metavar="PYTHON", help="an interpreter that has asyncssh")
    parser.add_argument("--size", type=int, default=64, help="of the file, in MB (default: 64)")
    parser.add_argument("--large", action="store_true", help="a file of 256 MB, too")
    parser.add_argument("--runs", type=int, default=5, help="of each way on each link (default: 5)")
    parser.add_argument("--links", nargs="*", choices=[link.name for link in LINKS], help="these alone")
    parser.add_argument("--cuts", type=int, default=5, help="interrupted pushes (default: 5)")
    parser.add_argument("--smoke", action="store_true", help="16 MB once, on two links, one push cut")
    parser.add_argument("--out", type=Path, help="write the figures to this file, and the table beside it")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.size, arguments.runs, arguments.cuts, arguments.links = 16, 1, 1, ["0 ms", "10 ms"]
    lacking = missing()
    if lacking:
        return not_measured(f"this machine lacks {', '.join(lacking)}")
    asyncssh = arguments.asyncssh_python
    if arguments.make_peers is not None:
        asyncssh = make_peers(arguments.make_peers.absolute())
    sizes = [arguments.size] + ([256] if arguments.large else [])
    links = [link for link in LINKS if arguments.links is None or link.name in arguments.links]
    started, load = now(), os.getloadavg()
    with bench(asyncssh) as made, tempfile.TemporaryDirectory(prefix="kedge-push-") as name:
        source = Path(name) / "source.bin"
        document: dict[str, Any] = {
            "benchmark": "push",
            "pushes": [compared(made, source, size, link, arguments.runs) for size in sizes for link in links],
            "redeploys": [redeployed(made, source, case, arguments.size) for case in CASES],
            "interrupted": [interrupted(made, source, arguments.size) for _ in range(arguments.cuts)],
        }
    document["conditions"] = {
        "started": started,
        "ended": now(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "processor": processor(),
        "load_average": {"started": load, "ended": os.getloadavg()},
        "python": platform.python_version(),
        "kedge": commit(),
        "peers": versions(asyncssh),
        "runs": arguments.runs,
        "goals": GOALS,
    }
    document["goals"] = goals(document)
    text = markdown(document)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        arguments.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def missing() -> list[str]:
    """Programs that are compared, or that serve them, and are not here."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    return [name for name in ("sshd", "ssh-keygen", "scp", "sftp", "rsync") if shutil.which(name, path=path) is None]


def make_peers(folder: Path) -> str:
    """An environment that has asyncssh; its interpreter."""
    python = folder / "asyncssh" / "bin" / "python"
    if not python.exists():
        venv.create(python.parents[1], with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "asyncssh"], check=True)
    return str(python)


def compared(made: Bench, source: Path, size_mb: int, link: Link, runs: int) -> dict[str, Any]:
    """Every way, with bytes that nobody has seen, on one link."""
    ways = [name for name in WAYS if name != "asyncssh put" or made.asyncssh_python is not None]
    found: dict[str, list[float]] = {name: [] for name in ways}
    with linked(link, made.server.port) as proxy:
        for _ in range(runs):
            for name in random.sample(ways, len(ways)):
                made.empty()
                source.write_bytes(os.urandom(size_mb * 1_000_000))
                # What others wrote is not to be waited for by whoever comes next.
                os.sync()
                seconds, arrived = WAYS[name](made, source, proxy.port)
                if sha256_of(arrived) != sha256_of(source):
                    raise SystemExit(f"{name} brought other bytes")
                found[name].append(seconds)
    best = min(statistics.median(each) for each in found.values())
    return {
        "size_mb": size_mb,
        "link": link.name,
        "ways": {
            name: {
                "median_s": statistics.median(each),
                "mb_per_s": size_mb / statistics.median(each),
                "of_the_best": best / statistics.median(each),
                "runs_s": each,
            }
            for name, each in found.items()
        },
    }


def contiguous(weights: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    out = weights.copy()
    start, length = weights.size // 3, weights.size // 20
    out[start : start + length] = draw.standard_normal(length) * 0.05
    return out


def scattered(weights: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    out = weights.copy()
    some = draw.choice(weights.size, weights.size // 20, replace=False)
    out[some] = draw.standard_normal(some.size) * 0.05
    return out


def tuned(weights: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    return weights + (draw.standard_normal(weights.size) * 1e-4).astype(np.float32)


CASES = {
    "5 % in one place": contiguous,
    "5 % of all values, scattered": scattered,
    "every value moved a little (fine-tuned)": tuned,
}


def redeployed(made: Bench, source: Path, case: str, size_mb: int) -> dict[str, Any]:
    """Bytes of both directions, and seconds, of a second push after the weights changed; and of rsync."""
    draw = np.random.default_rng(0)
    weights = (draw.standard_normal(size_mb * 250_000) * 0.05).astype(np.float32)
    changed = source.with_name("changed.bin")
    source.write_bytes(weights.tobytes())
    changed.write_bytes(CASES[case](weights, draw).tobytes())
    made.empty()
    out: dict[str, Any] = {"case": case, "size_mb": size_mb}
    with linked(COUNTED, made.server.port) as proxy:
        made.kedge(made.release(source), proxy.port)
        before = proxy.bytes_so_far()
        release = made.release(changed)
        seconds, done = made.kedge(release, proxy.port)
        out[KEDGE] = {
            "bytes": proxy.bytes_so_far() - before,
            "seconds": seconds,
            "delta_frames": done.delta_frames,
            "copied_bytes": done.copied_bytes,
        }
        if sha256_of(made.arrived(release)) != sha256_of(changed):
            raise SystemExit("kedge brought other bytes")
        made.rsync(source, proxy.port, "-W")
        before = proxy.bytes_so_far()
        # Without -I it goes by time and size, which are those of the first one.
        seconds = made.rsync(changed, proxy.port, "--no-whole-file", "-I")
        out["rsync"] = {"bytes": proxy.bytes_so_far() - before, "seconds": seconds}
        if sha256_of(made.target) != sha256_of(changed):
            raise SystemExit("rsync brought other bytes")
    return out


def interrupted(made: Bench, source: Path, size_mb: int) -> dict[str, Any]:
    """A push whose link is cut at a random point, and the push after it."""
    source.write_bytes(os.urandom(size_mb * 1_000_000))
    made.empty()
    release = made.release(source)
    total = release.manifest.total_bytes
    cut_after = random.randrange(total)  # noqa: S311  (nothing here is secret)
    acknowledged = 0
    with linked(LINKS[1], made.server.port) as proxy:
        process = proxy.process
        assert process is not None

        def cut() -> None:
            while not over.wait(0.001):
                if proxy.bytes_so_far() >= cut_after:
                    process.kill()
                    return

        def progress(done: int, _: int) -> None:
            nonlocal acknowledged
            acknowledged = done

        over = threading.Event()
        thread = threading.Thread(target=cut)
        thread.start()
        try:
            made.kedge(release, proxy.port, progress)
        except KedgeError:
            pass
        finally:
            over.set()
            thread.join()
    _, done = made.kedge(release, made.server.port)
    if sha256_of(made.arrived(release)) != sha256_of(source):
        raise SystemExit("the second push brought other bytes")
    return {
        "cut_after_bytes": cut_after,
        "acknowledged_bytes": acknowledged,
        "sent_by_the_second_bytes": done.sent_bytes,
        "sent_twice_bytes": max(0, cut_after + done.sent_bytes - total),
        "acknowledged_and_sent_again_bytes": max(0, acknowledged + done.sent_bytes - total),
    }


def goals(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Which goals were met, and by what figure."""
    out = [
        {
            "goal": f"{push['size_mb']} MB, {push['link']}: at least {GOALS['of_the_best']} of the best",
            "figure": push["ways"][KEDGE]["of_the_best"],
            "met": push["ways"][KEDGE]["of_the_best"] >= GOALS["of_the_best"],
        }
        for push in document["pushes"]
        if push["size_mb"] >= 64
    ]
    for case in document["redeploys"]:
        share = case[KEDGE]["bytes"] / (case["size_mb"] * 1e6)
        if case["case"] == next(iter(CASES)):
            limit = GOALS["contiguous_share"]
            out.append(
                {"goal": f"{case['case']}: at most {limit} of the bytes", "figure": share, "met": share <= limit}
            )
        ratio = case[KEDGE]["bytes"] / case["rsync"]["bytes"]
        out.append({"goal": f"{case['case']}: no more than rsync", "figure": ratio, "met": ratio <= 1})
    again = max((each["acknowledged_and_sent_again_bytes"] for each in document["interrupted"]), default=0)
    out.append({"goal": "nothing that was acknowledged is sent again (bytes)", "figure": again, "met": again == 0})
    return out


if __name__ == "__main__":
    sys.exit(main())

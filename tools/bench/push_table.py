"""The Markdown page of tools/bench/push.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["markdown"]


def markdown(document: Mapping[str, Any]) -> str:
    """The whole page."""
    facts = document["conditions"]
    before, after = (facts["load_average"][when][0] for when in ("started", "ended"))
    peers = ", ".join(f"{name} {version or 'not measured'}" for name, version in facts["peers"].items())
    where = f"{facts['processor']}, {facts['machine']}; {facts['started']} to {facts['ended']}."
    conditions = [f"{where} Load average {before:.1f} before, {after:.1f} after: trust ratios before times."]
    conditions.append(
        f"kedge {facts['kedge']}, Python {facts['python']}; {peers}. {facts['runs']} runs of each way, in an order "
        "drawn anew each time; medians. Bytes are random and new in each run; their sha256 is compared at the far end."
    )
    conditions.append(
        "Host and device are one machine and share its cores: encryption, decryption and hashing compete. All ways go "
        "to one sshd. Times of programs begin with their start, those of libraries with the connection, once they are "
        "imported. In kedge's time are the start of its process on the device, fdatasync, the sha256 of every byte "
        "there and the release's acceptance; the others leave their bytes to the kernel."
    )
    conditions.append(
        "`0 ms` is loopback itself. The other links are a TCP proxy of ours, which acknowledges what it reads at once, "
        "for all. **A proxy's delay hides congestion control**: neither of the two connections that it joins ever "
        "loses a packet or sees a round trip."
    )
    lines = ["# Push", ""]
    for each in conditions:
        lines += [each, ""]
    for size in sorted({push["size_mb"] for push in document["pushes"]}):
        lines += _pushes(size, [push for push in document["pushes"] if push["size_mb"] == size])
    lines += _redeploys(document["redeploys"]) + _interrupted(document["interrupted"]) + _goals(document["goals"])
    return "\n".join(lines) + "\n"


def _pushes(size: int, pushes: list[Mapping[str, Any]]) -> list[str]:
    lines = [f"## {size} MB: MB/s, and of the best", ""]
    lines.append(f"| way | {' | '.join(push['link'] for push in pushes)} |")
    lines.append("|---|" + "---:|" * len(pushes))
    for name in pushes[0]["ways"]:
        cells = [push["ways"][name] for push in pushes]
        shown = " | ".join(f"{cell['mb_per_s']:.1f} ({cell['of_the_best']:.2f})" for cell in cells)
        lines.append(f"| {name} | {shown} |")
    return [*lines, ""]


def _redeploys(cases: list[Mapping[str, Any]]) -> list[str]:
    lines = ["## Deployed again after a change: bytes on the wire, both ways", ""]
    lines += [
        "| changed | MB | kedge | share | seconds | rsync | share | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for case in cases:
        whole = case["size_mb"] * 1e6
        cells = [str(case["size_mb"])]
        for name in ("kedge", "rsync"):
            found = case[name]
            cells += [f"{found['bytes']:,}", f"{found['bytes'] / whole:.2%}", f"{found['seconds']:.2f}"]
        lines.append(f"| {case['case']} | {' | '.join(cells)} |")
    return [*lines, ""]


def _interrupted(cuts: list[Mapping[str, Any]]) -> list[str]:
    lines = ["## Cut and pushed again: bytes", ""]
    lines += ["| cut after | acknowledged by then | sent by the second push | sent twice |", "|---:|---:|---:|---:|"]
    for cut in cuts:
        names = ("cut_after_bytes", "acknowledged_bytes", "sent_by_the_second_bytes", "sent_twice_bytes")
        lines.append("| " + " | ".join(f"{cut[name]:,}" for name in names) + " |")
    return [*lines, ""]


def _goals(goals: list[Mapping[str, Any]]) -> list[str]:
    lines = ["## Goals", "", "| goal | figure | met |", "|---|---:|---|"]
    return lines + [f"| {goal['goal']} | {goal['figure']:.3f} | {'yes' if goal['met'] else 'no'} |" for goal in goals]

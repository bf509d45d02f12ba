"""The Markdown page and the figure of tools/bench/fleet.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kedge.report.svg import BLUE, GRID, MUTED, ORANGE

__all__ = ["figure", "markdown"]

COLOURS = {"threads": BLUE, "dask": ORANGE}
TITLES = {"simulated": "simulated devices", "agents": "real agents, each behind an sshd"}


def markdown(document: Mapping[str, Any], picture: str) -> str:
    """The whole page; picture: the name of the figure beside it."""
    facts, fixed = document["conditions"], document["fixed"]
    before, after = (facts["load_average"][when][0] for when in ("started", "ended"))
    machine = f"{facts['processor']}, {facts['machine']}, {facts['cores']} cores; {facts['at']}; "
    machine += f"kedge {facts['kedge']} ({facts['commit']}), Python {facts['python']}. "
    machine += f"Load average {before:.1f} before, {after:.1f} after."
    how = (
        f"Each figure is the median of {fixed['runs']} runs, each in a new process. Waves {fixed['canary']}, no pause "
    )
    how += "between them: each device is deployed to, and looked at when its wave ends. With dask there are "
    how += f"{fixed['dask_workers']} worker processes on this machine; the coordinator's processor time and memory are "
    how += "without theirs."
    simulated = f"At most {fixed['simulated_concurrency']} at a time. The devices are simulated at the transport: what "
    simulated += "they say is what an agent says, in the real codecs, they hash what they receive, and no time passes "
    simulated += "there. A hundredth of them cannot be reached, and a hundredth refuse. The release has "
    simulated += f"{fixed['release_bytes']:,} bytes: this is what a device costs the host beside its bytes, and what "
    simulated += "the simulated devices themselves compute is in it."
    agents = f"At most {fixed['agents_concurrency']} at a time; each in network, mount and process namespaces of its "
    agents += "own, behind its own sshd. **All agents and the host share the cores named above**: what grows with "
    agents += "their number here is what the devices do, which devices of their own do side by side."
    lines = ["# Fleet", ""]
    lines += ["Made by `tools/bench/fleet.py`; the figures with all their digits are in the `.json` beside this.", ""]
    lines += [machine, "", how, "", f"![Rollout time against the number of devices]({picture})", ""]
    lines += ["## Simulated devices", "", simulated, "", *_rows(document["simulated"]), ""]
    lines += ["## Real agents", ""]
    if document["agents"]:
        lines += [agents, "", *_rows(document["agents"]), ""]
    else:
        lines += [f"Not measured: {document['agents_skipped']}.", ""]
    lines += ["## Goals", "", "| goal | figure | met |", "|---|---:|---|"]
    for goal in document["goals"]:
        shown = "not measured" if goal["figure"] is None else f"{goal['figure']:.3f}"
        met = {True: "yes", False: "no", None: "not measured"}[goal["met"]]
        lines.append(f"| {goal['goal']} | {shown} | {met} |")
    return "\n".join(lines) + "\n"


def _rows(rows: list[Mapping[str, Any]]) -> list[str]:
    heads = ("devices", "workers", "rollout", "a device", "coordinator's CPU", "workers' CPU", "peak RSS")
    heads += ("ledger, a device", "task")
    lines = [f"| {' | '.join(heads)} |", f"|---:|---|{'---:|' * (len(heads) - 2)}"]
    for row in rows:
        cells = [
            str(row["devices"]),
            row["workers"],
            f"{row['seconds']:.2f} s",
            f"{row['seconds'] / row['devices'] * 1e3:.1f} ms",
            f"{row['cpu_s']:.2f} s",
            "in it" if row["workers_cpu_s"] is None else f"{row['workers_cpu_s']:.2f} s",
            f"{row['peak_rss_bytes'] / 1e6:.1f} MB",
            f"{row['ledger_bytes'] / row['devices']:,.0f} B",
            f"{row['task_bytes']:,.0f} B",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def figure(document: Mapping[str, Any], path: Path) -> None:
    """Rollout time against N, as SVG: simulated devices, and real agents."""
    import matplotlib as mpl

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "kedge",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(style):
        from matplotlib.figure import Figure

        drawing = Figure(figsize=(9, 3.6), layout="constrained")
        kinds = [kind for kind in TITLES if document[kind]]
        for axes, kind in zip(drawing.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
            rows = document[kind]
            for workers, colour in COLOURS.items():
                mine = [row for row in rows if row["workers"] == workers]
                counts, seconds = [row["devices"] for row in mine], [row["seconds"] for row in mine]
                if mine:
                    axes.plot(counts, seconds, color=colour, marker="o", markersize=4, label=workers)
            first = min((row for row in rows if row["workers"] == "threads"), key=lambda row: row["devices"])
            counts = sorted({row["devices"] for row in rows})
            ideal = [first["seconds"] * count / first["devices"] for count in counts]
            axes.plot(counts, ideal, color=MUTED, linestyle=":", label="linear, from the smallest")
            axes.set(xscale="log", yscale="log", xlabel="devices", ylabel="seconds", title=TITLES[kind])
            axes.set_xticks(counts, [str(count) for count in counts])
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.minorticks_off()
            axes.grid(color=GRID)
            axes.legend(frameon=False)
        # A date would make each file another.
        drawing.savefig(path, metadata={"Date": None})

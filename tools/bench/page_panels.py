"""What the page shows of each benchmark: a few figures, those of kedge beside those of its peers, ready to be drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tools.bench.page_read import Documents

__all__ = ["Bar", "Panel", "missing", "panels", "shown"]

KEDGE, PEER, REFERENCE = "kedge", "peer", "reference"


@dataclass(frozen=True)
class Bar:
    """A figure. role: kedge's own, a peer's, or a reference's that serves nobody (the bare model, FP32)."""

    label: str
    value: float
    role: str = PEER


@dataclass(frozen=True)
class Panel:
    """Figures of one unit.

    base: the label of kedge's figure that the others are held against; empty where kedge is compared with nobody.
    lower: whether the smaller one is the better.
    """

    title: str
    unit: str
    bars: tuple[Bar, ...]
    base: str = ""
    lower: bool = True

    @property
    def own(self) -> float | None:
        """The figure of `base`."""
        return next((bar.value for bar in self.bars if bar.label == self.base), None)


def shown(value: float) -> str:
    """Three significant digits, and no power of ten."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "\N{MINUS SIGN}")


def panels(name: str, document: Documents) -> list[Panel]:
    """Of a benchmark's document; those whose figures are not in it are left out."""
    make = _PANELS.get(name)
    return [] if make is None else [panel for panel in make(document) if panel.bars]


def missing(name: str, document: Documents) -> list[str]:
    """What a benchmark's document itself says that it lacks, and why: one sentence each."""
    out = [f"{what}: {why}" for what, why in document.get("not_measured", {}).items()]
    if name == "serving":
        out += [f"{way}: {why}" for model in document["models"].values() for way, why in model["not_measured"].items()]
    elif name == "optimize":
        targets = [target for case in document["cases"].values() for target in case["targets"].values()]
        out += [
            f"{row['tool']}: {row['not_measured']}" for each in targets for row in each["rows"] if row["not_measured"]
        ]
    elif name == "fleet" and document["agents_skipped"]:
        out.append(f"real agents: {document['agents_skipped']}")
    elif name == "push":
        out += [f"{peer}: it was not there" for peer, version in document["conditions"]["peers"].items() if not version]
    return list(dict.fromkeys(each.replace("not measured: ", "") for each in out))


def _role(label: str) -> str:
    if label.startswith("kedge"):
        return KEDGE
    return REFERENCE if label in {"FP32", "bare session.run", "the floor", "bare loop", "bare"} else PEER


def _bars(values: Iterable[tuple[str, float]]) -> tuple[Bar, ...]:
    return tuple(Bar(label, value, _role(label)) for label, value in values)


def _startup(document: Documents) -> list[Panel]:
    rows = document["commands"]
    groups: dict[str, list[tuple[str, float]]] = {}
    for name, row in rows.items():
        groups.setdefault(row["group"], []).append((name, row["seconds"]["median"] * 1e3))
    return [Panel(group, "ms", _bars(values)) for group, values in groups.items()]


def _serving(document: Documents) -> list[Panel]:
    out = []
    for key in ("mobilenetv2", "mnist", "image", "tiny"):
        model = document["models"].get(key)
        if model is not None:
            ways = [(name, way["p50_ms"]["median"]) for name, way in model["ways"].items()]
            out.append(Panel(f"p50 of a request: {model['about']}", "ms", _bars(ways), "kedge, Unix socket"))
    memory = [(name, each["rss_bytes"] / 1e6) for name, each in document["memory"].items()]
    ready = [(name, each["median"]) for name, each in document["starts"].items()]
    return [
        *out,
        Panel("memory (RSS), models loaded", "MB", _bars(memory), "kedge"),
        Panel("start to ready, models loaded", "s", _bars(ready), "kedge"),
    ]


def _transport(document: Documents) -> list[Panel]:
    names = {"bare": "bare session.run", "local": "kedge, on this machine", "ssh": "kedge, over SSH"}
    results = document["results"]
    values = [
        (names[where], found.get("median_ms") or found["end_to_end"]["total"]["median_ms"])
        for where, found in results.items()
        if where in names
    ]
    pushes = [(names[where], results[where]["push_mb_per_s"]) for where in ("local", "ssh") if where in results]
    title = f"p50 of a request of {document['conditions']['input_bytes'] / 1e3:.0f} KB, next to no work"
    return [
        Panel(title, "ms", _bars(values), "kedge, on this machine"),
        Panel("push", "MB/s", _bars(pushes), lower=False),
    ]


def _push(document: Documents) -> list[Panel]:
    out = []
    for each in document["pushes"]:
        title = f"{each['size_mb']} MB, link {each['link']}"
        ways = [(name, way["mb_per_s"]) for name, way in each["ways"].items()]
        out.append(Panel(title, "MB/s", _bars(ways), "kedge", lower=False))
    for case in document["redeploys"]:
        sent = [(name, case[name]["bytes"] / 1e6) for name in ("kedge", "rsync")]
        out.append(Panel(f"again after a change: {case['case']}", "MB", _bars(sent), "kedge"))
    return out


def _optimize(document: Documents) -> list[Panel]:
    out = []
    for case in document["cases"].values():
        found = case["targets"]["cpu-generic-x86_64"]
        timed = {"FP32": found["fp32"], **{row["tool"]: row for row in found["rows"]}}
        times = [(name, row["latency"]["summary"]["median_ms"]) for name, row in timed.items() if row.get("latency")]
        lost = [
            (row["tool"], row["accuracy"]["against_fp32"]["drop"] * 100) for row in found["rows"] if row["accuracy"]
        ]
        out.append(Panel(f"{case['model']}: p50 of an inference on this CPU", "ms", _bars(times), "kedge"))
        out.append(Panel(f"{case['model']}: lost against FP32", "points", _bars(lost)))
    return out


def _recipes(document: Documents) -> list[Panel]:
    rows = document["recipes"]
    accuracy = [(name, row["top1"] * 100) for name, row in rows.items()]
    sizes = [(name, row["bytes_share"]) for name, row in rows.items()]
    return [
        Panel("top-1", "%", _bars(accuracy), lower=False),
        Panel("ONNX file, of FP32's", "×", _bars(sizes)),
    ]


def _engines(document: Documents) -> list[Panel]:
    made = [row for row in document["rows"] if row["seconds"]]
    return [
        Panel(
            f"seconds of a build, {precision.upper()}",
            "s",
            _bars((row["model"], row["seconds"]["median"]) for row in made if row["precision"] == precision),
        )
        for precision in ("fp32", "int8")
    ]


def _fleet(document: Documents) -> list[Panel]:
    out = []
    for kind, title in (("simulated", "simulated devices"), ("agents", "real agents")):
        values = [
            (f"{row['devices']}, {row['workers']}", row["seconds"] / row["devices"] * 1e3) for row in document[kind]
        ]
        out.append(Panel(f"{title}: rollout, a device", "ms", _bars(values)))
    return out


def _recorder(document: Documents) -> list[Panel]:
    loads = [(name, each["cpu_share"]["mean"] * 100) for name, each in document["loads"].items()]
    return [Panel("the recorder's share of a core", "%", _bars(loads))]


def _doctor(document: Documents) -> list[Panel]:
    devices = [(name, each["median_s"]) for name, each in document["devices"].items()]
    return [Panel("from the command to its last line", "s", _bars(devices))]


def _demo(document: Documents) -> list[Panel]:
    results = document["demo"]["results"]
    sizes = [(name.upper(), each["model_bytes"] / 1e3) for name, each in results.items()]
    times = [(name.upper(), each["bench"]["end_to_end"]["total"]["median_ms"]) for name, each in results.items()]
    compute = [(name.upper(), each["bench"]["in_agent"]["compute"]["median_ms"]) for name, each in results.items()]
    return [
        Panel("model", "kB", _bars(sizes)),
        Panel("p50 of a request", "ms", _bars(times)),
        Panel("p50 of the compute inside the agent", "ms", _bars(compute)),
    ]


def _soak(document: Documents) -> list[Panel]:
    times = [(name, document["latency"][f"{name}_ms"]) for name in ("median", "p90", "p99", "max")]
    return [Panel("latency at half of capacity, releases switched every 10 s", "ms", _bars(times))]


def _gpu(document: Documents) -> list[Panel]:
    if document["benchmark"] != "gpu-latency":
        return []
    ways = document["results"]["ms"]
    values = [("bare loop", ways["bare"]["median_ms"]), ("kedge, the agent", ways["agent"]["median_ms"])]
    return [Panel("p50 of a request, copies included", "ms", _bars(values), "kedge, the agent")]


_PANELS: Mapping[str, Callable[[Documents], list[Panel]]] = {
    "startup": _startup,
    "serving": _serving,
    "transport": _transport,
    "push": _push,
    "optimize": _optimize,
    "recipes": _recipes,
    "engines": _engines,
    "fleet": _fleet,
    "recorder": _recorder,
    "doctor": _doctor,
    "demo": _demo,
    "soak": _soak,
    "gpu": _gpu,
}

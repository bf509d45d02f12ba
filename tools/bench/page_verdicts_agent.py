"""What the figures say of each goal of the agent, releases, diagnosis, fleets and the GPU; as page_verdicts.py does."""

from __future__ import annotations

from collections.abc import Callable

from tools.bench.page_read import Documents
from tools.bench.page_verdicts import Verdict

__all__ = [
    "again",
    "doctor",
    "drawn",
    "fleet",
    "fuzz",
    "gpu_bandwidth",
    "gpu_latency",
    "gpu_overlap",
    "idle_memory",
    "push",
    "ready",
    "recorder",
    "redeploy",
    "rsync",
    "same_table",
    "serving",
    "soak",
]

_LINKS = ("0 ms", "10 ms", "50 ms", "50 Mbit/s")
_WAYS = ("kedge", "scp", "sftp", "rsync -W", "paramiko put", "asyncssh put")
_ONE_PLACE = "5 % in one place"
_CHANGES = (_ONE_PLACE, "5 % of all values, scattered", "every value moved a little (fine-tuned)")
_LOADS = ("idle", "two cameras", "loaded")
_DEVICES = ("local", "ssh")
_SMALL, _LARGE = 100, 1000


def serving(way: str, kind: str, most: float) -> Callable[[Documents], Verdict]:
    def measure(documents: Documents) -> Verdict:
        models = documents["serving"]["models"]
        # Where no real model was at hand, one of random weights was served: it shows a way, and is judged by nobody.
        whole = {"mobilenetv2", "mnist"} <= models.keys()
        image, tiny = (models.get(real) or models[made] for real, made in (("mobilenetv2", "image"), ("mnist", "tiny")))
        if kind == "over_bare":
            ratio = image["ways"][way]["over_bare"]["median"]
            bare = image["ways"]["bare session.run"]["p50_ms"]["median"]
            if bare < 5:
                raise ValueError("the model takes less than 5 ms here")
            return Verdict(f"{ratio:.3f} ×", ratio <= most, whole)
        added = tiny["ways"][way]["added_us"]["median"]
        return Verdict(f"{added:.0f} µs", added <= most, whole)

    return measure


def idle_memory(documents: Documents) -> Verdict:
    size = documents["serving"]["memory"]["kedge, no model"]["rss_bytes"] / 1e6
    return Verdict(f"{size:.1f} MB", size <= 40)


def ready(name: str) -> Callable[[Documents], Verdict]:
    def measure(documents: Documents) -> Verdict:
        seconds = documents["serving"]["starts"][name]["median"]
        return Verdict(f"{seconds:.2f} s", seconds <= 0.5)

    return measure


def soak(documents: Documents) -> Verdict:
    found = documents["soak"]
    growth, minutes = found["rss_bytes"]["growth"], found["rules"]["seconds"] / 60
    text = f"{found['failed']} of {found['requests']:,} failed, RSS {growth * 100:+.2f} %, {minutes:g} min"
    return Verdict(text, found["failed"] == 0 and growth < 0.01, minutes >= 30)


def fuzz(documents: Documents) -> Verdict:
    found = documents["fuzz"]
    findings = len(found["findings"])
    return Verdict(f"{findings} findings in {found['cases']:,} cases", findings == 0, found["cases"] >= 100_000)


def gpu_latency(documents: Documents) -> Verdict:
    found = [documents[name] for name in ("gpu-latency", "gpu-latency-pycuda") if name in documents]
    ratios = [each["results"]["agent_over_bare_p50"] for each in found]
    told = [f"{each['conditions']['binding']} {ratio:.3f} ×" for each, ratio in zip(found, ratios, strict=True)]
    facts = documents["gpu-latency"]["conditions"]
    return Verdict(f"{', '.join(told)}; {facts['name']}, {facts['runtime']}", max(ratios) <= 1.05)


def gpu_overlap(documents: Documents) -> Verdict:
    found = documents["gpu-overlap"]
    share = found["results"]["copy_in_beside_computation_share"]["median"]
    facts = found["conditions"]
    return Verdict(f"{share * 100:.0f} % of the next copy; {facts['name']}, {facts['runtime']}", share > 0)


def gpu_bandwidth(documents: Documents) -> Verdict:
    row = max(documents["gpu-bandwidth"]["results"]["rows"], key=lambda each: int(each["bytes"]))
    name = documents["gpu-bandwidth"]["conditions"]["name"]
    text = f"{row['pinned_gb_per_s']:.1f} against {row['pageable_gb_per_s']:.1f} GB/s"
    return Verdict(f"{text}; {name}, copies alone: no TensorRT", None)


def push(documents: Documents) -> Verdict:
    large = [each for each in documents["push"]["pushes"] if each["size_mb"] >= 64]
    shares = {f"{each['size_mb']} MB, {each['link']}": each["ways"]["kedge"]["of_the_best"] for each in large}
    worst = min(shares, key=lambda name: shares[name])
    whole = {each["link"] for each in large} >= set(_LINKS) and all(each["ways"].keys() >= set(_WAYS) for each in large)
    text = f"worst of {len(shares)}: {shares[worst]:.2f} × the best ({worst})"
    return Verdict(text, shares[worst] >= 0.95, whole)


def redeploy(documents: Documents) -> Verdict:
    case = next(each for each in documents["push"]["redeploys"] if each["case"] == _ONE_PLACE)
    share = case["kedge"]["bytes"] / (case["size_mb"] * 1e6)
    return Verdict(f"{share * 100:.2f} % of the bytes", share <= 0.06, case["size_mb"] >= 64)


def rsync(documents: Documents) -> Verdict:
    cases = {each["case"]: each["kedge"]["bytes"] / each["rsync"]["bytes"] for each in documents["push"]["redeploys"]}
    text = f"{', '.join(f'{ratio:.3f}' for ratio in cases.values())} × rsync's"
    return Verdict(text, max(cases.values()) <= 1, cases.keys() >= set(_CHANGES))


def again(documents: Documents) -> Verdict:
    cuts = documents["push"]["interrupted"]
    again = max(each["acknowledged_and_sent_again_bytes"] for each in cuts)
    return Verdict(f"{again:,} acknowledged bytes sent again, {len(cuts)} cuts", again == 0)


def recorder(documents: Documents) -> Verdict:
    shares = {name: each["cpu_share"]["mean"] for name, each in documents["recorder"]["loads"].items()}
    most = max(shares.values())
    return Verdict(f"at most {most * 100:.2f} %", most <= 0.01, shares.keys() >= set(_LOADS))


def doctor(documents: Documents) -> Verdict:
    devices = documents["doctor"]["devices"]
    told = ", ".join(f"{name} {each['worst_s']:.2f} s" for name, each in devices.items())
    faults, warnings = (sum(len(each[kind]) for each in devices.values()) for kind in ("faults", "warnings"))
    unknown = ", ".join(f"{name} {each['unknown']} of {each['checks']}" for name, each in devices.items())
    worst = max(each["worst_s"] for each in devices.values())
    text = f"slowest: {told}; {faults} faults, {warnings} warnings; could not be looked at: {unknown}"
    return Verdict(text, worst < 5 and not faults and not warnings, devices.keys() >= set(_DEVICES))


def fleet(workers: str, what: str, most: float, unit: str) -> Callable[[Documents], Verdict]:
    def measure(documents: Documents) -> Verdict:
        figure = _figure(documents, f"{workers}: {what}")
        return Verdict(f"{figure:.3f} {unit}", figure <= most, _rolled_out(documents, workers))

    return measure


def same_table(documents: Documents) -> Verdict:
    differ = _figure(documents, "rollouts by dask that end otherwise")
    both = _rolled_out(documents, "threads") and _rolled_out(documents, "dask")
    return Verdict(f"{differ:g} of them differ", differ == 0, both)


def _figure(documents: Documents, words: str) -> float:
    """That of the goal in the fleet's document that begins so.

    Raises:
        TypeError: it was not measured.
    """
    goal = next(each for each in documents["fleet"]["goals"] if each["goal"].startswith(words))
    return float(goal["figure"])


def _rolled_out(documents: Documents, workers: str) -> bool:
    """Whether these workers drove the rollouts that the goals are about."""
    rows = documents["fleet"]["simulated"]
    return {each["devices"] for each in rows if each["workers"] == workers} >= {_SMALL, _LARGE}


def drawn(documents: Documents) -> Verdict:
    counts = sorted({each["devices"] for each in documents["fleet"]["simulated"]})
    return Verdict(f"[drawn](results/fleet.svg) for {counts[0]} to {counts[-1]} devices", None)

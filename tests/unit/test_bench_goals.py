"""Each goal's limit is the one in its words, and what was measured in part is judged by nobody."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from tools.bench.facts import ROOT
from tools.bench.page_goals import GOALS, Goal, judge, tell
from tools.bench.page_read import read

CPU, RTX = "cpu-generic-x86_64", "rtx-ada-2000"
CASES = ("resnet20", "resnet56", "resnet8", "mnist", "mobilenetv2", "magika")
ROWS = "optimize > cases > {} > targets > {} > rows > tool=kedge"
WAYS = "serving > models > {} > ways > {} > {} > median"
UNIX, TCP = "kedge, Unix socket", "kedge, TCP"
BEST = "never less accurate than the best of onnxruntime and ModelOpt"
PRUNED = "ResNet-56 pruned to at most 50 %"
CLUSTERS, MIXED, KWT = "5-bit clusters", "`--quantize auto", "kwt1 in FP16"
TIME, MEMORY = "{}: time grows", "{}: memory"

#: (beginning of the goal's words, place of a figure, within the limit, beyond it)
LIMITS: list[tuple[str, str, Any, Any]] = [
    ("the demo: INT8", "demo > demo > results > int8 > accuracy > share", 0.98, 0.9799),
    ("`kedge --help` within", "startup > commands > kedge --help > cpu_s > median", 0.25, 0.2501),
    ("INT8 of ResNet-20", ROWS.format("resnet56", RTX) + " > accuracy > against_fp32 > drop", 0.003, 0.0031),
    ("INT8 ResNets run", ROWS.format("resnet8", CPU) + " > latency > speedup > median", 1.8, 1.79),
    ("their INT8 artefacts", "engines > rows > mnist_cnn int8 > engine_bytes", 1, None),
    ("the checker of Q/DQ", "engines > rows > mnist_cnn int8 > qdq_findings", 0, 1),
    (MIXED, "recipes > recipes > resnet20-mixed > drop", 0.002, 0.0021),
    (MIXED, "recipes > recipes > resnet20-w4a8-nearest > drop", 0.0021, 0.002),
    (PRUNED, "recipes > recipes > resnet56-pruned-int8 > top1", 0.905, 0.9049),
    (PRUNED, "recipes > recipes > resnet56-pruned-int8 > macs_share", 0.5, 0.501),
    (PRUNED, "recipes > recipes > resnet56-pruned-int8 > seconds", 3600.0, 3601.0),
    ("pruned INT8 at least", "recipes > pruned_int8_over_int8 > median", 1.3, 1.29),
    ("2:4 and recovery", "recipes > recipes > resnet20-two-of-four > top1", 0.9, 0.8999),
    ("QAT at W4A8", "recipes > recipes > resnet20-w4a8-qat > top1", 0.9001, 0.9),
    (CLUSTERS, "recipes > recipes > resnet20-cluster5 > top1", 0.913, 0.9129),
    (CLUSTERS, "recipes > recipes > resnet20-cluster5 > pushed_share", 0.25, 0.251),
    (KWT, "recipes > transformer > fp16 > least_cosine", 0.99, 0.9899),
    (KWT, "recipes > transformer > int8-dynamic > least_cosine", 0.99, 0.9899),
    *(
        (BEST, f"optimize > goals > accuracy {case} {target} > figure", -0.1, -0.101)
        for case in CASES
        for target in (CPU, RTX)
    ),
    ("faster to run than ModelOpt", f"optimize > goals > latency resnet20 {CPU} > figure", 0.999, 1.0),
    (f"{UNIX}: p50", WAYS.format("mobilenetv2", UNIX, "over_bare"), 1.03, 1.0301),
    (f"{UNIX}: at most", WAYS.format("mnist", UNIX, "added_us"), 150.0, 150.1),
    (f"{TCP}: the same, p50", WAYS.format("mobilenetv2", TCP, "over_bare"), 1.03, 1.0301),
    (f"{TCP}: the same, a tiny", WAYS.format("mnist", TCP, "added_us"), 150.0, 150.1),
    ("RSS of an agent", "serving > memory > kedge, no model > rss_bytes", 40_000_000, 40_000_001),
    ("agent ready within", "serving > starts > kedge, no model > median", 0.5, 0.501),
    ("the same until three", "serving > starts > kedge > median", 0.5, 0.501),
    ("30 minutes at half", "soak > failed", 0, 1),
    ("30 minutes at half", "soak > rss_bytes > growth", 0.0099, 0.01),
    ("100,000 hostile", "fuzz > findings", [], ["a crash"]),
    ("GPU: agent's latency", "gpu-latency > results > agent_over_bare_p50", 1.05, 1.0501),
    ("GPU: agent's latency", "gpu-latency-pycuda > results > agent_over_bare_p50", 1.05, 1.0501),
    ("GPU: copies overlap", "gpu-overlap > results > copy_in_beside_computation_share > median", 0.01, 0.0),
    ("push at least", "push > pushes > link=50 ms > ways > kedge > of_the_best", 0.95, 0.949),
    ("redeploy after 5 %", "push > redeploys > case=5 % in one place > kedge > bytes", 3_840_000, 3_840_001),
    ("a redeploy never", "push > redeploys > case=5 % in one place > rsync > bytes", 3_840_001, 3_839_999),
    ("an interrupted push", "push > interrupted > 0 > acknowledged_and_sent_again_bytes", 0, 1),
    ("`kedge doctor` on", "doctor > devices > ssh > worst_s", 4.99, 5.0),
    ("`kedge doctor` on", "doctor > devices > local > faults", [], ["the disk is full"]),
    ("`kedge doctor` on", "doctor > devices > ssh > warnings", [], ["the disk is nearly full"]),
    ("the flight recorder", "recorder > loads > loaded > cpu_share > mean", 0.01, 0.0101),
    ("1,000 simulated devices, threads", "fleet > goals > threads: memory > figure", 2.0, 2.01),
    ("1,000 simulated devices, dask", "fleet > goals > dask: memory > figure", 2.0, 2.01),
    ("time grows at most 1.1 × linear from 100 to 1,000, threads", "fleet > goals > threads: time > figure", 1.1, 1.11),
    ("time grows at most 1.1 × linear from 100 to 1,000, dask", "fleet > goals > dask: time > figure", 1.1, 1.11),
    ("dask gives the same", "fleet > goals > rollouts by dask > figure", 0, 1),
]


def described(row: dict[str, Any]) -> str:
    """What a row of a list is found by, where no one key tells it from the others."""
    names = ("model", "precision") if "precision" in row else ("goal", "case", "target")
    return " ".join(str(row[name]) for name in names if name in row)


def put(documents: dict[str, Any], place: str, value: Any) -> None:
    """Set the figure at a place: keys, positions, `key=value` of a row, or the beginning of what describes one."""
    *steps, last = place.split(" > ")
    at: Any = documents
    for step in steps:
        if isinstance(at, dict):
            at = at[step]
        elif step.isdigit():
            at = at[int(step)]
        elif "=" in step:
            key, _, wanted = step.partition("=")
            at = next(row for row in at if row[key] == wanted)
        else:
            at = next(row for row in at if described(row).startswith(step))
    at[last] = value


def within() -> dict[str, Any]:
    """The committed results, with those that are not there yet made up, and each figure just within its limit."""
    documents: dict[str, Any] = copy.deepcopy(dict(read(ROOT / "benchmarks" / "results", "").documents))
    shares = {name: {"accuracy": {"share": 0.99}} for name in ("fp32", "int8")}
    documents["demo"] = {"demo": {"results": shares, "data": {"held_out_images": 360}}}
    documents["startup"] = {"commands": {"kedge --help": {"cpu_s": {}}}}
    names = ("mixed", "w4a8-nearest", "w4a8", "two-of-four", "w4a8-qat", "cluster5")
    recipe = {"top1": 0.9, "drop": 0.01, "macs_share": 1.0, "seconds": 60.0}
    recipes = {name: dict(recipe) for name in ("resnet56-pruned-int8", *(f"resnet20-{name}" for name in names))}
    documents["recipes"] = {"recipes": recipes, "pruned_int8_over_int8": {}}
    documents["recipes"]["transformer"] = {"fp16": {}, "int8-dynamic": {}}
    device = {"checks": 26, "unknown": 4, "worst_s": 1.0}
    documents["doctor"] = {"devices": {name: {**device, "faults": [], "warnings": []} for name in ("local", "ssh")}}
    for row in documents["engines"]["rows"]:
        row["qdq_findings"] = 0 if row["precision"] == "int8" and row["engine_bytes"] else None
    for _, place, value, _ in LIMITS:
        put(documents, place, value)
    return documents


def goal(words: str) -> Goal:
    (found,) = [each for each in GOALS if each.wording.startswith(words)]
    return found


@pytest.mark.parametrize(("words", "place", "most", "beyond"), LIMITS, ids=[place for _, place, _, _ in LIMITS])
def test_a_goal_is_met_at_its_limit_and_not_beyond(words: str, place: str, most: Any, beyond: Any) -> None:
    documents = within()
    for value, met in ((most, True), (beyond, False)):
        put(documents, place, value)
        verdict = judge(goal(words), documents)
        assert verdict is not None
        assert verdict.met is met, verdict.figure


def test_every_goal_with_a_limit_is_held_to_it_here() -> None:
    documents = within()
    limited = set()
    for each in GOALS:
        if each.benchmark:
            verdict = judge(each, documents)
            assert verdict is not None, each.wording
            limited |= {each.wording} if verdict.met is not None else set()
    assert limited == {goal(words).wording for words, _, _, _ in LIMITS}


def without_case(documents: dict[str, Any]) -> None:
    del documents["optimize"]["cases"]["mobilenetv2"]
    rows = documents["optimize"]["goals"]
    documents["optimize"]["goals"] = [row for row in rows if row["case"] != "mobilenetv2"]


def without_modelopt(documents: dict[str, Any]) -> None:
    for case in documents["optimize"]["cases"].values():
        for found in case["targets"].values():
            for row in found["rows"]:
                if row["tool"].startswith("ModelOpt"):
                    row |= {"accuracy": None, "latency": None}
    for row in documents["optimize"]["goals"]:
        if row["goal"] == "latency":
            row |= {"figure": None, "held": None}


def without_dask(documents: dict[str, Any]) -> None:
    rows = documents["fleet"]["simulated"]
    documents["fleet"]["simulated"] = [row for row in rows if row["workers"] != "dask"]


def without_a_link(documents: dict[str, Any]) -> None:
    documents["push"]["pushes"].pop()


def without_a_peer(documents: dict[str, Any]) -> None:
    del documents["push"]["pushes"][0]["ways"]["asyncssh put"]


def without_a_change(documents: dict[str, Any]) -> None:
    documents["push"]["redeploys"].pop()


def without_a_load(documents: dict[str, Any]) -> None:
    del documents["recorder"]["loads"]["two cameras"]


def without_ssh(documents: dict[str, Any]) -> None:
    del documents["doctor"]["devices"]["ssh"]


def with_a_model_of_random_weights(documents: dict[str, Any]) -> None:
    models = documents["serving"]["models"]
    models["image"] = models.pop("mobilenetv2")


def for_a_minute(documents: dict[str, Any]) -> None:
    documents["soak"]["rules"]["seconds"] = 60.0


def of_a_thousand(documents: dict[str, Any]) -> None:
    documents["fuzz"]["cases"] = 1000


@pytest.mark.parametrize(
    ("take", "words"),
    [
        (without_case, BEST),
        (without_case, "faster to run than ModelOpt"),
        (without_modelopt, BEST),
        (without_modelopt, "faster to run than ModelOpt"),
        (without_dask, "1,000 simulated devices, dask"),
        (without_dask, "dask gives the same"),
        (without_a_link, "push at least"),
        (without_a_peer, "push at least"),
        (without_a_change, "a redeploy never"),
        (without_a_load, "the flight recorder"),
        (without_ssh, "`kedge doctor` on"),
        (with_a_model_of_random_weights, f"{UNIX}: p50"),
        (for_a_minute, "30 minutes at half"),
        (of_a_thousand, "100,000 hostile"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_part_of_what_a_goal_asks_is_not_measured(take: Callable[[dict[str, Any]], None], words: str) -> None:
    documents = within()
    assert judge(goal(words), documents) is not None
    take(documents)
    assert judge(goal(words), documents) is None


def test_a_part_can_be_told_beside_the_smoke_size() -> None:
    documents = within()
    for_a_minute(documents)
    found = tell(goal("30 minutes at half"), documents)
    assert found is not None
    assert found.figure.endswith("1 min")


def test_no_verdict_hangs_on_the_order_of_what_was_measured() -> None:
    documents = within()
    before = [judge(each, documents) for each in GOALS]
    for name, key in (("optimize", "goals"), ("fleet", "goals"), ("fleet", "simulated"), ("engines", "rows")):
        documents[name][key].reverse()
    after = [judge(each, documents) for each in GOALS]
    assert [verdict and verdict.met for verdict in after] == [verdict and verdict.met for verdict in before]
    documents["push"]["redeploys"].reverse()
    assert judge(goal("redeploy after"), documents) == judge(goal("redeploy after"), within())

from __future__ import annotations

import copy
import functools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from kedge.optimize.evaluate import Accuracy
from kedge.report import charts, layer_charts
from kedge.report.optimize_gate import refusal
from kedge.report.optimize_html import optimize_html
from kedge.report.optimize_text import show
from kedge.report.optimize_words import before_after_rows, compact, not_measured, verdict
from kedge.report.svg import elide, power_of_ten
from tests.support.pages import SCRIPT
from tests.support.schemas import validate

HOSTILE = (
    "</text></svg><script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}} $x_{$ 層\x00\x1b[31m\ud800&amp;[/b]"
)
SHORT_HOSTILE = "<script>x</script>$\\frac"

VOID = {"meta", "br", "img", "link", "input", "hr", "base"}


def accuracy(correct: int, count: int = 1000) -> dict[str, Any]:
    return Accuracy(correct, count).to_json()


def side(size: int, correct: int, p50_ms: float) -> dict[str, Any]:
    spared = accuracy(870, 900)
    classes = [
        {"label": name, **accuracy(correct // 10, 100), "f1": 0.9, "specificity": spared} for name in ("cat", "dog")
    ]
    absent = {"correct": 0, "count": 0, "share": None, "interval_95": None, "f1": None, "specificity": None}
    classes.append({"label": "none", **absent})
    return {
        "bytes": size,
        "parameters": 272_474,
        "macs": 41_000_000,
        "metrics": {
            "top1": accuracy(correct),
            "top5": accuracy(990),
            "f1_macro": correct / 1000,
            "per_class": classes,
            "calibration_error": {"error": 0.031, "bins": 15, "softmax": True},
            "user": {"mine:balanced": 0.9},
        },
        "latency": {"p50_ms": p50_ms, "p90_ms": 1.1 * p50_ms, "samples": 400, "conditions": "onnxruntime, 1 thread"},
    }


def check(figure: str, limit: float, value: float | None, **more: Any) -> dict[str, Any]:
    bound = "min" if figure in ("sensitivity", "specificity") else "max"
    rest = dict.fromkeys(("class", "metric", "given", "interval_95", "correct", "count", "only_before", "only_after"))
    passed = value is not None and (value >= limit if bound == "min" else value <= limit)
    body = {"figure": figure, "bound": bound, "limit": limit, "value": value, "passed": passed, "reason": ""}
    return {**rest, **body, **more}


def gate(*checks: dict[str, Any], **more: Any) -> dict[str, Any]:
    drop = next((each["limit"] for each in checks if each["figure"] == "drop"), None)
    passed = all(each["passed"] for each in checks)
    return {"max_drop": drop, "passed": passed, "checks": list(checks), "blame": [], "next": "", **more}


def full(layers: int = 5) -> dict[str, Any]:
    names = [f"/layer{index}/Conv" for index in range(layers)]
    noise = [("noise", 0.04 * step, "of the range") for step in range(3)]
    attacks = [("pgd", float(step), "ε in 1/255") for step in (1, 2)]
    return {
        "kedge": "0.1.0",
        "model": {"source": "models/net.onnx", "sha256": "a" * 64, "name": "net"},
        "target": "cpu-generic-x86_64",
        "runtime": "onnxruntime",
        "seed": 0,
        "host": {"cpu": "some processor", "cores": 2, "libraries": {"onnxruntime": "1.32.0"}},
        "passes": [
            {"kind": "simplify", "parameters": {}, "seconds": 0.2, "changed": {"nodes": [60, 31]}, "notes": []},
            {
                "kind": "prune",
                "parameters": {"ratio": 0.5, "keep": ["/conv1"], "global": True, "other": None},
                "seconds": 190.0,
                "changed": {"channels": {name: {"before": 32, "after": 16} for name in names}},
                "notes": ["Sparsity saves no time on this target."],
            },
        ],
        "data": {
            "calibration": {"name": "train", "count": 256, "sha256": "b" * 64},
            "train": None,
            "evaluation": {"name": "test", "count": 1000, "sha256": "c" * 64},
        },
        "before": side(1_090_000, 917, 1.68),
        "after": side(290_000, 915, 0.81),
        "comparison": {
            "drop": 0.002,
            "drop_interval_95": [-0.0045, 0.0085],
            "mcnemar": {"only_before": 7, "only_after": 5, "p_value": 0.774},
            "agreement": accuracy(985),
            "cosine": 0.9993,
            "outputs": [{"name": "logits", "mse": 0.01, "cosine": 0.9993, "psnr_db": None}],
        },
        "layers": [
            {"name": name, "op": "Conv", "precision": "int8", "snr_db": 30.0 - index, "cosine": 0.999, "added": 0.01}
            for index, name in enumerate(names)
        ]
        + [{"name": "/flat", "op": "Relu", "precision": "fp32", "snr_db": None, "cosine": 1.0}],
        "sensitivity": [
            {"layer": name, "op": "Conv", "precision": precision, "error": error * (index + 1)}
            for index, name in enumerate(names)
            for precision, error in (("int8", 1e-5), ("w4a8", 1e-3))
        ],
        "search": {
            "objective": "fewest bytes within a drop of 0.002",
            "trials": [
                {
                    "number": number,
                    "cost": 1e5 * (number + 1),
                    "cost_unit": "bytes",
                    "drop": 0.4 / (number + 1) ** 4,
                    "feasible": number > 3,
                    "measured_ms": 0.8 if number == 4 else None,
                    "counts": {"int8": number, "w4a8": 8 - number},
                }
                for number in range(6)
            ],
            "front": [0, 1, 2, 3, 4, 5],
            "chosen": 4,
        },
        "histograms": [
            {
                "tensor": "relu",
                "layer": names[0],
                "low": 0.0,
                "high": 8.0,
                "counts": [900, 40, 0, 3] * 33,
                "range": [0.0, 5.5],
                "precision": "int8",
            }
        ],
        "robustness": {
            "conditions": "1000 samples of test drawn with seed 0",
            "points": [
                {"kind": kind, "strength": strength, "unit": unit, "before": accuracy(800), "after": accuracy(790)}
                for kind, strength, unit in noise + attacks
            ]
            + [{"kind": "jpeg", "strength": 80, "unit": "quality", "before": accuracy(800), "after": None}],
            "clean": {"before": accuracy(917), "after": accuracy(915)},
            "not_measured": [{"kind": "fgsm", "reason": "no gradient"}],
        },
        "gate": gate(check("drop", 0.01, 0.002, interval_95=[-0.0045, 0.0085], count=1000)),
    }


def minimal() -> dict[str, Any]:
    bare = {"bytes": 1000, "parameters": 10, "macs": None, "metrics": None, "latency": None}
    return full() | {
        "passes": [],
        "data": {"calibration": None, "train": None, "evaluation": None},
        "before": bare,
        "after": bare | {"bytes": 400},
        "comparison": None,
        "layers": [],
        "sensitivity": None,
        "search": None,
        "histograms": [],
        "robustness": None,
        "gate": None,
    }


def hostile(name: str) -> dict[str, Any]:
    """The full document with a name in every place that takes any text."""
    document = full(3)
    fixed = {"target", "sha256", "kind"}

    def replaced(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            open_keys = key in ("libraries", "user", "counts", "parameters", "changed", "channels")
            return {(f"{name}{k}" if open_keys else k): replaced(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [replaced(item, key) for item in value]
        return name if isinstance(value, str) and key not in fixed else value

    document = replaced(document)
    document["passes"][0]["kind"] = name
    document["layers"] = document["layers"][:1]
    document["gate"] = gate(
        check("sensitivity", 0.9, 0.8, **{"class": name, "correct": 8, "count": 10, "reason": name}),
        check("metric_drop", 0.9, 1.8, metric=name),
        blame=[name],
        next=name,
    )
    return document


class Page(HTMLParser):
    """Reads a page as a browser would, and keeps what matters here."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.unbalanced: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    @property
    def words(self) -> str:
        return " ".join(" ".join(data for tag, data in self.texts if tag not in ("style", "script")).split())


DOCUMENTS = {
    "full": full(),
    "minimal": minimal(),
    "hostile": hostile(HOSTILE),
    "briefly hostile": hostile(SHORT_HOSTILE),
    "of 200 layers": full(200) | {"histograms": [], "robustness": None, "search": None},
}


@functools.cache
def html_of(name: str) -> str:
    return optimize_html(DOCUMENTS[name])


every_document = pytest.mark.parametrize("name", list(DOCUMENTS))


@every_document
def test_a_document_is_as_its_schema_says_and_becomes_a_whole_page(name: str) -> None:
    validate(DOCUMENTS[name], "optimize")
    page = Page(html_of(name))
    assert (page.open, page.unbalanced) == ([], [])
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert all(" " not in (identifier or " ") for identifier in identifiers)


@every_document
def test_a_page_fetches_nothing_and_runs_no_script_but_its_own(name: str) -> None:
    page = Page(html_of(name))
    assert [data for tag, data in page.texts if tag == "script"] == [SCRIPT]
    for tag, attributes in page.tags:
        assert tag not in ("img", "link", "iframe", "object", "embed", "base", "image", "form", "animate")
        for key, value in attributes.items():
            assert not key.startswith("on")
            assert key not in ("src", "srcset", "action", "data")
            if "href" in key:
                assert (value or "").startswith("#")
            if "http" in (value or ""):
                assert key == "xmlns"
            assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)", value or ""))
    style = "".join(data for tag, data in page.texts if tag == "style")
    assert "@import" not in style
    assert "url(" not in style
    assert any("default-src 'none'" in (attributes.get("content") or "") for _, attributes in page.tags)


@every_document
def test_every_reference_inside_a_page_leads_somewhere(name: str) -> None:
    page = Page(html_of(name))
    known = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for _, attributes in page.tags:
        for key, value in attributes.items():
            if "href" in key:
                assert (value or "")[1:] in known
            assert all(target[1:] in known for target in re.findall(r"url\(([^)]*)", value or ""))
    labels = [attributes["aria-labelledby"] for tag, attributes in page.tags if tag == "svg"]
    assert labels
    assert set(labels) <= known


def test_hostile_names_are_shown_as_text_in_the_page_and_in_the_charts() -> None:
    page = Page(html_of("briefly hostile"))
    assert [data for tag, data in page.texts if tag == "text"].count(SHORT_HOSTILE) >= 2
    assert [data for tag, data in page.texts if tag == "code"].count(SHORT_HOSTILE) >= 4
    assert (f"kedge optimize: {SHORT_HOSTILE}") in page.words


def test_characters_that_do_not_print_reach_neither_page_nor_charts() -> None:
    html = html_of("hostile")
    assert not [c for c in html if not c.isprintable() and c != "\n"]
    html.encode()
    assert "{{7*7}}" in html


def test_the_same_document_gives_the_same_page_whatever_matplotlib_is_set_to() -> None:
    import matplotlib as mpl

    first = html_of("full")
    with mpl.rc_context({"font.size": 30, "axes.grid": False, "svg.hashsalt": "other"}):
        assert optimize_html(copy.deepcopy(DOCUMENTS["full"])) == first


def test_charts_take_their_colours_and_their_font_from_the_page() -> None:
    svg = charts.before_after(side(10, 5, 1.0), side(4, 5, 0.5))
    assert "var(--blue, #" in svg
    assert not re.findall(r"(?<!, )#[0-9a-f]{6}", svg)
    assert "font-family" not in svg
    assert "DejaVu" not in svg


def test_what_was_not_measured_is_said_and_has_no_empty_section() -> None:
    page = Page(html_of("minimal"))
    assert "Accuracy was not measured" in page.words
    assert "Not measured: accuracy, comparison of both models, MACs, latency, " in page.words
    sections = {attributes.get("id") for tag, attributes in page.tags if tag == "section"}
    assert sections == {None, "before-after", "passes", "data", "gate", "environment"}
    assert "None was set" in page.words


def test_robustness_that_could_not_be_measured_says_why() -> None:
    nothing = {"conditions": "", "points": [], "clean": None, "not_measured": [{"kind": "blur", "reason": "no labels"}]}
    assert "robustness (no labels)" in not_measured(full() | {"robustness": nothing})


@pytest.mark.parametrize(
    ("lost", "won", "p_value", "words"),
    [
        (31, 28, 0.7948, "no significant loss (p = 0.79): 31 samples are right only before, 28 only after"),
        (28, 31, 0.7948, "no significant difference (p = 0.79)"),
        (80, 20, 1e-9, "a significant loss (p < 0.001)"),
        (20, 80, 0.02, "a significant gain (p = 0.02)"),
        (0, 0, 1.0, "nothing to test"),
    ],
)
def test_the_paired_test_is_put_into_words(lost: int, won: int, p_value: float, words: str) -> None:
    document = full()
    document["comparison"]["mcnemar"] = {"only_before": lost, "only_after": won, "p_value": p_value}
    said = " ".join(verdict(document).sentences)
    assert words in said
    assert ("no proof of equality" in said) is (p_value >= 0.05)
    assert "between −0.45 and +0.85 points" in said


def test_without_labels_the_headline_is_how_often_both_answer_alike() -> None:
    document = full()
    document |= {"histograms": [], "robustness": None, "search": None, "sensitivity": None, "layers": []}
    for which in ("before", "after"):
        document[which]["metrics"] |= dict.fromkeys(("top1", "top5", "f1_macro", "per_class", "calibration_error"))
    document["comparison"] |= {"drop": None, "drop_interval_95": None, "mcnemar": None}
    validate(document, "optimize")
    assert verdict(document).headline == "Same answer as before on 98.50 % of the samples"
    assert "98.50 %" in Page(optimize_html(document)).words


def test_latencies_under_different_conditions_get_no_ratio() -> None:
    document = minimal() | {"before": full()["before"], "after": full()["after"]}
    document["after"]["latency"]["conditions"] = "on a device"
    rows = {row.name: row for row in before_after_rows(document)}
    assert rows["latency p50"].change == ""
    assert rows["size"].change == "0.266 ×"
    page = Page(optimize_html(document))
    assert "not comparable" in page.words
    assert "Latency p50" not in [data for tag, data in page.texts if tag == "text"]


def test_the_gate_says_whom_to_blame_and_what_to_try() -> None:
    document = minimal()
    document["gate"] = gate(check("drop", 0.001, 0.002), blame=["/layer4/Conv"], next="keep it in fp16")
    page = Page(optimize_html(document))
    assert "✗ Gate not passed: a drop of 0.10 points is allowed" in page.words
    assert "Next: keep it in fp16" in page.words
    assert ("code", "/layer4/Conv") in page.texts


def limited() -> dict[str, Any]:
    lost = {"class": "malignant", "count": 56, "only_before": 9, "only_after": 0, "interval_95": [0.08, 0.28]}
    found = {"class": "malignant", "correct": 45, "count": 56, "given": 0.9643, "interval_95": [0.681, 0.887]}
    return full() | {
        "gate": gate(
            check("drop", 0.02, 0.016, count=512, only_before=9, only_after=1),
            check("calibration_error", 0.05, 0.0312, given=0.02),
            check("sensitivity", 0.9, 45 / 56, **found),
            check("sensitivity_drop", 0.02, 9 / 56, **lost),
            check("specificity", 0.9, None, reason="no output of the model is scores of classes"),
        )
    }


def test_each_condition_of_a_gate_has_its_figure_limit_and_verdict_on_page_and_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    document = limited()
    validate(document, "optimize")
    page = Page(optimize_html(document))
    show(document)
    printed = " ".join(capsys.readouterr().out.split())
    assert "Gate not passed: sensitivity of 'malignant'; drop of sensitivity of 'malignant'; specificity" in page.words
    for words in ("45 of 56, 95 % interval 68.10 to 88.70 %", "at least 90.00 %", "at most 2.00 points"):
        assert words in page.words
        assert words in printed
    assert "of 56 samples 9 right only before, 0 only after, 95 % interval 8.00 to 28.00 points" in printed
    assert "calibration error: 0.0312, at most 0.05: passed" in printed
    assert "specificity: not measured (no output of the model is scores of classes), at least 90.00 %" in printed
    assert "Sensitivity before" in page.words


def test_a_refusal_names_the_class_the_figure_and_the_limit() -> None:
    assert refusal(limited()["gate"]) == (
        "sensitivity of 'malignant' is 80.36 % (45 of 56, 95 % interval 68.10 to 88.70 %), at least 90.00 % wanted; "
        "16.07 points of the sensitivity of 'malignant' lost (of 56 samples 9 right only before, 0 only after, "
        "95 % interval 8.00 to 28.00 points), 2.00 allowed; "
        "specificity was not measured: no output of the model is scores of classes"
    )


def test_the_worst_layers_come_first_and_an_exact_one_is_called_so() -> None:
    page = Page(optimize_html(minimal() | {"layers": full(30)["layers"]}))
    table = page.words[page.words.index("Numbered: the three worst") :]
    assert table.index("/layer29/Conv") < table.index("/layer20/Conv") < table.index("All 31 layers")
    assert "exact" in table


def test_more_layers_than_fit_a_chart_are_in_the_table() -> None:
    page = Page(html_of("of 200 layers"))
    assert "the 40 most sensitive of 200 layers" in page.words
    assert sum(data == "/layer3/Conv" for tag, data in page.texts if tag == "text") == 0
    assert sum(data == "/layer3/Conv" for tag, data in page.texts if tag == "code") >= 2


def test_a_layer_s_bar_is_pale_where_the_result_has_another_precision() -> None:
    rows = [{"layer": "a", "op": "Conv", "precision": p, "error": 0.1} for p in ("int8", "w4a8")]
    assert layer_charts.sensitivity(rows, {}).count("opacity: 0.35") == 0
    assert layer_charts.sensitivity(rows, {"a": "int8"}).count("opacity: 0.35") == 1
    assert layer_charts.sensitivity(rows, {"a": "fp32"}).count("opacity: 0.35") == 2


def test_the_pareto_chart_marks_budget_front_and_choice() -> None:
    svg = charts.pareto(full()["search"], 0.002)
    assert [word for word in ("budget", "over budget", "within budget", "front", "chosen") if f">{word}<" in svg] == [
        "budget", "over budget", "within budget", "front", "chosen",
    ]  # fmt: skip
    assert ">budget<" not in charts.pareto(full()["search"], None)


def test_charts_bear_figures_that_have_no_extent() -> None:
    flat = {"tensor": "t", "layer": "l", "low": 1.0, "high": 1.0, "counts": [5], "range": [1.0, 1.0], "precision": "x"}
    assert "<svg" in layer_charts.histogram(flat, 0)
    assert "<svg" in layer_charts.histogram(flat | {"counts": [0, 0]}, 1)
    assert "<svg" in layer_charts.sensitivity([{"layer": "a", "op": "", "precision": "_", "error": 0.0}], {})
    trial = {
        "number": 7,
        "cost": 0.0,
        "cost_unit": "ms",
        "drop": 0.0,
        "feasible": True,
        "measured_ms": None,
        "counts": {},
    }
    assert "<svg" in charts.pareto({"objective": "o", "trials": [trial], "front": [], "chosen": 7}, 0.0)
    assert "<svg" in layer_charts.error_profile(full(1)["layers"][:1])
    assert len(charts.robustness(full()["robustness"]["points"])) == 3


def test_each_family_of_precisions_has_its_colour() -> None:
    families = [["fp32", "float"], ["fp16", "bf16"], ["int8", "w8a8"], ["int4 weights", "w4a8"], ["fp8"]]
    colours = [{layer_charts.precision_colour(name) for name in family} for family in families]
    assert all(len(some) == 1 for some in colours)
    assert len(set().union(*colours)) == len(families)


def test_long_names_lose_their_middle() -> None:
    assert elide("/layer1/layer1.0/conv1/Conv", 15) == "/lay…conv1/Conv"
    assert elide("short", 15) == "short"
    assert (power_of_ten(0.001), power_of_ten(100.0)) == ("10⁻³", "10²")


def test_values_of_any_shape_are_put_into_one_line() -> None:
    assert compact({"before": 855_770, "after": 412_330.0}) == "855,770 → 412,330"
    assert compact([1, 2.5, True, None, "x"]) == "1, 2.5, yes, none, x"
    assert compact(list(range(20))) == "0, 1, 2, 3, 4, 5, 6, 7 … and 12 more"
    assert compact({f"l{i}": {"before": 2, "after": 1} for i in range(9)}) == (
        "l0: 2 → 1, l1: 2 → 1, l2: 2 → 1 … and 6 more"
    )
    assert compact("y" * 1000).endswith("y…")


@every_document
def test_the_terminal_shows_every_document(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    show(DOCUMENTS[name])
    printed = capsys.readouterr().out
    assert "\x1b[31m" not in printed
    assert ("not measured" in printed) is (name in ("minimal", "of 200 layers"))
    assert "size" in printed


def test_the_terminal_shows_table_passes_proof_and_gate(capsys: pytest.CaptureFixture[str]) -> None:
    document = full()
    document["gate"] = gate(check("drop", 0.001, 0.002), blame=[f"/l{i}" for i in range(8)], next="--quantize auto")
    show(document)
    printed = capsys.readouterr().out
    for words in (
        "91.70 %",
        "0.266 ×",
        "channels: 5 entries",
        "McNemar",
        "NOT PASSED",
        "/l4 and 3 more",
        "--quantize auto",
    ):
        assert words in printed


def test_the_document_says_what_each_top_level_key_is() -> None:
    root = Path(__file__).parents[2] / "docs"
    schema = json.loads((root / "schemas" / "optimize.schema.json").read_text())
    text = (root / "optimize-report.md").read_text()
    assert set(schema["required"]) == set(schema["properties"])
    assert [key for key in schema["properties"] if f"`{key}`" not in text and f"`{key}." not in text] == []

"""Which library is this question about? A small transformer in dynamic INT8, asked texts of any length."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import model
from example import Example

from kedge.transport.client import AgentClient

LENGTHS = (8, 32, 128, 256)
RUNS = 60
QUESTIONS = (
    "How do I rotate the tick labels of the colour bar so that they do not overlap?",
    "Shortest path between two nodes of a directed graph with negative edge weights",
    "The gradient of my loss with respect to this tensor is None after backward",
    "Simplify the integral of sin(x)**2 symbolically and print the result as LaTeX",
)


def main() -> None:
    """From docstrings to answers."""
    questions = asked()
    with Example(__file__) as example:
        texts = [text for text in model.corpus() if text.held_out]
        modules = {text.module for text in model.corpus()}
        example.say(
            f"{len(model.corpus())} docstrings of {len(modules)} modules of {len(model.LIBRARIES)} installed "
            f"libraries; {len(texts)} of them, of other modules, are held out. Training."
        )
        model.make()

        example.say("FP32 as an ONNX file; then dynamic INT8, both judged on the held-out texts, padded to 256 words.")
        example.kedge("optimize", example.source / "recipe-fp32.toml", "-o", "routing-fp32.onnx")
        proof = example.kedge("optimize", example.source / "recipe.toml", "-o", "routing-int8.onnx")
        accuracy(example, proof)

        example.say(
            "Two releases, and two models on one device. Golden texts have 40 words; others may have any number."
        )
        np.save("golden.npy", np.stack([model.tokens(text.text)[:40] for text in texts if text.words >= 40][:8]))
        for precision in ("fp32", "int8"):
            name = f"routing-{precision}"
            words = ("--target", example.target, "--golden", "golden.npy", "--name", name)
            example.kedge("build", f"{name}.onnx", *words, "-o", f"{name}.release")
            example.deploy(f"{name}.release")

        client = AgentClient(example.local())
        try:
            example.say("Every held-out text, as long as it is: no padding.")
            served(example, client, texts)
            by_counts(example, texts)
            latency(example, client)
            answer(example, client, questions)
        finally:
            client.close()
        example.finish()


def asked() -> list[str]:
    """The reader's own questions, or ours."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--ask", action="append", metavar="TEXT")
    given, sys.argv[1:] = parser.parse_known_args()
    return given.ask or list(QUESTIONS)


def accuracy(example: Example, proof: Mapping[str, Any]) -> None:
    """What the report of `kedge optimize` says."""
    for side, of in (("FP32", proof["before"]), ("INT8", proof["after"])):
        top1 = of["metrics"]["top1"]
        low, high = (100 * end for end in top1["interval_95"])
        note = f"{top1['correct']} of {top1['count']} texts, 95 % interval {low:.1f} to {high:.1f} %"
        example.figure(f"accuracy, {side}", top1["share"], "share", ("abs", 0.06), note)
    example.figure("accuracy that INT8 lost", proof["comparison"]["drop"], "points", ("abs", 0.01), "at most 1 point")
    size = proof["after"]["bytes"] / proof["before"]["bytes"]
    example.figure("bytes, INT8 : FP32", size, "ratio", ("abs", 0.02), "the table of words stays FP32")


def by_counts(example: Example, texts: list[model.Text]) -> None:
    """What a linear model on weighted counts of the same words makes of the same split: the simplest that there is."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    counts = TfidfVectorizer(analyzer=lambda text: model.words(text.text)[: model.LONGEST], sublinear_tf=True)
    seen = [text for text in model.corpus() if not text.held_out]
    line = LinearSVC(C=0.5, random_state=0).fit(counts.fit_transform(seen), [text.label for text in seen])
    right = line.predict(counts.transform(texts)) == [text.label for text in texts]
    note = "for comparison: TF-IDF and a linear SVM"
    example.figure("accuracy, counts of words", float(np.mean(right)), "share", ("abs", 0.06), note)


def served(example: Example, client: AgentClient, texts: list[model.Text]) -> None:
    """What the device answers to texts of their own lengths."""
    right = 0
    for text in texts:
        scores = client.infer("routing-int8", {"tokens": model.tokens(text.text)[None]}).outputs["output"]
        right += int(scores.argmax()) == text.label
    lengths = sorted(min(text.words, model.LONGEST) for text in texts)
    note = f"lengths from {lengths[0]} to {lengths[-1]} words, half of them up to {lengths[len(lengths) // 2]}"
    example.figure("accuracy, INT8 on the device, no padding", right / len(texts), "share", ("abs", 0.06), note)


def latency(example: Example, client: AgentClient) -> None:
    """Computing time in the agent by length; FP32 and INT8 in turns, so that both meet the same machine."""
    example.say(f"Latency by length: {RUNS} requests each, FP32 and INT8 in turns.")
    medians = {}
    for words in LENGTHS:
        tokens = {"tokens": np.full((1, words), 7, np.int64)}
        times: dict[str, list[float]] = {"fp32": [], "int8": []}
        for _ in range(RUNS):
            for precision, found in times.items():
                found.append(client.infer(f"routing-{precision}", tokens).agent_ms["compute"])
        for precision, found in times.items():
            medians[precision, words] = float(np.median(found))
            example.figure(f"p50 at {words} words, {precision.upper()}", medians[precision, words], "ms")
    for words in LENGTHS[:-1]:
        ratio = medians["int8", words] / medians["int8", model.LONGEST]
        example.figure(f"INT8, {words} words : padded to 256", ratio, "ratio", note="p50")
    shorter = int(medians["int8", LENGTHS[0]] < medians["int8", model.LONGEST])
    example.figure("8 words are faster than 256", shorter, "", ("abs", 0), "1: they are")


def answer(example: Example, client: AgentClient, questions: list[str]) -> None:
    """What the device makes of questions."""
    for question in questions:
        found = model.tokens(question)
        if not found.size:
            example.say(f"“{question}” has no words.")
            continue
        scores = client.infer("routing-int8", {"tokens": found[None]}).outputs["output"][0]
        shares = np.exp(scores - scores.max())
        shares /= shares.sum()
        best = [f"{model.LIBRARIES[index]} {shares[index]:.0%}" for index in np.argsort(-shares)[:3]]
        example.say(f"“{question}” → {', '.join(best)}")


if __name__ == "__main__":
    main()

"""Threads and execution providers: from the command line and the target's profile into the manifest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kedge.build.release import BuildOptions, build_release
from kedge.build.serving import parse_serving, serving_for
from kedge.cli import main
from kedge.errors import BadInputError
from kedge.release.bundle import open_release
from kedge.targets import list_targets, load_target, parse_target
from kedge_agent.formats.artefact import Serving
from tests.support import models

CPU, ORIN = "cpu-generic-x86_64", "orin-nano-8gb"
CUDA = "CUDAExecutionProvider"


def test_providers_are_read_as_they_are_written_on_the_command_line() -> None:
    assert parse_serving(None, ()) is None
    assert parse_serving(4, ()) == Serving(threads=4)
    text = "TensorrtExecutionProvider:trt_fp16_enable=1,trt_profile_min_shapes=image:1x3x8x8,other:1x4"
    options = (("trt_fp16_enable", "1"), ("trt_profile_min_shapes", "image:1x3x8x8,other:1x4"))
    assert parse_serving(None, [text, "CPUExecutionProvider"]) == Serving(
        None, (("TensorrtExecutionProvider", options), ("CPUExecutionProvider", ()))
    )


@pytest.mark.parametrize(
    "provider",
    [
        "",
        "a b",
        "NoSuchExecutionProvider",
        f"{CUDA}:",
        f"{CUDA}:device_id",
        f"{CUDA}:=1",
        f"{CUDA}:no_such_option=1",
        f"{CUDA}:device_id=1,device_id=2",
        f"{CUDA}:device_id=",
        f"{CUDA}:device_id=a=b",
        f"{CUDA}:device_id=/lib/evil.so",
        f"{CUDA}:device_id=a\nb",
        f"{CUDA}:device_id=" + "v" * 257,
    ],
)
def test_what_a_manifest_may_not_say_is_refused_before_anything_is_built(provider: str) -> None:
    with pytest.raises(BadInputError):
        parse_serving(None, [provider])


def test_the_command_line_reaches_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = str(models.classifier(tmp_path / "m.onnx"))
    asked = ["--threads", "2", "--provider", "CUDAExecutionProvider:device_id=0", "--provider", "CPUExecutionProvider"]
    assert main(["build", model, "--target", CPU, *asked, "--json"]) == 0
    folder = json.loads(capsys.readouterr().out)["folder"]
    (artefact,) = open_release(Path(folder)).manifest.artefacts
    providers = (("CUDAExecutionProvider", (("device_id", "0"),)), ("CPUExecutionProvider", ()))
    assert artefact.serving == Serving(2, providers)
    assert main(["build", model, "--target", CPU, "--provider", f"{CUDA}:device_id=/x", "--json"]) == 3
    assert "'/x'" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_a_profile_s_threads_are_stated_unless_others_are_asked_for(tmp_path: Path) -> None:
    profile = replace(load_target(CPU), threads=3)
    assert serving_for("onnxruntime", profile, None) == Serving(threads=3)
    assert serving_for("onnxruntime", profile, Serving(threads=1)) == Serving(threads=1)
    assert serving_for("onnxruntime", profile, Serving(None, (("P", ()),))) == Serving(3, (("P", ()),))
    model = models.classifier(tmp_path / "m.onnx")
    release = build_release(model, profile, tmp_path / "r", BuildOptions("m")).release
    assert release.manifest.artefacts[0].serving == Serving(threads=3)
    release = build_release(model, load_target(CPU), tmp_path / "s", BuildOptions("m")).release
    assert release.manifest.artefacts[0].serving is None


def test_engines_take_neither(tmp_path: Path) -> None:
    target = load_target(ORIN)
    model = models.classifier(tmp_path / "m.onnx")
    with pytest.raises(BadInputError, match="onnxruntime's, and orin-nano-8gb runs this with tensorrt"):
        build_release(model, target, tmp_path / "r", BuildOptions("m", serving=Serving(threads=2)))
    asked = BuildOptions("m", runtime="onnxruntime", serving=Serving(threads=2))
    built = build_release(model, target, tmp_path / "r", asked)
    assert built.release.manifest.artefacts[0].serving == Serving(threads=2)
    assert serving_for("tensorrt", replace(target, threads=3), None) is None


def test_a_profile_may_state_threads_within_bounds_and_none_of_ours_has_a_reason_to() -> None:
    assert [name for name in list_targets() if load_target(name).threads is not None] == []
    shown = replace(load_target(CPU), threads=3).to_json()
    assert shown["threads"] == 3
    assert "threads" not in load_target(CPU).to_json()
    for threads in (0, 1025):
        with pytest.raises(BadInputError, match="threads"):
            replace(load_target(CPU), threads=threads)
    text = (Path(__file__).parents[2] / "targets" / "kedge_targets" / f"{CPU}.toml").read_text(encoding="utf-8")
    assert parse_target(text.replace("channel_multiple", "threads = 3\nchannel_multiple")).threads == 3

"""The libraries that run models: that those which are needed are there, and the ones that the agent runs with."""

from __future__ import annotations

from kedge_agent.formats.passport import same_version

from ..evidence import Evidence
from ..finding import Finding, fault, ok, unknown, warning
from .releases import live_releases
from .words import restart_command

__all__ = ["runtimes"]

# What the agent calls them, and what the collector does.
_KEYS = {"onnxruntime": "onnxruntime", "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_SHOWN = ("onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", "driver", "numpy")


def runtimes(evidence: Evidence) -> Finding:
    """Versions of runtimes, against what releases need, what the agent has loaded, and what the profile says."""
    name, section = "runtimes", evidence.section("runtimes")
    data, device = section.data, evidence.device
    if section.why:
        return unknown(name, section.why)
    versions = {key: data.text(key) for key in (*_KEYS.values(), "cuda", "driver", "numpy", "zstd")}
    provision = f"kedge device provision {device} --force"
    loaded = evidence.data("agent").child("info", "runtimes")
    # What the agent has loaded is there, also where no list of packages names it.
    there = {runtime: loaded.text(runtime) or versions[key] for runtime, key in _KEYS.items()}
    gone = next((key for key in ("numpy", "onnxruntime") if versions[key] is None and data.text(f"{key}_why")), None)
    if gone is not None:
        return (warning if loaded else fault)(
            name,
            f"{gone} is gone{', and the agent that runs will not start again' if loaded else ''}",
            brief=f"{gone} is gone",
            cause=data.text(f"{gone}_why") or "",
            cure=provision,
            figures=versions,
        )
    if versions["numpy"] is None and not loaded:
        return fault(
            name,
            "numpy is not installed for the agent's Python",
            brief="numpy is missing",
            figures=versions,
            cure=provision,
            cause=data.text("numpy_why") or "the agent's libraries are damaged",
        )
    for runtime, model in _needed(evidence).items():
        if there.get(runtime, "") is None:
            why = data.text(f"{_KEYS[runtime]}_why")
            return fault(
                name,
                f"{model} wants {runtime}, which is not there{f': {why}' if why else ''}",
                brief=f"{runtime} is missing",
                cause="it was removed or updated, or the agent's Python does not see the system's packages",
                cure=provision,
                figures=versions,
            )
    for runtime, key in _KEYS.items():
        before, now = loaded.text(runtime), versions[key]
        if before is not None and now is not None and not same_version(before, now):
            return warning(
                name,
                f"the agent runs with {runtime} {before}, installed is {now}",
                brief=f"{runtime} was replaced under the agent",
                cause="it was updated, and the agent was not started again",
                cure=restart_command(evidence),
                figures=versions,
            )
    target = evidence.target
    wanted = "onnxruntime" if target is None else target.runtimes[0]
    if target is not None and wanted != "onnxruntime" and there[wanted] is None:
        jetson = wanted == "tensorrt" and target.family == "jetson"
        return warning(
            name,
            f"{target.name} runs {wanted}, which is not there: models run on its CPU",
            brief=f"{wanted} is missing",
            cause="JetPack's packages are not installed, or the agent's Python does not see them"
            if jetson
            else "it is not installed for the agent's Python",
            # NVIDIA, TensorRT Installation Guide: the Python bindings' package.
            cure=evidence.shell("sudo apt-get install python3-libnvinfer") + f" && {provision}"
            if jetson
            else provision,
            figures=versions,
        )
    shown = [f"{key.replace('_', '-')} {versions[key]}" for key in _SHOWN if versions[key]]
    return ok(name, ", ".join(shown), **versions)


def _needed(evidence: Evidence) -> dict[str, str]:
    """Runtimes that live models and engines want, each with a model that does."""
    found: dict[str, str] = {}
    live = live_releases(evidence)
    engines = evidence.data("engines").nodes("engines")
    rows = [*evidence.data("agent").child("status").nodes("models")]
    rows += [each for each in engines if not live or each.text("release") in live]
    for row in rows:
        runtime, model = row.text("runtime"), row.text("model")
        if runtime and model:
            found.setdefault(runtime, model)
    return found

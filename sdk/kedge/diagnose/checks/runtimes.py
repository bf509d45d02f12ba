"""The libraries that run models: that those which are needed are there, and the ones that the agent runs with."""

from __future__ import annotations

from ..evidence import Evidence
from ..finding import Finding, fault, ok, unknown, warning

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
    if versions["numpy"] is None:
        return fault(
            name,
            "numpy cannot be imported",
            brief="numpy is missing",
            figures=versions,
            cure=provision,
            cause=data.text("numpy_why") or "the agent's libraries are damaged",
        )
    for runtime, model in _needed(evidence).items():
        key = _KEYS.get(runtime)
        if key is not None and versions[key] is None:
            return fault(
                name,
                f"{model} wants {runtime}, which is not there: {data.text(f'{key}_why') or 'it cannot be imported'}",
                brief=f"{runtime} is missing",
                cause="it was removed or updated, or the agent's Python does not see the system's packages",
                cure=provision,
                figures=versions,
            )
    loaded = evidence.data("agent").child("info", "runtimes")
    for runtime, key in _KEYS.items():
        before, now = loaded.text(runtime), versions[key]
        if before is not None and now is not None and before != now:
            return warning(
                name,
                f"the agent runs with {runtime} {before}, installed is {now}",
                brief=f"{runtime} was replaced under the agent",
                cause="it was updated, and the agent was not started again",
                cure=f"kedge device upgrade {device}  # or restart the agent",
                figures=versions,
            )
    wanted = None if evidence.target is None else evidence.target.runtimes[0]
    if (
        evidence.target is not None
        and wanted != "onnxruntime"
        and versions[_KEYS.get(wanted or "", "tensorrt")] is None
    ):
        return warning(
            name,
            f"a {evidence.target.name} runs {wanted}, which is not there: models run on its CPU",
            brief=f"{wanted} is missing",
            cause=data.text(f"{_KEYS.get(wanted or '', '')}_why") or "JetPack's packages are not installed",
            cure=evidence.shell("sudo apt-get install python3-libnvinfer") + f" && {provision}"
            if wanted == "tensorrt"
            else provision,
            figures=versions,
        )
    shown = [f"{key.replace('_', '-')} {versions[key]}" for key in _SHOWN if versions[key]]
    return ok(name, ", ".join(shown), **versions)


def _needed(evidence: Evidence) -> dict[str, str]:
    """Runtimes that live models and engines want, each with a model that does."""
    found: dict[str, str] = {}
    rows = [*evidence.data("agent").child("status").nodes("models"), *evidence.data("engines").nodes("engines")]
    for row in rows:
        runtime, model = row.text("runtime"), row.text("model")
        if runtime and model:
            found.setdefault(runtime, model)
    return found

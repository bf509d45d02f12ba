"""The Python reference's pages: what a program calls, of each package, by its modules' `__all__`.

Packages of kedge state no public face of their own; `FACE` does. What is not in it is open to read, and changes
without notice.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FACE", "Part", "names_of", "write_all"]


@dataclass(frozen=True)
class Part:
    """One page: a title, what one does with it, and the modules that make it up, the first to look at first."""

    title: str
    what: str
    modules: tuple[str, ...]


#: Pages by the name of their file.
FACE: Mapping[str, Part] = {
    "optimize": Part(
        "kedge.optimize",
        "Make a model smaller and faster for a target, and prove what accuracy it kept. Needs the extra `optimize`.",
        (
            "kedge.optimize.pipeline",
            "kedge.optimize.recipe",
            "kedge.optimize.export",
            "kedge.optimize.quick",
            "kedge.optimize.source",
            "kedge.optimize.work",
            "kedge.optimize.passes",
            "kedge.optimize.evaluate",
            "kedge.optimize.prove",
            "kedge.optimize.gate",
            "kedge.optimize.events",
            "kedge.optimize.latency",
        ),
    ),
    "model": Part(
        "kedge.model",
        "Models and samples as everything else takes them.",
        (
            "kedge.model.onnx_io",
            "kedge.model.graph",
            "kedge.model.samples",
            "kedge.model.data",
            "kedge.model.preprocess",
            "kedge.model.session",
            "kedge.model.gates",
            "kedge.model.qdq_check",
        ),
    ),
    "build": Part(
        "kedge.build",
        "From a model to a release for a target: plan, preflight, engines and their cache.",
        (
            "kedge.build.release",
            "kedge.build.plan",
            "kedge.build.preflight.run",
            "kedge.build.preflight.findings",
            "kedge.build.engines",
            "kedge.build.cache",
            "kedge.build.memory",
            "kedge.build.attestation",
        ),
    ),
    "release": Part(
        "kedge.release",
        "Releases on the host: write, open, verify, sign, carry in one file, keep at a URL.",
        (
            "kedge.release.bundle",
            "kedge.release.signing",
            "kedge.release.archives",
            "kedge.release.remote",
            "kedge.release.urls",
        ),
    ),
    "fleet": Part(
        "kedge.fleet",
        "Devices by their names, what they serve and did, and rollouts to many of them.",
        (
            "kedge.fleet.inventory",
            "kedge.fleet.examine",
            "kedge.fleet.past",
            "kedge.fleet.probe",
            "kedge.fleet.served",
            "kedge.fleet.executor",
            "kedge.fleet.rollout.plan",
            "kedge.fleet.rollout.ledger",
            "kedge.fleet.rollout.drive",
            "kedge.fleet.rollout.document",
        ),
    ),
    "deploy": Part(
        "kedge.deploy",
        "Bring an agent and releases onto a device, and back.",
        (
            "kedge.deploy.push",
            "kedge.deploy.deployed",
            "kedge.deploy.provision",
            "kedge.deploy.upgrade",
            "kedge.deploy.rollback",
            "kedge.deploy.releases",
            "kedge.deploy.history",
        ),
    ),
    "run": Part(
        "kedge.run",
        "A recipe's whole way in one call, and a recipe to begin with.",
        ("kedge.run.steps", "kedge.run.settings", "kedge.run.starter"),
    ),
    "bench": Part(
        "kedge.bench",
        "Measure a model on a device, and run samples through it.",
        ("kedge.bench.run", "kedge.bench.rules", "kedge.bench.batches", "kedge.bench.export"),
    ),
    "diagnose": Part(
        "kedge.diagnose",
        "Why a device is slow, or does not serve.",
        (
            "kedge.diagnose.doctor",
            "kedge.diagnose.finding",
            "kedge.diagnose.evidence",
            "kedge.diagnose.gather",
            "kedge.diagnose.logs",
            "kedge.diagnose.recording",
            "kedge.diagnose.snapshot",
            "kedge.diagnose.opened",
        ),
    ),
    "transport": Part(
        "kedge.transport",
        "Channels to an agent, over SSH or to a child process, and HTTP over them.",
        (
            "kedge.transport.base",
            "kedge.transport.client",
            "kedge.transport.local",
            "kedge.transport.ssh",
            "kedge.transport.hostkeys",
            "kedge.transport.upload",
        ),
    ),
    "targets": Part("kedge.targets", "Device profiles.", ("kedge.targets",)),
    "report": Part(
        "kedge.report",
        "Documents as pages: each takes the JSON document that a command's `--json` prints.",
        (
            "kedge.report.page",
            "kedge.report.bench_html",
            "kedge.report.build_html",
            "kedge.report.optimize_html",
            "kedge.report.preflight_html",
            "kedge.report.doctor_html",
            "kedge.report.history_html",
            "kedge.report.rollout_html",
            "kedge.report.snapshot_html",
            "kedge.report.text",
        ),
    ),
    "errors": Part("kedge.errors", "Every error a caller can meet.", ("kedge.errors",)),
    "agent": Part(
        "kedge_agent",
        "What a device's owner may import of the agent: formats and their readers, engines' headers and passports. "
        "They need numpy and the standard library alone.",
        (
            "kedge_agent.wire",
            "kedge_agent.errors",
            "kedge_agent.formats.manifest",
            "kedge_agent.formats.artefact",
            "kedge_agent.formats.gates",
            "kedge_agent.formats.archive",
            "kedge_agent.formats.oip",
            "kedge_agent.formats.latency",
            "kedge_agent.formats.trust",
            "kedge_agent.formats.recording",
            "kedge_agent.formats.plan_header",
            "kedge_agent.formats.passport",
            "kedge_agent.engine.compile",
            "kedge_agent.engine.report",
        ),
    ),
}


def names_of(module: str) -> tuple[str, ...]:
    """What a module of the face shows: its `__all__`."""
    return tuple(importlib.import_module(module).__all__)


def write_all(folder: Path) -> None:
    """Write a page a part into a folder that is there."""
    for name, part in FACE.items():
        (folder / f"{name}.rst").write_text(_page(part), "utf-8")


def _page(part: Part) -> str:
    lines = [part.title, "=" * len(part.title), "", part.what, ""]
    for module in part.modules:
        # A part that is one module has no second heading of the same name.
        if part.modules != (part.title,):
            lines += [module, "-" * len(module), ""]
        lines += [f".. automodule:: {module}", f"   :members: {', '.join(names_of(module))}", ""]
    return "\n".join(lines)

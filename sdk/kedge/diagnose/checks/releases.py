"""What is to be served: that its files are whole, that its engines fit, and that it is what serves."""

from __future__ import annotations

from ..evidence import Evidence
from ..finding import Finding, fault, ok, unknown, warning
from ..node import Node
from .words import counted

__all__ = ["engines", "live_releases", "models", "releases"]


def models(evidence: Evidence) -> Finding:
    """Whether each model serves the release that it is to serve."""
    name, section = "models", evidence.section("agent")
    if section.why:
        return unknown(name, section.why)
    status = section.data.child("status")
    rows = status.nodes("models")
    if not status:
        why = section.data.text("status_why")
        return unknown(name, why or "the agent does not run, or does not answer")
    failed = [row for row in rows if row.text("state") == "failed"]
    other = [row for row in rows if row.text("problem") and row not in failed]
    figures = {"models": len(rows), "failed": len(failed), "with_problem": len(other)}
    if failed or other:
        row = (failed or other)[0]
        what = "is not served" if failed else "is served by another release than it should be, or in part"
        more = len(failed) + len(other) - 1
        return fault(
            name,
            f"{row.text('model')} {what}: {row.text('problem')}{f'; and {more} more' if more else ''}",
            brief=f"{row.text('model')} is not served as it should be",
            cause="what the agent says of it above; a check before this one may say why",
            cure=f"kedge deploy RELEASE --to {evidence.device}",
            figures=figures,
            symptom=True,
        )
    loading = [row.text("model") or "?" for row in rows if row.text("state") in ("loading", "unloaded")]
    if loading:
        return warning(
            name,
            f"{', '.join(loading[:5])}: being loaded, or unloaded by a user",
            brief="models are not loaded",
            cause="the agent has just started, or somebody unloaded them",
            cure=f"kedge status --on {evidence.device}",
            figures=figures,
            symptom=True,
        )
    return ok(name, f"{counted(len(rows), 'model')} served" if rows else "no model was deployed yet", **figures)


def releases(evidence: Evidence) -> Finding:
    """Whether every byte of what serves, and of what a rollback would serve, is as its manifest says."""
    name, section = "releases", evidence.section("releases")
    if section.why:
        return unknown(name, section.why)
    found = [(model, each) for model in section.data.nodes("models") for each in model.nodes("releases")]
    damaged = [(model, each) for model, each in found if each.flag("whole") is False or each.nodes("bad")]
    read = sum(each.size("checked_bytes") or 0 for _, each in found)
    late = section.data.texts("left_out")
    figures = {"releases": len(found), "damaged": len(damaged), "checked_bytes": read, "left_out": len(late)}
    for role in ("current", "previous", "other"):
        for model, each in damaged:
            if each.text("role") == role:
                return _damaged(evidence, model, each, figures)
    for model in section.data.nodes("models"):
        problem = model.text("problem")
        if problem:
            return fault(
                name,
                f"{model.text('model')}: {problem}",
                brief=f"the state of {model.text('model')} cannot be read",
                cause="a file of the agent's was damaged, or removed",
                cure=f"kedge deploy RELEASE --to {evidence.device}",
                figures=figures,
            )
    unread = [each for _, each in found if each.flag("whole") is None and each.text("role") in ("current", "previous")]
    if unread:
        whole = len(found) - len(unread)
        why = unread[0].text("whole_why") or "not all could be read in time"
        return unknown(name, f"{whole} of {len(found)} are whole; of the others {why}", **figures)
    if not found:
        return ok(name, "no release is there", **figures)
    return ok(name, f"{counted(len(found), 'release')} whole, every byte read", **figures)


def engines(evidence: Evidence) -> Finding:
    """Whether engines were built for this GPU and by the runtime that is installed."""
    name, section = "engines", evidence.section("engines")
    if section.why:
        return unknown(name, section.why)
    found = section.data.nodes("engines")
    bad = [each for each in found if each.flag("fits") is False]
    figures = {"engines": len(found), "refused": len(bad)}
    if bad:
        live = live_releases(evidence)
        serving = [each for each in bad if not live or each.text("release") in live]
        engine = (serving or bad)[0]
        said = engine.texts("refusals")
        return (fault if serving else warning)(
            name,
            f"{engine.text('model')} (release {(engine.text('release') or '')[:12]}): "
            f"{said[0] if said else 'its engine does not fit this device'}",
            brief=f"the engine of {engine.text('model')} is another runtime's or GPU's",
            cause="the release was built for another device, or the device's software was changed since",
            cure=f"kedge build RECIPE --target {_target(evidence)} --on {evidence.device}"
            f" && kedge deploy RELEASE --to {evidence.device}",
            figures={**figures, "passport": engine.child("passport").value, "header": engine.child("header").value},
        )
    if not found:
        return ok(name, "there is none: models run as they are", **figures)
    # That it was built in another power mode is judged by the check on power modes.
    soft = [line for each in found for line in each.texts("warnings") if not line.startswith("power mode")]
    if soft:
        return warning(
            name,
            soft[0],
            brief="an engine was built on another device or software",
            cause="it is valid here, and may be slower than one that is built here",
            cure=f"kedge build RECIPE --target {_target(evidence)} --on {evidence.device}",
            figures=figures,
        )
    if any(each.flag("fits") is None for each in found):
        why = next((why for each in found if (why := each.text("fits_why"))), "the device's own passport is not known")
        return unknown(name, f"{counted(len(found), 'engine')}, and whether they fit is not known: {why}", **figures)
    return ok(name, f"{counted(len(found), 'engine')}, built for this GPU and runtime", **figures)


def live_releases(evidence: Evidence) -> set[str]:
    """Releases that serve, or are to; empty where that is not known."""
    states = (model.child("state").text("current") for model in evidence.data("releases").nodes("models"))
    return {release for release in states if release}


def _damaged(evidence: Evidence, model: Node, release: Node, figures: dict[str, int]) -> Finding:
    role, digest = release.text("role"), (release.text("release") or "")[:12]
    bad = release.nodes("bad")
    first = f"{bad[0].text('file')}: {bad[0].text('why')}" if bad else "it has not the bytes that its manifest names"
    more = f"; and {counted(len(bad) - 1, 'file')} more" if len(bad) > 1 else ""
    live = role == "current"
    words = {"current": "the live release", "previous": "the release that a rollback would serve"}
    verdict = fault if live else warning
    return verdict(
        "releases",
        f"{words.get(role or '', 'a release')} of {model.text('model')} ({digest}) is damaged: {first}{more}",
        brief=f"the {'live' if live else 'previous'} release of {model.text('model')} is damaged",
        cause="the disk lost or changed what was written, or somebody changed it",
        cure=f"kedge deploy RELEASE --to {evidence.device}  # release {digest}: sends only the frames that are bad",
        figures={**figures, "model": model.text("model"), "release": release.text("release")},
    )


def _target(evidence: Evidence) -> str:
    return "TARGET" if evidence.target is None else evidence.target.name

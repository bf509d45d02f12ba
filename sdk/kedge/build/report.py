"""What was built, as a document beside the release: FOLDER.build.json, and a page of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..report.build_html import build_html
from ..targets import Target
from .release import Built

__all__ = ["write_build_report"]


def write_build_report(model: Path, target: Target, built: Built, destination: Path) -> dict[str, Any]:
    """Write FOLDER.build.json and FOLDER.build.html beside a release; returns what `kedge build --json` prints
    (docs/build-report.md).

    Args:
        model: the file that was released.
        destination: the release's folder.

    Raises:
        OSError: they cannot be written.
    """
    release = built.release
    artefact = release.manifest.artefacts[0]
    engine = built.engine
    document = {
        "release": release.digest,
        "folder": str(destination),
        "model": release.manifest.model,
        "version": release.manifest.version,
        "source": str(model),
        "target": target.name,
        "runtime": built.plan.runtime,
        "precision": built.plan.precision,
        "reason": built.plan.reason,
        "golden_made_up": built.golden_made_up,
        "encoding": artefact.encoding,
        "model_bytes": built.model_bytes,
        "stored_model_bytes": release.manifest.file(artefact.file).size_bytes,
        "bytes": release.manifest.total_bytes,
        "plan": built.plan.to_json(),
        "engine": None
        if engine is None
        else {**engine.to_json(), "from_cache": not built.compiled, "report": dict(engine.report)},
    }
    page = destination.with_name(f"{destination.name}.build.html")
    page.with_suffix(".json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    page.write_text(build_html(document), encoding="utf-8")
    return document | {"report": str(page)}

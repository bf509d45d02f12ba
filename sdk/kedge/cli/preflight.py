"""`kedge preflight`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .common import Output, long_output_options, path_type, shapes_option

__all__ = ["preflight"]

_SHOWN, _NODES = 30, 8


@click.command()
@click.argument("model", type=path_type)
@click.option("--target", required=True, help="The kind of device; see: kedge targets list.")
@click.option("--runtime", help="One of the target's.  [default: the first]")
@shapes_option
@click.option("--report", type=path_type, help="Write the findings here as an HTML page, and as JSON beside it.")
@long_output_options
def preflight(
    model: Path, target: str, runtime: str | None, shapes: tuple[str, ...], report: Path | None, out: Output
) -> None:
    """Say what of a MODEL will not run on a target, and why, without the device.

    Asks everything that can judge it on this host: ONNX's checker, the target's profile, the parser and the compiler
    of TensorRT for RTX, operator tables by TensorRT version. Every finding says who judged. Exit 7 when something
    will not run.
    """
    from ..build.preflight.run import preflight as run_preflight
    from ..build.shapes import parse_shapes
    from ..errors import BadInputError, IncompatibleError
    from ..targets import load_target

    if report is not None and report.suffix not in (".html", ".htm"):
        raise BadInputError(f"{report} is no name for a page", hint="end it in .html; the JSON lies beside it")
    profile = load_target(target)
    with out.progress() as progress:
        found = run_preflight(model, profile, shapes=parse_shapes(shapes), runtime=runtime, progress=progress.share)
    document: dict[str, Any] = {"model": model.name, **found.to_json()}
    if report is not None:
        _write(report, document)
    out.result(document, lambda: _render(document))
    if found.errors:
        first = found.errors[0]
        where = f"{first.op} {first.node}: ".lstrip() if first.node else ""
        more = f" (and {len(found.errors) - 1} more)" if len(found.errors) > 1 else ""
        raise IncompatibleError(
            f"{model} will not run on {target}: {where}{first.message}{more}", hint=first.suggestion, told=True
        )


def _write(report: Path, document: dict[str, Any]) -> None:
    import json

    from ..report.preflight_html import preflight_html

    report.with_suffix(".json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    report.write_text(preflight_html(document), encoding="utf-8")


def _render(document: dict[str, Any]) -> None:
    from ..report.memory import memory_sentence
    from ..report.preflight_html import grouped, headline
    from ..report.tables import key_values

    rows = [
        (
            "model",
            f"{document['model']}: {document['precision']}, opset {document['opset']}, {document['nodes']} nodes",
        ),
        ("target", f"{document['target']}, runtime {document['runtime']}"),
        *(("judged by" if index == 0 else "", judge) for index, judge in enumerate(document["judges"])),
        ("memory", memory_sentence(document["memory"])),
        ("findings", headline(document)),
    ]
    key_values(rows)
    groups = grouped(document["findings"])
    for group in groups[:_SHOWN]:
        click.echo()
        rows = [(group["severity"], _nodes(group)), ("", group["message"])]
        if group["suggestion"]:
            rows.append(("to do", group["suggestion"]))
        key_values([*rows, ("says", group["judge"])])
    if len(groups) > _SHOWN:
        click.echo(f"\n{len(groups) - _SHOWN} more: --json or --report")


def _nodes(group: dict[str, Any]) -> str:
    """`Crop: crop (node 16), crop1 (node 23) and 5 more`."""
    nodes = group["nodes"]
    if not nodes:
        return "the model"
    shown = ", ".join(
        each["node"] if each["place"] is None else f"{each['node']} (node {each['place']})" for each in nodes[:_NODES]
    )
    more = f" and {len(nodes) - _NODES} more" if len(nodes) > _NODES else ""
    return f"{group['op']}: {shown}{more}" if group["op"] else f"{shown}{more}"

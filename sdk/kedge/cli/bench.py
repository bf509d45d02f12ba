"""`kedge bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from .common import Output, inventory_option, long_output_options, on_option, path_type, read_inventory

__all__ = ["bench"]


@click.command()
@click.argument("model")
@on_option
@click.option("--warmup-ms", type=int, default=200, show_default=True, help="Warm-up before each loop.")
@click.option("--duration-ms", type=int, default=3000, show_default=True, help="Least time of each loop.")
@click.option("--min-runs", type=int, default=10, show_default=True, help="Fewest runs of each loop.")
@click.option("--batch", type=int, default=1, show_default=True, help="Samples a request, where the model allows it.")
@click.option("--rate", "rate_per_s", type=float, help="In the agent: requests/s, begun whether or not others ended.")
@click.option(
    "--concurrency", default="1", show_default=True, metavar="N[,N…]", help="In the agent: requests at a time, each."
)
@click.option("--waterfall", is_flag=True, help="Time a request at every level from the runtime to this host.")
@click.option("--layers", is_flag=True, help="Profile the model's layers, in a process of their own.")
@click.option("--phases", is_flag=True, help="Measure first load, warm load and inference, in a process of their own.")
@click.option("--samples", is_flag=True, help="Put every sample into the JSON.")
@click.option(
    "--export-times", type=path_type, metavar="FILE", help="Samples of the agent's loop, as trtexec has them."
)
@click.option("--export-profile", type=path_type, metavar="FILE", help="Layers, as trtexec has them; with --layers.")
@click.option("--html", type=path_type, metavar="FILE", help="The report as a page.")
@inventory_option
@long_output_options
def bench(
    model: str,
    device: str,
    concurrency: str,
    samples: bool,
    export_times: Path | None,
    export_profile: Path | None,
    html: Path | None,
    inventory_path: Path | None,
    out: Output,
    **options: Any,
) -> None:
    """Measure a deployed MODEL: latency from this host and inside the agent, memory on the device."""
    from ..bench.run import BenchRules, run_bench
    from ..fleet.inventory import open_device

    rules = BenchRules(
        **{**options, "layers": options["layers"] or export_profile is not None},
        concurrency=_numbers(concurrency),
        samples=samples or export_times is not None,
    )
    _require_writable(export_times, export_profile, html)
    with open_device(device, read_inventory(inventory_path)) as (transport, _), out.progress() as progress:
        report = run_bench(transport, model, rules, progress.share)
    _write(report, export_times, export_profile, html)
    if not samples:
        # They were kept for a file.
        report["samples"] = None

    def render() -> None:
        from ..report.bench_text import bench_tables

        bench_tables(report)

    out.result(report, render)


def _require_writable(*paths: Path | None) -> None:
    """Find out before a minute of measuring, not after it."""
    from ..errors import BadInputError

    for path in paths:
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise BadInputError(f"{path} cannot be written", hint="name a file in a folder that exists")


def _numbers(text: str) -> tuple[int, ...]:
    from ..errors import BadInputError

    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise BadInputError(f"--concurrency is {text[:80]!r}", hint="numbers with commas between: --concurrency 1,2,4")
    return tuple(map(int, parts))


def _write(report: dict[str, Any], export_times: Path | None, export_profile: Path | None, html: Path | None) -> None:
    from ..bench.export import trtexec_profile, trtexec_times

    for path, document in (
        (export_times, lambda: trtexec_times(report["samples"]["in_agent"])),
        (export_profile, lambda: trtexec_profile(report["layers"])),
    ):
        if path is not None:
            path.write_text(json.dumps(document(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if html is not None:
        from ..report.bench_html import bench_html

        html.write_text(bench_html(report), encoding="utf-8")

"""`kedge bench`."""

from __future__ import annotations

from pathlib import Path

import click

from .common import Output, inventory_option, long_output_options, on_option, read_inventory

__all__ = ["bench"]


@click.command()
@click.argument("model")
@on_option
@click.option("--warmup-ms", type=int, default=200, show_default=True, help="Warm-up before each loop.")
@click.option("--duration-ms", type=int, default=3000, show_default=True, help="Least time of each loop.")
@click.option("--min-runs", type=int, default=10, show_default=True, help="Fewest runs of each loop.")
@click.option("--batch", type=int, default=1, show_default=True, help="Samples a request, where the model allows it.")
@inventory_option
@long_output_options
def bench(
    model: str,
    device: str,
    warmup_ms: int,
    duration_ms: int,
    min_runs: int,
    batch: int,
    inventory_path: Path | None,
    out: Output,
) -> None:
    """Measure a deployed MODEL: latency from this host and inside the agent, memory on the device."""
    from ..bench.run import BenchRules, run_bench
    from ..fleet.inventory import open_device

    rules = BenchRules(warmup_ms, duration_ms, min_runs, batch)
    with open_device(device, read_inventory(inventory_path)) as (transport, _), out.progress() as progress:
        report = run_bench(transport, model, rules, progress.share)

    def render() -> None:
        from ..report.tables import bench_tables

        bench_tables(report)

    out.result(report, render)

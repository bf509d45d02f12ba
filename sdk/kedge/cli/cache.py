"""`kedge cache`."""

from __future__ import annotations

import click

from .common import Output, output_options

__all__ = ["cache"]


@click.group()
def cache() -> None:
    """Engines that were built once and are used again."""


@cache.command("list")
@output_options
def list_command(out: Output) -> None:
    """List the engines in the cache, the newest first."""
    from ..build.cache import EngineCache

    found = EngineCache()
    entries = sorted(found.entries(), key=lambda entry: -entry.built)

    def render() -> None:
        import datetime as dt

        from ..report.tables import print_table
        from ..report.text import byte_size

        if not entries:
            click.echo(f"no engines in {found.folder}")
            return
        rows = [
            [
                entry.key[:8],
                entry.onnx_sha256[:8],
                f"{entry.passport.runtime} {entry.passport.runtime_version}",
                ", ".join(entry.passport.compute_capabilities),
                f"{entry.passport.os}/{entry.passport.arch}",
                byte_size(entry.size_bytes),
                dt.datetime.fromtimestamp(entry.built).astimezone().strftime("%Y-%m-%d"),
            ]
            for entry in entries
        ]
        print_table("", ["engine", "ONNX", "runtime", "CC", "platform", "size", "built"], rows, right=(5,))
        click.echo(f"{byte_size(sum(entry.size_bytes for entry in entries))} in {found.folder}")

    out.result({"folder": str(found.folder), "engines": [entry.to_json() for entry in entries]}, render)


@cache.command("gc")
@click.option("--keep-mib", type=click.IntRange(min=0), help="Remove the oldest until so much is left.")
@click.option("--older-than-days", type=click.FloatRange(min=0), help="Remove what is older.")
@output_options
def gc_command(keep_mib: int | None, older_than_days: float | None, out: Output) -> None:
    """Remove engines from the cache, the oldest first."""
    from ..build.cache import EngineCache
    from ..errors import BadInputError

    if keep_mib is None and older_than_days is None:
        raise BadInputError("nothing was said about what may go", hint="give --keep-mib or --older-than-days")
    gone = EngineCache().gc(
        keep_bytes=None if keep_mib is None else keep_mib << 20,
        older_than_s=None if older_than_days is None else older_than_days * 86400,
    )
    freed = sum(entry.size_bytes for entry in gone)

    def render() -> None:
        from ..report.text import byte_size

        click.echo(f"{len(gone)} engines removed, {byte_size(freed)} freed")

    out.result({"removed": [entry.to_json() for entry in gone], "freed_bytes": freed}, render)

"""`kedge cache`."""

from __future__ import annotations

import click

from .common import Output, output_options

__all__ = ["cache"]


@click.group()
def cache() -> None:
    """Engines that were built once and are used again, and files that were pushed, so that changes alone are sent."""


@cache.command("list")
@output_options
def list_command(out: Output) -> None:
    """List the engines in the cache, the newest first, and say how much is kept of what was pushed."""
    from ..build.cache import EngineCache
    from ..transport.known import KnownObjects

    found, known = EngineCache(), KnownObjects()
    files = known.entries()
    pushed_bytes = sum(each.size_bytes for each in files)
    pushed = {"folder": str(known.folder), "files": len(files), "bytes": pushed_bytes}
    entries = sorted(found.entries(), key=lambda entry: -entry.built)

    def render() -> None:
        import datetime as dt

        from ..report.tables import print_table
        from ..report.text import byte_size

        told = f"{len(files)} pushed files beside them, {byte_size(pushed_bytes)}"
        if not entries:
            click.echo(f"no engines in {found.folder}\n{told}")
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
        click.echo(f"{byte_size(sum(entry.size_bytes for entry in entries))} in {found.folder}\n{told}")

    engines = [entry.to_json() for entry in entries]
    out.result({"folder": str(found.folder), "engines": engines, "pushed": pushed}, render)


@cache.command("gc")
@click.option("--keep-mib", type=click.IntRange(min=0), help="Remove pushed files, then engines, to be left with this.")
@click.option("--older-than-days", type=click.FloatRange(min=0), help="Remove what is older.")
@output_options
def gc_command(keep_mib: int | None, older_than_days: float | None, out: Output) -> None:
    """Remove engines and pushed files from the cache, those used longest ago first."""
    from ..build.cache import EngineCache
    from ..errors import BadInputError
    from ..transport.known import KnownObjects

    if keep_mib is None and older_than_days is None:
        raise BadInputError("nothing was said about what may go", hint="give --keep-mib or --older-than-days")
    engines, keep_bytes = EngineCache(), None if keep_mib is None else keep_mib << 20
    older_than_s = None if older_than_days is None else older_than_days * 86400
    gone = engines.gc(keep_bytes=keep_bytes, older_than_s=older_than_s)
    freed = sum(entry.size_bytes for entry in gone)
    if keep_bytes is not None:
        # An engine takes longer to make again than a whole file to push.
        keep_bytes = max(keep_bytes - sum(entry.size_bytes for entry in engines.entries()), 0)
    files = KnownObjects().gc(keep_bytes=keep_bytes, older_than_s=older_than_s)
    # No room is claimed to be freed with these: one may be a link to a file of the user's.
    pushed = {"files": len(files), "bytes": sum(each.size_bytes for each in files)}

    def render() -> None:
        from ..report.text import byte_size

        click.echo(f"{len(gone)} engines removed, {byte_size(freed)} freed")
        click.echo(f"{len(files)} pushed files let go, of {byte_size(pushed['bytes'])}")

    removed = [entry.to_json() for entry in gone]
    out.result({"removed": removed, "freed_bytes": freed, "pushed_removed": pushed}, render)

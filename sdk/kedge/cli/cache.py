"""`kedge cache`."""

from __future__ import annotations

import contextlib

import click

from .common import Output, output_options

__all__ = ["cache"]


@click.group()
def cache() -> None:
    """Engines that were built, releases that were fetched or unpacked, files that were pushed; what training wrote."""


@cache.command("list")
@output_options
def list_command(out: Output) -> None:
    """List engines and releases in the cache, and say how much is kept of what was pushed."""
    from ..build.cache import EngineCache
    from ..release.kept import KeptReleases
    from ..transport.known import KnownObjects

    found, known, kept = EngineCache(), KnownObjects(), KeptReleases()
    files = known.entries()
    pushed_bytes = sum(each.size_bytes for each in files)
    pushed = {"folder": str(known.folder), "files": len(files), "bytes": pushed_bytes}
    entries = sorted(found.entries(), key=lambda entry: -entry.built)
    releases = kept.entries()

    def render() -> None:
        from ..report.tables import print_table
        from ..report.text import byte_size

        engine_rows = [
            [
                entry.key[:8],
                entry.onnx_sha256[:8],
                f"{entry.passport.runtime} {entry.passport.runtime_version}",
                ", ".join(entry.passport.compute_capabilities),
                f"{entry.passport.os}/{entry.passport.arch}",
                byte_size(entry.size_bytes),
                _day(entry.built),
            ]
            for entry in entries
        ]
        release_rows = [
            [
                each.digest[:12],
                "unreadable" if each.model is None else f"{each.model} {each.version}",
                byte_size(each.size_bytes),
                _day(each.used),
            ]
            for each in releases
        ]
        if entries:
            columns = ["engine", "ONNX", "runtime", "CC", "platform", "size", "built"]
            print_table("", columns, engine_rows, right=(5,))
            click.echo(f"{byte_size(sum(entry.size_bytes for entry in entries))} in {found.folder}")
        else:
            click.echo(f"no engines in {found.folder}")
        if releases:
            print_table("", ["release", "model", "size", "used"], release_rows, right=(2,))
            click.echo(f"{byte_size(sum(each.size_bytes for each in releases))} in {kept.folder}")
        else:
            click.echo("no releases that were fetched")
        click.echo(f"{len(files)} pushed files beside them, {byte_size(pushed_bytes)}")

    document = {
        "folder": str(found.folder),
        "engines": [entry.to_json() for entry in entries],
        "releases": {"folder": str(kept.folder), "entries": [each.to_json() for each in releases]},
        "pushed": pushed,
    }
    out.result(document, render)


@cache.command("events")
@output_options
def events_command(out: Output) -> None:
    """Print the folder of TensorBoard's event files, which training and searches wrote.

    To open them: tensorboard --logdir "$(kedge cache events)"
    """
    from ..optimize.events import events_folder

    folder = events_folder()
    runs = sorted({str(file.parent.relative_to(folder)) for file in folder.rglob("events.out.tfevents.*")})
    out.result({"folder": str(folder), "runs": runs}, lambda: click.echo(str(folder)))


@cache.command("gc")
@click.option("--keep-mib", type=click.IntRange(min=0), help="Remove until this is left: files, releases, engines.")
@click.option("--older-than-days", type=click.FloatRange(min=0), help="Remove what is older.")
@output_options
def gc_command(keep_mib: int | None, older_than_days: float | None, out: Output) -> None:
    """Remove pushed files, releases and engines from the cache, those used longest ago first.

    A release in use stays, and one that a rollout needs which has not ended, or was halted; so
    does an engine that such a rollout has yet to vouch for.
    """
    from ..build.cache import EngineCache
    from ..errors import BadInputError
    from ..release.kept import KeptReleases
    from ..transport.known import KnownObjects

    if keep_mib is None and older_than_days is None:
        raise BadInputError("nothing was said about what may go", hint="give --keep-mib or --older-than-days")
    engines, keep_bytes = EngineCache(), None if keep_mib is None else keep_mib << 20
    older_than_s = None if older_than_days is None else older_than_days * 86400
    releases_needed, engines_needed = _needed()
    gone = engines.gc(keep_bytes=keep_bytes, older_than_s=older_than_s, needed=engines_needed)
    freed = sum(entry.size_bytes for entry in gone)
    if keep_bytes is not None:
        # An engine takes longer to make again than a release to fetch, and that longer than a whole file to push.
        keep_bytes = max(keep_bytes - sum(entry.size_bytes for entry in engines.entries()), 0)
    kept = KeptReleases()
    releases = kept.gc(keep_bytes=keep_bytes, older_than_s=older_than_s, needed=releases_needed)
    if keep_bytes is not None:
        keep_bytes = max(keep_bytes - sum(each.size_bytes for each in kept.entries()), 0)
    files = KnownObjects().gc(keep_bytes=keep_bytes, older_than_s=older_than_s)
    # No room is claimed to be freed with these: a pushed file may be a link to a release's, or to one of the user's.
    pushed = {"files": len(files), "bytes": sum(each.size_bytes for each in files)}

    def render() -> None:
        from ..report.text import byte_size

        click.echo(f"{len(gone)} engines removed, {byte_size(freed)} freed")
        size = byte_size(sum(each.size_bytes for each in releases))
        click.echo(f"{len(releases)} releases let go, of {size}")
        click.echo(f"{len(files)} pushed files let go, of {byte_size(pushed['bytes'])}")

    document = {
        "removed": [entry.to_json() for entry in gone],
        "freed_bytes": freed,
        "releases_removed": [each.to_json() for each in releases],
        "pushed_removed": pushed,
    }
    out.result(document, render)


def _needed() -> tuple[set[str], set[str]]:
    """Releases of rollouts that may go on, and engines that were built in them and wait to be vouched for."""
    from ..errors import KedgeError
    from ..fleet.rollout.ledger import rollouts

    needed: set[str] = set()
    engines: set[str] = set()
    for ledger in rollouts():
        # A ledger that is damaged takes no rollout further.
        with contextlib.suppress(KedgeError):
            rollout = ledger.read()
            if rollout.ended in (None, "halted"):
                needed |= rollout.releases
                engines |= {str(answer["engine"].get("sha256")) for answer in rollout.builds.built.values()}
    return needed, engines


def _day(seconds: float) -> str:
    import datetime as dt

    return dt.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d")

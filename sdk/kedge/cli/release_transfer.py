"""`kedge release push` and `kedge release pull`: to and from a device, or a folder at a URL."""

from __future__ import annotations

from pathlib import Path

import click

from .common import Output, inventory_option, long_output_options, path_type, read_inventory

__all__ = ["out_option", "pull_command", "push_command"]

out_option = click.option("-o", "--out", "path", type=path_type, required=True, metavar="PATH", help="Where to.")


@click.command("push")
@click.argument("path", metavar="RELEASE", type=path_type)
@click.option("--to", "to", required=True, metavar="DEVICE|URL", help="A device, local; or a folder, as s3://bucket/x.")
@inventory_option
@long_output_options
def push_command(path: Path, to: str, inventory_path: Path | None, out: Output) -> None:
    """Have a device accept a RELEASE, and activate nothing: a later kedge deploy has nothing left to send.

    With a URL that fsspec knows (file://, s3://, gs://, sftp://): put it where many hosts can fetch it.
    """
    from dataclasses import asdict

    from ..deploy.releases import push_release
    from ..fleet.inventory import open_device
    from ..release.archives import opened
    from ..release.remote import push_to
    from ..release.urls import is_url

    if is_url(to):
        with opened(path) as found, out.progress() as progress:
            progress.step("push")
            put = push_to(found, to, progress.bytes)
        out.result(
            {"release": found.digest, "url": to, **asdict(put)},
            lambda: click.echo(
                f"{found.digest}: at {to}, {put.sent_bytes} bytes sent, {put.skipped_bytes} there before"
            ),
        )
        return
    with (
        opened(path) as found,
        open_device(to, read_inventory(inventory_path)) as (transport, _),
        out.progress() as progress,
    ):
        progress.step("push")
        done = push_release(transport, found, progress.bytes)
    out.result(
        {"release": found.digest, "device": to, **asdict(done)},
        lambda: click.echo(f"{found.digest}: accepted by {to}, {done.sent_bytes} bytes sent"),
    )


@click.command("pull")
@click.argument("which", metavar="MODEL|DIGEST")
@click.option("--on", "device", metavar="DEVICE", help="A device of the inventory, or local.")
@click.option("--from", "url", metavar="URL", help="A folder to which releases were pushed; they go by their DIGEST.")
@out_option
@inventory_option
@long_output_options
def pull_command(
    which: str, device: str | None, url: str | None, path: Path, inventory_path: Path | None, out: Output
) -> None:
    """Fetch a release back from a device: a MODEL's live one, or any by its DIGEST; or from a URL by its DIGEST."""
    if (device is None) is (url is None):
        raise click.UsageError("give one of --on DEVICE and --from URL")
    if url is not None:
        _pull_from_url(which, url, path, out)
    elif device is not None:
        _pull_from_device(which, device, path, inventory_path, out)


def _pull_from_url(digest: str, url: str, path: Path, out: Output) -> None:
    from ..release.remote import pull_from

    with out.progress() as progress:
        progress.step("pull")
        found = pull_from(url, digest, path, progress.bytes)
    out.result(
        {"release": found.digest, "url": url, "folder": str(path)},
        lambda: click.echo(f"{found.digest}: {found.manifest.model} version {found.manifest.version} in {path}"),
    )


def _pull_from_device(which: str, device: str, path: Path, inventory_path: Path | None, out: Output) -> None:
    from ..deploy.releases import pull_release, read_accepted
    from ..fleet.inventory import open_device

    with open_device(device, read_inventory(inventory_path)) as (transport, _), out.progress() as progress:
        progress.step("pull")
        found = pull_release(transport, which, path, progress.bytes)
        accepted = read_accepted(transport, found.digest)

    def render() -> None:
        click.echo(f"{found.digest}: {found.manifest.model} version {found.manifest.version} in {path}")
        keys = ", ".join(map(str, accepted.get("keys", ())))
        click.echo(f"{device} accepted it " + (f"signed by {keys}" if accepted.get("signed") else "without signatures"))

    out.result({"release": found.digest, "device": device, "folder": str(path), "accepted": accepted}, render)

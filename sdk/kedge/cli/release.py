"""`kedge release`."""

from __future__ import annotations

from pathlib import Path

import click

from .common import Output, output_options, path_type

__all__ = ["release"]


@click.group()
def release() -> None:
    """Look at a release and verify it."""


@release.command("show")
@click.argument("folder", type=path_type)
@output_options
def show_command(folder: Path, out: Output) -> None:
    """Show what a release FOLDER holds."""
    import json

    from ..release.bundle import open_release

    found = open_release(folder)
    manifest = found.manifest
    document = {"release": found.digest, "manifest": json.loads(found.manifest_bytes)}

    def render() -> None:
        from ..report.tables import key_values, print_table
        from ..report.text import byte_size

        key_values(
            [
                ("release", found.digest),
                ("model", f"{manifest.model}, version {manifest.version}"),
                ("target", f"{manifest.target} ({manifest.platform_os}/{manifest.platform_arch})"),
                *((f"artefact for {a.runtime}", f"{a.file}, {a.precision}") for a in manifest.artefacts),
                (
                    "parity gate",
                    f"cosine ≥ {manifest.parity.cosine_min:g}, relative error ≤ {manifest.parity.relative_error_max:g}",
                ),
                *((key, str(value)) for key, value in manifest.provenance.items()),
            ]
        )
        rows = [[entry.name, byte_size(entry.size_bytes), entry.sha256[:16]] for entry in manifest.files]
        print_table("", ["file", "size", "sha256"], rows, right=[1])

    out.result(document, render)


@release.command("verify")
@click.argument("folder", type=path_type)
@output_options
def verify_command(folder: Path, out: Output) -> None:
    """Hash every file of a release FOLDER against its manifest."""
    from ..release.bundle import open_release

    found = open_release(folder)
    with out.progress() as progress:
        progress.step("hashing")
        found.verify(progress.bytes)
    document = {"release": found.digest, "files": len(found.manifest.files), "bytes": found.manifest.total_bytes}
    out.result(
        {**document, "intact": True},
        lambda: click.echo(f"{found.digest}: {document['files']} files, {document['bytes']} bytes, all intact"),
    )

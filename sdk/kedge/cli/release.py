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
    parity = manifest.gates.parity.limits
    artefacts = [(a, manifest.file(a.file).size_bytes, found.model_bytes(a)) for a in manifest.artefacts]
    document = {
        "release": found.digest,
        "manifest": json.loads(found.manifest_bytes),
        "artefacts": [
            {"file": a.file, "encoding": a.encoding, "bytes": stored, "model_bytes": loaded}
            for a, stored, loaded in artefacts
        ],
    }

    def render() -> None:
        from ..report.tables import key_values, print_table
        from ..report.text import byte_size, model_size

        key_values(
            [
                ("release", found.digest),
                ("model", f"{manifest.model}, version {manifest.version}"),
                ("target", f"{manifest.target} ({manifest.platform_os}/{manifest.platform_arch})"),
                *(
                    (f"artefact for {a.runtime}", f"{a.file}, {a.precision}, {model_size(a.encoding, stored, loaded)}")
                    for a, stored, loaded in artefacts
                ),
                (
                    "parity gate",
                    f"cosine ≥ {parity.cosine_min:g}, relative error ≤ {parity.relative_error_max:g}",
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
    """Hash every file of a release FOLDER against its manifest; unpack what is packed."""
    from ..release.bundle import open_release

    found = open_release(folder)
    with out.progress() as progress:
        progress.step("hashing")
        found.verify(progress.bytes)
        progress.step("unpacking")
        found.prove_unpacking()
    count, size = len(found.manifest.files), found.manifest.total_bytes
    unpacked = size + sum(
        found.model_bytes(a) - found.manifest.file(a.file).size_bytes for a in found.manifest.artefacts
    )
    packed = f" ({unpacked} unpacked)" if unpacked != size else ""
    out.result(
        {"release": found.digest, "files": count, "bytes": size, "unpacked_bytes": unpacked, "intact": True},
        lambda: click.echo(f"{found.digest}: {count} files, {size} bytes{packed}, all intact"),
    )

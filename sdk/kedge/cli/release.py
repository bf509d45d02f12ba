"""`kedge release`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import Output, output_options, path_type
from .release_transfer import out_option, pull_command, push_command

if TYPE_CHECKING:
    from ..release.bundle import Release

__all__ = ["release"]

_signers_option = click.option(
    "--signers", type=path_type, metavar="FILE", help="Verify signatures against this file of allowed signers."
)
_key_option = click.option(
    "--key",
    type=path_type,
    required=True,
    metavar="KEY",
    help="A private SSH key; or the .pub file of one in ssh-agent or a FIDO token.",
)


@click.group()
def release() -> None:
    """Look at releases, sign them, and carry them about.

    RELEASE is a release folder, or a .kedge archive where nothing is written to it.
    """


@release.command("show")
@click.argument("path", metavar="RELEASE", type=path_type)
@_signers_option
@output_options
def show_command(path: Path, signers: Path | None, out: Output) -> None:
    """Show what a RELEASE holds, and who signed it."""
    from ..release.archives import opened

    with opened(path) as found:
        document = _shown(found, signers)
    out.result(document, lambda: _render(document))


def _shown(found: Release, signers: Path | None) -> dict[str, Any]:
    import json

    offer = found.offer()
    return {
        "release": found.digest,
        "manifest": json.loads(found.manifest_bytes),
        "artefacts": [
            {
                "file": a.file,
                "encoding": a.encoding,
                "bytes": found.manifest.file(a.file).size_bytes,
                "model_bytes": found.model_bytes(a),
            }
            for a in found.manifest.artefacts
        ],
        "signatures": _signatures(found, signers),
        "beside": [name for name in ("base", "attestation", "downgrade") if getattr(offer, name) is not None],
    }


def _signatures(found: Release, signers: Path | None) -> list[dict[str, Any]]:
    """Each signature; `good` is None where nobody said whose count."""
    from ..release.signing import check_signatures, signatures_of

    if signers is None:
        return [{"key": each.fingerprint, "good": None, "problem": None} for each in signatures_of(found)]
    return [
        {"key": each.fingerprint, "good": each.problem is None, "problem": each.problem}
        for each in check_signatures(found, signers)
    ]


def _render(document: dict[str, Any]) -> None:
    from ..report.tables import key_values, print_table
    from ..report.text import byte_size, model_size

    manifest = document["manifest"]
    sizes = {each["file"]: each for each in document["artefacts"]}
    verdicts = {None: "not verified", True: "good", False: "not good"}
    key_values(
        [
            ("release", document["release"]),
            ("model", f"{manifest['model']}, version {manifest['version']}"),
            ("target", f"{manifest['target']} ({manifest['platform']['os']}/{manifest['platform']['arch']})"),
            *(
                (
                    f"artefact for {a['runtime']}",
                    f"{a['file']}, {a['precision']}, "
                    + model_size(
                        sizes[a["file"]]["encoding"], sizes[a["file"]]["bytes"], sizes[a["file"]]["model_bytes"]
                    ),
                )
                for a in manifest["artefacts"]
            ),
            ("parity gate", _parity(manifest["gates"]["parity"])),
            *(
                (name, ", ".join(f"{key} {value}" for key, value in manifest["gates"][name].items()))
                for name in ("latency", "memory", "probation")
                if name in manifest["gates"]
            ),
            *(
                ("signed by", f"{each['key']} ({each['problem'] or verdicts[each['good']]})")
                for each in document["signatures"]
            ),
            *([] if document["signatures"] else [("signed by", "nobody")]),
            *([("beside it", ", ".join(document["beside"]))] if document["beside"] else []),
            *((key, str(value)) for key, value in manifest["provenance"].items()),
        ]
    )
    rows = [[each["name"], byte_size(each["bytes"]), each["sha256"][:16]] for each in manifest["files"]]
    print_table("", ["file", "size", "sha256"], rows, right=[1])


def _parity(gate: dict[str, Any]) -> str:
    return f"cosine ≥ {float(gate['cosine_min']):g}, relative error ≤ {float(gate['relative_error_max']):g}"


@release.command("verify")
@click.argument("path", metavar="RELEASE", type=path_type)
@_signers_option
@output_options
def verify_command(path: Path, signers: Path | None, out: Output) -> None:
    """Hash every file of a RELEASE against its manifest, unpack what is packed, verify who signed it (--signers)."""
    from ..errors import IntegrityError
    from ..release.archives import opened

    with opened(path) as found:
        with out.progress() as progress:
            progress.step("hashing")
            found.verify(progress.bytes)
            progress.step("unpacking")
            found.prove_unpacking()
        size = found.manifest.total_bytes
        unpacked = size + sum(
            found.model_bytes(a) - found.manifest.file(a.file).size_bytes for a in found.manifest.artefacts
        )
        signatures = _signatures(found, signers)
    if signers is not None and not any(each["good"] for each in signatures):
        why = next((each["problem"] for each in signatures), "it has no signature")
        raise IntegrityError(f"nobody of {signers} signed it: {why}", hint="kedge release sign RELEASE --key KEY")
    good = sorted({each["key"] for each in signatures if each["good"]})
    document = {
        "release": found.digest,
        "files": len(found.manifest.files),
        "bytes": size,
        "unpacked_bytes": unpacked,
        "intact": True,
        "signatures": signatures,
    }

    def render() -> None:
        packed = f" ({unpacked} unpacked)" if unpacked != size else ""
        signed = f", signed by {', '.join(good)}" if good else ""
        click.echo(f"{found.digest}: {document['files']} files, {size} bytes{packed}, all intact{signed}")

    out.result(document, render)


@release.command("sign")
@click.argument("folder", metavar="RELEASE", type=path_type)
@_key_option
@click.option("--downgrade", is_flag=True, help="State too that it may go live where a later version has been.")
@click.option(
    "--from", "from_version", type=click.IntRange(min=1), metavar="VERSION", help="With --downgrade: the latest such."
)
@output_options
def sign_command(folder: Path, key: Path, downgrade: bool, from_version: int | None, out: Output) -> None:
    """Sign a RELEASE folder with an SSH key, through ssh-keygen. Its digest stays."""
    from ..errors import BadInputError
    from ..release.bundle import open_release
    from ..release.signing import sign, signatures_of, state_downgrade

    if downgrade is (from_version is None):
        raise BadInputError(
            "--downgrade and --from VERSION go together",
            hint="kedge status --on DEVICE --json tells the version_floor that is to be lowered",
        )
    found = open_release(folder)
    found.verify()
    signature = sign(found, key)
    if from_version is not None:
        state_downgrade(found, key, from_version)
    count = len(signatures_of(found))
    keys = "the only key so far" if count == 1 else f"one of {count} distinct keys"
    out.result(
        {"release": found.digest, "key": signature.fingerprint, "signatures": count, "downgrade": downgrade},
        lambda: click.echo(f"{found.digest}: signed by {signature.fingerprint}, {keys}"),
    )


@release.command("attest")
@click.argument("folder", metavar="RELEASE", type=path_type)
@_key_option
@click.option("--built-on", metavar="DEVICE|HOST", help="Whose engines, where the cache has those of several.")
@output_options
def attest_command(folder: Path, key: Path, built_on: str | None, out: Output) -> None:
    """Vouch for engines that a device built, so that other devices may run them.

    RELEASE holds such an engine; or a build plan, and then those that the cache has for it are vouched for.
    """
    from dataclasses import asdict

    from ..build.attestation import attest
    from ..release.bundle import open_release

    found = attest(open_release(folder), key, built_on=built_on)

    def render() -> None:
        for each in found:
            whose = "this host" if each.builder is None else each.builder.device
            click.echo(f"engine {each.engine[:12]} for {each.passport.describe()}, built by {whose}: attested")

    engines = [
        {
            "engine": each.engine,
            "passport": each.passport.to_json(),
            "builder": None if each.builder is None else asdict(each.builder),
        }
        for each in found
    ]
    out.result({"release": found[0].release, "engines": engines}, render)


@release.command("export")
@click.argument("folder", metavar="RELEASE", type=path_type)
@out_option
@output_options
def export_command(folder: Path, path: Path, out: Output) -> None:
    """Write a RELEASE folder, with its signatures, to one .kedge archive."""
    from ..release.archives import export_release
    from ..release.bundle import open_release

    found = open_release(folder)
    size = export_release(found, path)
    out.result(
        {"release": found.digest, "archive": str(path), "bytes": size},
        lambda: click.echo(f"{found.digest}: {path}, {size} bytes"),
    )


@release.command("import")
@click.argument("archive", type=path_type)
@out_option
@output_options
def import_command(archive: Path, path: Path, out: Output) -> None:
    """Unpack a .kedge ARCHIVE to a release folder, checking every byte."""
    from ..release.archives import import_release

    with out.progress() as progress:
        progress.step("unpacking")
        found = import_release(archive, path, progress.bytes)
    out.result(
        {"release": found.digest, "folder": str(path)}, lambda: click.echo(f"{found.digest}: unpacked to {path}")
    )


release.add_command(push_command)
release.add_command(pull_command)

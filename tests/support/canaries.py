"""Secrets and names that a test plants on a device, and a search of a finished snapshot for every form of them."""

from __future__ import annotations

import base64
import bz2
import contextlib
import gzip
import importlib
import io
import json
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, quote_plus

from kedge_agent.formats.recording_frames import Skipped, read_frames
from kedge_agent.formats.snapshots import zstd_module

CONTROL = "positive-control-5f2c91"
HOST, USER, CARD = "cnry-host-7", "zoecanary", "3c:6d:66:7e:57:01"
PRIVATE_KEY = (
    "-----BEGIN OPENSSH PRIVATE KEY-----\n"
    "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW\n"
    "QyNTUxOQAAACCanaryZ7k2mWk0Pq6y1eNn2rQ7uJ8k3sT5vXz1bCdEfGhIjKlMwAAAJgqH\n"
    "-----END OPENSSH PRIVATE KEY-----"
)


@dataclass(frozen=True)
class Canary:
    """value: what must not be found. told: a line that gives it away."""

    value: str
    told: str


CANARIES = (
    Canary("Cnry-Pass/77+x~9", "login with password=Cnry-Pass/77+x~9 failed"),
    Canary("Cnry two words 78", '{"db_password": "Cnry two words 78"}'),
    Canary("cnryApiKey889900", "API_KEY: cnryApiKey889900"),
    Canary("ghp_C4naRy7e42F292c6912E7710c838347Ae178B4", "git: ghp_C4naRy7e42F292c6912E7710c838347Ae178B4"),
    Canary("hf_CanaryCanaryCanaryCanaryCanary77", "hub hf_CanaryCanaryCanaryCanaryCanary77"),
    Canary("AKIACANARY7CANARY777", "aws AKIACANARY7CANARY777"),
    Canary(
        "eyJhbGciOiJIUzI1NiJ9.eyJjYW5hcnkiOiI3In0.Q4narySignature77",
        "jwt eyJhbGciOiJIUzI1NiJ9.eyJjYW5hcnkiOiI3In0.Q4narySignature77",
    ),
    Canary("CnryBearer.77-token~x", "Authorization: Bearer CnryBearer.77-token~x"),
    Canary("cnryUrlPass79", "GET https://carl:cnryUrlPass79@store.cnry-plant.example.com/x"),
    Canary("Q4x9Zk2Lq7Vb4Nw1Zt8Rf3Yp6Hd0Jm5Gc2Sa", "blob Q4x9Zk2Lq7Vb4Nw1Zt8Rf3Yp6Hd0Jm5Gc2Sa"),
    Canary(PRIVATE_KEY.splitlines()[2], PRIVATE_KEY),
    Canary("zoe.canary@cnry-plant.example.com", "mail to zoe.canary@cnry-plant.example.com bounced"),
    Canary("store.cnry-plant.example.com", "no route to store.cnry-plant.example.com"),
    Canary("203.0.113.77", "connection from 203.0.113.77 port 52114"),
    Canary("2001:db8:77::c0de", "listening on [2001:db8:77::c0de]:443"),
    Canary("3c:6d:66:7e:57:99", "wlan0: associated with 3c:6d:66:7e:57:99"),
    Canary("CnryNet-5G", 'wpa: ssid="CnryNet-5G"'),
    Canary("carlcanary", "cannot read /home/carlcanary/model.onnx"),
    Canary(
        "carl canary at desk",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9mWk0Pq6y1eNn2rQ7uJ8k3sT5vXz1bCdEfGhIjKlMn carl canary at desk",
    ),
)


def told_lines() -> list[str]:
    """Lines that give every canary away, in pieces of text that agents and services write."""
    return [f"2026-11-26T04:52:22.123Z ERROR kedge.test: {each.told}" for each in CANARIES]


def bare_lines() -> list[str]:
    """Lines in which a canary stands bare, and in encoded forms, and nothing gives it away."""
    out = []
    for each in CANARIES:
        data = each.value.encode()
        out += [f"2026-11-26T04:52:23.123Z ERROR kedge.test: got {each.value} again"]
        packed = [base64.b64encode(lead + data + b"-tail").decode() for lead in (b"", b"x", b"xy")]
        packed += [base64.urlsafe_b64encode(b"ab" + data).decode(), quote(data, safe=""), _every(data), data.hex()]
        out += [f"2026-11-26T04:52:24.123Z ERROR kedge.test: sent {text} away" for text in packed]
    return out


def _every(data: bytes) -> str:
    return "".join(f"%{byte:02x}" for byte in data)


def forms(value: str) -> Iterator[bytes]:
    """What is searched for: the value, in base64 wherever it begins, percent-encoded, and in hexadecimal digits."""
    data = value.encode()
    yield data
    yield data.hex().encode()
    yield data.hex().upper().encode()
    for text in {quote(data), quote(data, safe=""), quote_plus(data), _every(data), _every(data).upper()}:
        yield text.encode()
    # The characters of base64 that hold bits of the value alone.
    for lead, skip in ((0, 0), (1, 2), (2, 3)):
        whole = base64.b64encode(bytes(lead) + data)[skip : (lead + len(data)) * 8 // 6]
        yield whole
        yield whole.translate(bytes.maketrans(b"+/", b"-_"))


def everything(path: Path) -> Iterator[tuple[str, bytes]]:
    """Every member of a snapshot, and whatever can be unpacked out of one, to any depth: (where, bytes)."""
    packed = path.read_bytes()
    zstd = zstd_module()
    whole = zstd.decompress(packed) if packed.startswith(b"\x28\xb5\x2f\xfd") else gzip.decompress(packed)
    yield path.name, whole
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        for info in tar:
            yield info.name, info.name.encode()
            reader = tar.extractfile(info)
            assert reader is not None, f"{info.name} is no file"
            yield from _inside(info.name, reader.read(), 0)


def _inside(where: str, data: bytes, depth: int) -> Iterator[tuple[str, bytes]]:
    yield where, data
    if depth > 4:
        return
    for name, unpack in _UNPACKERS.items():
        # Whatever it says: this is no such file.
        with contextlib.suppress(Exception):
            inner = unpack(data)
            if inner and inner != data:
                yield from list(_inside(f"{where}!{name}", inner, depth + 1))
    if b"kRc1" in data:
        for place, (_, payload) in enumerate(read_frames(data, Skipped())):
            yield from _inside(f"{where}!frame{place}", bytes(payload), depth + 1)
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in archive.namelist():
            yield from _inside(f"{where}!{name}", archive.read(name), depth + 1)
    # JSON hides letters behind \\u escapes.
    with contextlib.suppress(ValueError):
        yield f"{where}!json", json.dumps(json.loads(data), ensure_ascii=False).encode()


def _untar(data: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return b"\n".join(reader.read() for info in tar if (reader := tar.extractfile(info)) is not None)


_UNPACKERS = {
    "gzip": gzip.decompress,
    "zlib": zlib.decompress,
    "bz2": bz2.decompress,
    "xz": lzma.decompress,
    "zstd": lambda data: importlib.import_module(zstd_module().__name__).decompress(data),
    "tar": _untar,
}


def leaks(path: Path, values: list[str]) -> list[str]:
    """Where, and in which form, a value is found in a snapshot."""
    wanted = [(value, form) for value in values for form in forms(value) if len(form) >= 6]
    return [
        f"{where}: {value!r} as {form[:60]!r}"
        for where, data in everything(path)
        for value, form in wanted
        if form in data or form.lower() in data.lower()
    ]


def is_there(path: Path, text: str) -> bool:
    """Whether a search of the same kind finds this."""
    return any(form in data for _, data in everything(path) for form in [text.encode()])

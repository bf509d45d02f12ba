"""Nothing private is in a snapshot, wherever it was planted and however it was written; what is evidence is there."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kedge.diagnose.opened import open_snapshot
from kedge.diagnose.snapshot import take_snapshot
from kedge.release.bundle import Release
from kedge.transport.local import LocalAgent
from kedge_agent.diagnose.archive import Archive
from kedge_agent.formats.parts import Part, read_parts
from kedge_agent.store.journal import Journal
from kedge_agent.store.layout import Layout
from tests.support.canaries import (
    CANARIES,
    CARD,
    CONTROL,
    HOST,
    PRIVATE_KEY,
    USER,
    bare_lines,
    forms,
    is_there,
    leaks,
    told_lines,
)
from tests.support.deploys import Device

pytestmark = pytest.mark.slow

ENVIRONMENT = {"KEDGE_UPLOAD_TOKEN": "cnryEnvToken-4711", "PLAIN_CANARY": "cnryPlainEnvironment-4712"}
VALUES = [*(each.value for each in CANARIES), *ENVIRONMENT.values(), USER]


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """A device whose state folder lies in somebody's home."""
    state = tmp_path / "home" / USER / "device"
    state.mkdir(parents=True, mode=0o700)
    (state / "agent.json").write_text('{"releases": {"probation_s": 0}}')
    made = Device(state, **ENVIRONMENT)
    yield made
    made.kill()


def plant(state: Path) -> None:
    """Put every canary wherever collectors look in a state folder: told in some files, bare in others."""
    told, bare = told_lines(), bare_lines()
    with (state / "agent.log").open("a") as log:
        log.write(f"2026-11-26T04:52:20.000Z ERROR kedge.test: {CONTROL}\n" + "\n".join(bare) + "\n")
    (state / "agent.log.1").write_text("\n".join(told) + "\n")
    (state / "start.log").write_text("\n".join(bare) + "\n")
    settings = {"releases": {"probation_s": 0}, "upload": {each.told: each.value for each in CANARIES}}
    (state / "agent.json").write_text(json.dumps(settings))
    for folder in ("releases/" + "ab" * 32, "engines/" + "cd" * 32, "agent", "models/digits"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    notes = {"notes": bare, "private_key": PRIVATE_KEY, **{each.value: each.told for each in CANARIES}}
    for name in (
        f"releases/{'ab' * 32}/manifest.json",
        f"releases/{'ab' * 32}/accepted.json",
        f"engines/{'cd' * 32}/entry.json",
        f"engines/{'cd' * 32}/report.json",
        "agent/upgrade.json",
        "models/digits/state.next",
    ):
        (state / name).write_text(json.dumps(notes))
    for ring in ("seconds", "minutes"):
        folder = state / "recorder" / ring
        folder.mkdir(parents=True, exist_ok=True)
        newest = max(folder.iterdir(), default=folder / "0000000000.rec")
        with newest.open("ab") as segment:
            segment.write(b"\0\xff\x80".join(line.encode() for line in (*told, *bare)))


def test_no_canary_of_a_device_leaves_it_and_the_evidence_does(
    device: Device, release: Release, tmp_path: Path
) -> None:
    journal = Journal(Layout(device.state))
    for each in CANARIES:
        journal.append("digits", "ef" * 32, "refused", reason=each.told[:900], detail=each.value)
    device.start()
    device.serve(release)
    plant(device.state)
    taken = take_snapshot(LocalAgent(device.state), tmp_path / "out.kedge-snapshot.tar.zst", seconds=60)
    opened = open_snapshot(taken.path)

    assert taken.cut is None
    assert leaks(taken.path, VALUES) == []
    assert is_there(taken.path, CONTROL)
    assert is_there(taken.path, release.digest)
    assert {"logs/agent.log", "logs/agent.log.1", "logs/start.log", "store/journal"} <= set(opened.members)
    assert any(name.startswith("recorder/seconds/") for name in opened.members)
    manifest = opened.member(f"store/releases/{release.digest}/manifest.json")
    assert manifest == release.manifest_bytes, "what has nothing private in it stays as it is, to the byte"
    assert opened.manifest is not None
    assert set(opened.manifest["redacted"]) >= {"secret", "ip", "mac", "email", "host", "user", "comment"}
    assert taken.map_path is not None
    told = taken.map_path.read_text()
    assert "203.0.113.77" in told
    secrets = [each.value for each in CANARIES if "ass" in each.value]
    assert not [(value, line) for value in secrets for line in told.splitlines() if value in line]


def test_the_search_finds_every_canary_in_every_form_where_nothing_masks_them(tmp_path: Path) -> None:
    path = tmp_path / "naked.kedge-snapshot.tar.zst"
    with path.open("wb") as file:
        archive = Archive(file.write)
        for place, each in enumerate(CANARIES):
            for name, form in enumerate(forms(each.value)):
                archive.add(f"{place}/{name}", gzip.compress(b"x=" + form + b";"))
        archive.close()
    found = leaks(path, VALUES)

    for place, each in enumerate(CANARIES):
        for name, form in enumerate(forms(each.value)):
            # A form of few characters is not searched for: it stands in anything.
            assert len(form) < 6 or any(line.startswith(f"{place}/{name}!gzip: ") for line in found), (each.value, form)


def kernel_tree(root: Path) -> None:
    """A recorded tree of a device: kernel lines, mounts, names and addresses of its own."""
    files = {
        "etc/hostname": f"{HOST}\n",
        "etc/hosts": f"127.0.0.1 localhost\n203.0.113.5 {HOST} {HOST}.cnry-site.test\n",
        "etc/passwd": f"root:x:0:0:root:/root:/bin/sh\n{USER}:x:1000:1000:Zoe Canary,,,:/home/{USER}:/bin/sh\n",
        "etc/machine-id": "c0ffee00c0ffee00c0ffee00c0ffee00\n",
        "proc/device-tree/serial-number": "1420077000001\0",
        "proc/net/arp": f"IP address HW type Flags HW address Mask Device\n203.0.113.1 0x1 0x2 {CARD} * eth0\n",
        "sys/class/net/eth0/address": "3c:6d:66:7e:57:02\n",
        "proc/mounts": f"//203.0.113.9/models /mnt cifs rw,username={USER},password=cnryMountPass77 0 0\n",
        "proc/version": f"Linux version 5.15.148-tegra ({USER}@{HOST}) 36.4.3\n",
        "var/log/kern.log": "".join(f"Nov 26 04:52:22 {HOST} kernel: Out of memory: {line}\n" for line in told_lines())
        + "".join(f"Nov 26 04:52:23 {HOST} kernel: EXT4-fs error {line}\n" for line in bare_lines())
        + f"Nov 26 04:52:24 {HOST} kernel: Out of memory: {CONTROL} Zoe Canary 1420077000001\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


_PROGRAM = """
import sys
from pathlib import Path
from kedge_agent.diagnose.collectors.table import COLLECTORS
from kedge_agent.diagnose.device import Collected
from kedge_agent.diagnose.running import Collector
from kedge_agent.diagnose.snapshot import write_snapshot

def service(device):
    names = ("service.log", "service.log.1.gz", "notes.zip", "core.bin", "wide.txt")
    return Collected({"files": []}, [(f"logs/{name}", (device.root / name).read_bytes()) for name in names])

planted = tuple(Collector("service_log", service, 5.0) if each.name == "service_log" else each for each in COLLECTORS)
write_snapshot(Path(sys.argv[1]), sys.stdout.buffer, 40, planted, Path(sys.argv[2]))
"""


def test_no_canary_of_the_kernel_the_service_or_the_system_leaves_it(tmp_path: Path) -> None:
    state, root = tmp_path / "state", tmp_path / "root"
    state.mkdir()
    kernel_tree(root)
    text = "\n".join([CONTROL, *told_lines(), *bare_lines()]).encode()
    (root / "service.log").write_bytes(text)
    (root / "service.log.1.gz").write_bytes(gzip.compress(text))
    with zipfile.ZipFile(root / "notes.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("notes.txt", text)
    (root / "core.bin").write_bytes(bytes(range(256)) * 40 + b"\0".join(text.splitlines()) + bytes(range(256)) * 40)
    (root / "wide.txt").write_bytes(text.decode().encode("utf-16"))
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(state), str(root)], stdout=subprocess.PIPE, check=True, timeout=120
    )
    parts = list(read_parts(_reader(done.stdout)))
    path = tmp_path / "replayed.kedge-snapshot.tar.zst"
    path.write_bytes(b"".join(body for kind, body in parts if kind is Part.DATA))
    opened = open_snapshot(path)
    names = [HOST, USER, CARD, "Zoe Canary", "1420077000001", "c0ffee00c0ffee00c0ffee00c0ffee00", "cnryMountPass77"]
    names += ["203.0.113.1", "203.0.113.5", "203.0.113.9", "3c:6d:66:7e:57:02", f"{HOST}.cnry-site.test"]

    assert leaks(path, [*(each.value for each in CANARIES), *names]) == []
    assert is_there(path, CONTROL)
    assert CONTROL.encode() in (opened.member("logs/kernel.log") or b"")
    assert CONTROL.encode() in (opened.member("logs/service.log.1.gz") or b"")
    left_out = opened.manifest["collectors"]["service_log"]["left_out"] if opened.manifest else []
    assert left_out == [
        {"name": "logs/notes.zip", "why": "it is compressed: what is in it cannot be masked"},
        {"name": "logs/core.bin", "why": "it is no text: what is in it cannot be masked"},
        {"name": "logs/wide.txt", "why": "it is no text: what is in it cannot be masked"},
    ]
    assert b"5.15.148-tegra" in (opened.member("system/proc/version") or b"")


def _reader(data: bytes):
    view = memoryview(data)

    def exactly(size: int) -> bytes:
        nonlocal view
        if len(view) < size:
            raise EOFError
        out, view = bytes(view[:size]), view[size:]
        return out

    return exactly

"""What the agent stands on: a disk that is full, and a live release that has lost a bit."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kedge.release.bundle import Release
from tests.loopback.doctor.conftest import Local, make_local
from tests.support.doctors import commands, finding
from tests.support.stores import fill, small_disk

pytestmark = pytest.mark.slow

MIB = 1 << 20


def test_a_full_disk_is_the_first_cause_and_its_cure_shows_what_fills_it(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", 96 * MIB) as disk:
        local = make_local(disk, tmp_path, monkeypatch)
        try:
            local.device.start()
            local.device.serve(release)
            filler = fill(disk)
            first = local.doctor.names("disk")["first_cause"]
            assert first["figures"]["free_bytes"] == 0
            assert str(local.device.state) in first["evidence"]
            shown = subprocess.run(
                ["sh", "-c", first["cure"].removeprefix("sudo ")], capture_output=True, text=True, check=True
            )
            # What fills it lies beside the agent's own folder.
            assert shown.stdout.splitlines()[-1].split()[1] == str(disk)
            filler.unlink()
            document = local.doctor.finds_no_fault()
            assert finding(document, "disk")["result"] == "ok"
        finally:
            local.device.kill()


def test_a_live_release_that_lost_a_bit_is_the_first_cause_and_a_deploy_of_it_is_the_cure(
    local: Local, release: Release
) -> None:
    local.device.start()
    local.device.serve(release)
    local.doctor.finds_no_fault()
    damaged = max((path for _, path in release.files()), key=lambda path: path.stat().st_size).name
    stored = local.device.state / "releases" / release.digest / damaged
    flip(stored)
    first = local.doctor.names("releases")["first_cause"]
    assert damaged in first["evidence"]
    assert release.digest[:12] in first["evidence"]
    (words,) = commands(first["cure"])
    assert words == ["kedge", "deploy", "RELEASE", "--to", "local"]
    done = local.doctor.kedge("deploy", str(release.folder), "--to", "local")
    assert done.returncode == 0, done.stderr
    document = local.doctor.finds_no_fault()
    assert finding(document, "releases")["result"] == "ok"


def flip(path: Path) -> None:
    """Change one bit in the midst of a file that nobody may write to."""
    subprocess.run(["chmod", "u+w", str(path)], check=True)
    with path.open("r+b") as file:
        place = path.stat().st_size // 2
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    subprocess.run(["chmod", "u-w", str(path)], check=True)

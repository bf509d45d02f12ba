"""The tools that make emulated devices run as root: they touch what is theirs, and leave nothing half made."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tools.arm64 import device, pycuda_wheel, root
from tools.arm64.root import UnavailableError
from tools.arm64_device import next_lines

from tests.support.environment import lacks
from tests.support.keys import make_key


@pytest.fixture
def as_root() -> None:
    if os.geteuid() != 0:
        lacks("arm64", "only root gives files to a device's user")


@pytest.mark.parametrize("name", ["../other", "", ".", "/"])
@pytest.mark.parametrize("do", [device.remove, device.stop, device.find, device.start])
def test_a_name_leads_nowhere_but_to_a_device(do: Callable[..., object], name: str, tmp_path: Path) -> None:
    devices, other = tmp_path / "arm64", tmp_path / "other"
    for each in (devices / "one", other):
        each.mkdir(parents=True)
    with pytest.raises(UnavailableError, match="cannot name a device"):
        do(str(other) if name == "/" else name, devices)
    assert other.is_dir()
    assert (devices / "one").is_dir()


def test_a_root_whose_copy_was_cut_is_copied_anew(as_root: None, tmp_path: Path) -> None:
    # Overlays take no folder with a colon in its name.
    shared, place = tmp_path / "a:root", tmp_path / "place"
    (place / "root.partial").mkdir(parents=True)
    (place / "root.partial" / "half").touch()
    with pytest.raises(UnavailableError, match="cp "):
        device._disk(place, shared)
    shared.mkdir()
    (shared / "whole").touch()
    assert device._disk(place, shared) == f"none -o bind {place}/root"
    assert os.listdir(place / "root") == ["whole"]
    assert not (place / "root.partial").exists()


def test_a_device_that_was_equipped_by_half_is_equipped_anew(as_root: None, tmp_path: Path) -> None:
    make_key(tmp_path, "skips where there is no ssh-keygen")
    place, files = tmp_path / "place", tmp_path / "files"
    place.mkdir()
    with pytest.raises(FileNotFoundError):
        device._equip(place, files)
    assert not (place / "host_key").exists()
    files.mkdir()
    device._equip(place, files)
    assert sorted(os.listdir(place)) == ["host_key", "host_key.pub", "user_key", "user_key.pub"]
    for name in ("", ".pub"):
        there = files / f"etc/ssh/ssh_host_ed25519_key{name}"
        assert there.read_bytes() == (place / f"host_key{name}").read_bytes()


def test_who_made_a_device_by_sudo_is_told_how_to_get_its_key(tmp_path: Path) -> None:
    make_key(tmp_path, "host_key")
    made = device.EmulatedDevice("one", tmp_path, "198.18.0.2", 1)
    assert f"--key {made.key}" in next_lines(made, None)[0]
    first, second, *_ = next_lines(made, "anna")
    assert first == f"sudo install -m 600 -o anna {made.key} ~/.ssh/kedge-one"
    assert second.endswith("--key ~/.ssh/kedge-one")


def test_nothing_of_a_source_that_is_not_the_pinned_one_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, ran = f"pycuda-{pycuda_wheel._VERSION}", tmp_path / "ran"
    setup = f"open({str(ran)!r}, 'w')\nfrom setuptools import setup\nsetup(name='pycuda', version='2026.1')\n".encode()
    archive = tmp_path / "index" / f"{name}.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as out:
        for file, data in (("setup.py", setup), ("PKG-INFO", b"Metadata-Version: 2.1\nName: pycuda\n")):
            entry = tarfile.TarInfo(f"{name}/{file}")
            entry.size = len(data)
            out.addfile(entry, io.BytesIO(data))
    (tmp_path / "venv").symlink_to(sys.prefix)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(archive.parent))
    with pytest.raises(pycuda_wheel.NotBuiltError):
        pycuda_wheel._source(tmp_path)
    assert not ran.exists()
    monkeypatch.setattr(pycuda_wheel, "_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    assert (pycuda_wheel._source(tmp_path) / "setup.py").read_bytes() == setup


@pytest.mark.parametrize("keys", ["Debian's", "none"])
def test_a_root_is_made_of_what_debian_has_signed_alone(
    as_root: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: str
) -> None:
    if (lacking := root.why_not()) is not None:
        lacks("arm64", lacking)
    release = tmp_path / "mirror" / "dists" / "bookworm" / "Release"
    release.parent.mkdir(parents=True)
    release.write_text("Suite: bookworm\nCodename: bookworm\nArchitectures: arm64\nComponents: main\nSHA256:\n")
    monkeypatch.setattr(root, "_MIRROR", f"file://{tmp_path}/mirror")
    if keys == "none":
        monkeypatch.setattr(root, "_KEYRING", tmp_path / "none.gpg")
        assert "debian-archive-keyring" in (root.why_not() or "")
    with pytest.raises(UnavailableError, match=r"debootstrap failed: .*([Kk]eyring|signature|Release)"):
        root._bootstrap(tmp_path / "root", ("python3",), tmp_path / "log", lambda line: None)
    assert not list(tmp_path.rglob("*.deb"))

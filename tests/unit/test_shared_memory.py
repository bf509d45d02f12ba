"""Regions of shared memory: what may be registered, and what a client can do to one afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kedge_agent.errors import AgentError
from kedge_agent.serving.shared_memory import Regions


@pytest.fixture
def regions(tmp_path: Path) -> Iterator[Regions]:
    found = Regions("/kedge-", tmp_path)
    (tmp_path / "kedge-a").write_bytes(bytes(range(100)))
    yield found
    found.close()


def body(key: str = "/kedge-a", size: object = 100, offset: object = 0) -> dict[str, object]:
    return {"key": key, "byte_size": size, "offset": offset}


def read(regions: Regions, size: int, offset: int = 0) -> bytes:
    view = memoryview(bytearray(size))
    regions.read_into("r", view, offset)
    return bytes(view)


def test_a_region_is_read_and_written_within_its_part_of_the_object(regions: Regions, tmp_path: Path) -> None:
    regions.register("r", body(size=50, offset=10))
    assert read(regions, 3, 2) == bytes([12, 13, 14])
    regions.write("r", memoryview(b"\xff\xff"), 48)
    assert (tmp_path / "kedge-a").read_bytes()[57:61] == bytes([57, 255, 255, 60])
    assert regions.status("r") == [{"name": "r", "key": "/kedge-a", "offset": 10, "byte_size": 50}]


@pytest.mark.parametrize(("size", "offset"), [(51, 0), (1, 50), (1, -1), (1 << 62, 0)])
def test_what_is_not_within_the_region_is_refused(regions: Regions, size: int, offset: int) -> None:
    regions.register("r", body(size=50))
    with pytest.raises(AgentError, match="not within it"):
        regions.require("r", size, offset)


def test_an_object_that_became_shorter_is_an_error_and_is_never_made_longer(regions: Regions, tmp_path: Path) -> None:
    regions.register("r", body())
    os.truncate(tmp_path / "kedge-a", 40)
    for use in (lambda: read(regions, 60), lambda: regions.write("r", memoryview(bytes(60)), 0)):
        with pytest.raises(AgentError, match="become shorter"):
            use()
    with pytest.raises(AgentError, match="become shorter"):
        regions.require("r", 60, 0)
    assert (tmp_path / "kedge-a").stat().st_size == 40
    assert read(regions, 40) == bytes(range(40))


@pytest.mark.parametrize(
    ("asked", "kind", "reason"),
    [
        (body(key="/other"), "forbidden", "are allowed here"),
        (body(key="/kedge-absent"), "not_found", "no shared memory object"),
        (body(key="/kedge-../a"), "bad_input", "key"),
        (body(key="kedge-a"), "bad_input", "key"),
        (body(key="/kedge-a\0"), "bad_input", "key"),
        (body(size=101), "bad_input", "does not hold"),
        (body(size=1, offset=100), "bad_input", "does not hold"),
        (body(size=0), "bad_input", "numbers of bytes"),
        (body(size=True), "bad_input", "numbers of bytes"),
        (body(size="5"), "bad_input", "numbers of bytes"),
        (body(offset=-1), "bad_input", "numbers of bytes"),
        ([], "bad_input", "object of key"),
        (None, "bad_input", "object of key"),
    ],
)
def test_what_may_not_be_registered_is_refused(regions: Regions, asked: object, kind: str, reason: str) -> None:
    with pytest.raises(AgentError, match=reason) as caught:
        regions.register("r", asked)
    assert caught.value.kind == kind
    assert regions.status() == []


@pytest.mark.parametrize("make", ["link", "folder", "pipe"])
def test_only_plain_objects_are_opened(regions: Regions, tmp_path: Path, make: str) -> None:
    path = tmp_path / "kedge-b"
    if make == "link":
        (tmp_path / "secret").write_bytes(bytes(100))
        path.symlink_to(tmp_path / "secret")
    elif make == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(AgentError):
        regions.register("r", body(key="/kedge-b"))


def test_a_name_is_taken_until_it_is_unregistered_and_forgetting_twice_is_no_error(regions: Regions) -> None:
    regions.register("r", body())
    with pytest.raises(AgentError, match="already"):
        regions.register("r", body())
    regions.unregister("r")
    regions.unregister("r")
    regions.register("r", body())


def test_regions_are_bounded_and_give_their_descriptors_back(regions: Regions) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(64):
        regions.register(f"r{number}", body())
    with pytest.raises(AgentError, match="64 shared memory regions") as caught:
        regions.register("more", body())
    assert caught.value.kind == "busy"
    regions.unregister(None)
    assert len(os.listdir("/proc/self/fd")) == before


def test_where_no_prefix_is_set_there_is_no_shared_memory(tmp_path: Path) -> None:
    (tmp_path / "kedge-a").write_bytes(bytes(100))
    off = Regions(None, tmp_path)
    for use in (lambda: off.register("r", body()), off.status, lambda: off.require("r", 1, 0)):
        with pytest.raises(AgentError, match="off on this device") as caught:
            use()
        assert caught.value.kind == "forbidden"

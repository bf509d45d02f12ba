from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from kedge.build.cache import check_engine
from kedge.errors import IntegrityError
from kedge_agent.engine.compile import compile_onnx
from kedge_agent.engine.order import Order
from kedge_agent.formats.passport import Passport
from kedge_agent.formats.plan_header import HEADER_BYTES, PlanHeaderError, read_plan_header
from tests.support.environment import tensorrt_rtx
from tests.support.qdq import Net

VERSION = slice(24, 28)
MASK = slice(32, 36)


@pytest.fixture(scope="module")
def engine() -> bytes:
    tensorrt_rtx()
    net = Net()
    model = net.graph(net.conv(net.pair("x")), (1, 16, 8, 8)).proto.SerializeToString()
    return compile_onnx(model, Order(compute_capabilities=("8.6", "8.9"))).engine


def made(magic: bytes, version: tuple[int, int, int, int], size: int = 4096, sections: int = 2) -> bytes:
    """A header as TensorRT writes it, and nothing behind it."""
    head = struct.pack("<4sIIIQ4B", magic, 0, sections, 0, size, *version)
    return head + b"\0" * (HEADER_BYTES - len(head))


def edited(engine: bytes, where: slice, value: bytes) -> bytes:
    return engine[: where.start] + value + engine[where.stop :]


def test_the_header_of_a_real_engine_says_who_wrote_it_and_for_which_gpus(engine: bytes) -> None:
    header = read_plan_header(engine, file_bytes=len(engine))
    assert header.runtime == "tensorrt-rtx"
    assert header.version == "1.7.1.116"
    assert header.size_bytes == len(engine)
    assert header.compute_capabilities == ("8.6", "8.9")
    assert header.describe() == "TensorRT for RTX 1.7.1.116, CC 8.6, 8.9"


def test_standard_engines_old_and_new_are_told_apart() -> None:
    new = read_plan_header(made(b"ftrt", (10, 3, 0, 30)))
    assert (new.runtime, new.version, new.compute_capabilities) == ("tensorrt", "10.3.0.30", None)
    old = read_plan_header(made(b"ptrt", (8, 5, 2, 2)))
    assert (old.runtime, old.version) == ("tensorrt", "8.5.2.2")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (b"vtrt" + b"\0" * 20, "truncated"),
        (b"\x08\x07" + b"\0" * 100, "no TensorRT engine"),
        (made(b"ptrt", (10, 3, 0, 30)), "damaged"),
        (made(b"ftrt", (8, 2, 0, 0)), "damaged"),
        (made(b"ftrt", (0, 0, 0, 0)), "damaged"),
        (made(b"ftrt", (10, 3, 0, 30), size=10), "claims 10 bytes"),
        (made(b"ftrt", (10, 3, 0, 30), sections=0), "damaged"),
        (made(b"vtrt", (1, 7, 1, 116)), "does not know: mask 0x0"),
    ],
)
def test_what_is_no_engine_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(PlanHeaderError, match=reason):
        read_plan_header(data)


def test_a_truncated_and_a_lengthened_engine_are_refused(engine: bytes) -> None:
    with pytest.raises(PlanHeaderError, match="is truncated"):
        read_plan_header(engine[:-1], file_bytes=len(engine) - 1)
    with pytest.raises(PlanHeaderError, match="not its own"):
        read_plan_header(engine, file_bytes=len(engine) + 1)


@pytest.mark.parametrize(
    ("where", "value", "reason"),
    [
        (
            VERSION,
            bytes((1, 6, 0, 4)),
            r"is an engine of TensorRT for RTX 1\.6\.0\.4, CC 8\.6, 8\.9, its passport says .*1\.7\.1",
        ),
        (MASK, (16).to_bytes(4, "little"), r"CC 12\.0, its passport says .* CC 8\.6, 8\.9"),
        (slice(0, 4), b"ftrt", r"damaged: ftrt with version 1\.7\.1\.116"),
        (slice(0, 4), b"\x7fELF", "no TensorRT engine"),
        (slice(16, 24), (12345678).to_bytes(8, "little"), "truncated"),
        (MASK, (1 << 20).to_bytes(4, "little"), "does not know"),
    ],
)
def test_an_edited_engine_is_refused_before_it_is_loaded(
    engine: bytes, tmp_path: Path, where: slice, value: bytes, reason: str
) -> None:
    passport = Passport("tensorrt-rtx", "1.7.1.116", "linux", "x86_64", ("8.6", "8.9"))
    path = tmp_path / "engine"
    path.write_bytes(engine)
    check_engine(path, passport)
    path.write_bytes(edited(engine, where, value))
    with pytest.raises(IntegrityError, match=reason):
        check_engine(path, passport)


def test_no_edit_of_any_byte_makes_the_reader_fail_in_another_way(engine: bytes) -> None:
    draw = random.Random(0)  # noqa: S311 - not for secrets
    refused = 0
    for _ in range(20_000):
        data = bytearray(engine[:HEADER_BYTES])
        for _ in range(draw.choice((1, 1, 2, 4, 16))):
            data[draw.randrange(len(data))] = draw.randrange(256)
        cut = draw.choice((len(data), len(data), draw.randrange(len(data) + 1)))
        try:
            header = read_plan_header(
                bytes(data[:cut]), file_bytes=draw.choice((None, len(engine), draw.getrandbits(40)))
            )
        except PlanHeaderError:
            refused += 1
        else:
            assert header.size_bytes > HEADER_BYTES
            assert header.describe()
    assert 1_000 < refused < 20_000

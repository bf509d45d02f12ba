"""Bodies for tools/fuzz: JSON of any shape, and inference requests that lie about what they carry."""

from __future__ import annotations

import json
import struct
from typing import Any, Protocol

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from tools.fuzz.device import REGION_PREFIX

__all__ = ["ANYTHING", "OPTIONS", "REGION_NAMES", "REGISTRATIONS", "infer"]

_INTEGERS = (
    0,
    1,
    -1,
    2,
    3,
    12,
    127,
    255,
    1 << 15,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    1 << 40,
    1 << 62,
    1 << 63,
    1 << 64,
    10**25,
)
_NUMBERS = st.one_of(st.sampled_from(_INTEGERS), st.floats(allow_nan=True), st.sampled_from((0.5, 1e300, -0.0, 3.5e38)))
_WORDS = ("", "x", "s", "a", "FP32", "\ud800", "\x00", "é" * 40, "n" * 2000)
_TEXTS = st.one_of(st.sampled_from(_WORDS), st.text(max_size=12))
_LEAVES = st.one_of(st.none(), st.booleans(), _NUMBERS, _TEXTS)
_VALUES = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=3), max_leaves=8
)
_DATATYPES = (
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"),
    *("BYTES", "BF16", "fp32", "", "FP99"),
)
_REGION_NAMES = ("r0", "r1", "r2", "r%2F", "%00", "%C3%A9", "x" * 300, "..", "%zz")
_KEYS = (
    *(f"{REGION_PREFIX}{name}" for name in ("a", "a", "b", "fifo", "link", "missing", "../x", "k" * 300, "\x00")),
    *("/other", REGION_PREFIX[1:], "/", ""),
)


class _Tensors(Protocol):
    """A model with one good request."""

    @property
    def inputs(self) -> Any: ...

    def request(self) -> tuple[bytes, bytes]: ...


def _text(value: Any) -> bytes:
    return json.dumps(value).encode()


@st.composite
def _nested(draw: DrawFn) -> bytes:
    depth = draw(st.sampled_from((10, 100, 900, 1100, 5000, 100_000)))
    opening, closing = draw(st.sampled_from(((b"[", b"]"), (b'{"a":', b"}"), (b'{"inputs":[', b"]}"))))
    return opening * depth + b"1" + (closing * depth if draw(st.booleans()) else b"")


_BROKEN_TEXTS = (
    *(
        b"",
        b"{",
        b"[1,",
        b'{"a":1,"a":2}',
        b"NaN",
        b"[Infinity]",
        b"\xff\xfe",
        b'"\\ud800"',
        b"1e999",
        b"[1e999]",
        b"-",
    ),
    *(b"1" * 5000, b"\xef\xbb\xbf{}", b"{}{}", b"null", b"true", b" " * 3000),
    *(b'{"inputs":null}', b'{"inputs":[]}', b'{"inputs":{}}', b'{"inputs":[{}]}', b'{"inputs":[[]]}'),
)
_BROKEN = st.sampled_from(_BROKEN_TEXTS)


def _mutated(draw: DrawFn, body: Any) -> Any:
    """The same document with one to three values replaced, lost, doubled or put in."""
    for _ in range(draw(st.integers(1, 3))):
        spots = list(_spots(body))
        if not spots:
            return body
        holder, key = spots[draw(st.integers(0, len(spots) - 1))]
        match draw(st.integers(0, 3)):
            case 0 | 1:
                holder[key] = draw(_replacement(key))
            case 2:
                del holder[key]
            case _:
                if isinstance(holder, list):
                    holder.append(holder[key])
                else:
                    holder[draw(_TEXTS)] = holder[key]
    return body


def _spots(value: Any) -> Any:
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield value, key
            yield from _spots(value[key])


def _replacement(key: Any) -> SearchStrategy[Any]:
    if key == "datatype":
        return st.sampled_from(_DATATYPES)
    if key == "shape":
        return st.lists(st.sampled_from(_INTEGERS), max_size=20)
    if key == "binary_data_size":
        return st.sampled_from(_INTEGERS)
    return _VALUES


@st.composite
def infer(draw: DrawFn, model: _Tensors, regions: bool = False) -> tuple[bytes, str | None]:
    """A body, and the value of the header that says where its JSON ends (None: no such header)."""
    header, data = model.request()
    body = json.loads(header)
    if not draw(st.integers(0, 12)):
        return draw(st.one_of(_BROKEN, _nested(), _VALUES.map(_text))) + draw(st.sampled_from((b"", data))), None
    if not draw(st.integers(0, 8)):
        return draw(st.one_of(st.just(data), st.binary(max_size=120))), "0"
    binary = draw(st.booleans()) or regions
    for item in body["inputs"]:
        if regions and draw(st.booleans()):
            item["parameters"] = draw(_part(len(data)))
        elif not binary:
            del item["parameters"]
            item["data"] = _plain(model.inputs[item["name"]])
    if regions and draw(st.booleans()):
        outputs = draw(st.sampled_from(("y", "twice", "not", "same")))
        body["outputs"] = [{"name": outputs, "parameters": draw(_part(len(data)))}]
    if not binary:
        data = b""
    if draw(st.booleans()):
        body["parameters"] = {
            "binary_data_output": draw(st.booleans()),
            "timeout": draw(st.sampled_from((0, 1, 10**6, -1, 1 << 60))),
        }
        body["id"] = draw(_TEXTS)
    if draw(st.integers(0, 5)):
        body = _mutated(draw, body)
    if data and not draw(st.integers(0, 2)):
        data = _lie(draw, data)
    text = _text(body)
    if not data and draw(st.booleans()):
        return text, None
    length = str(len(text))
    if not draw(st.integers(0, 6)):
        length = draw(
            st.sampled_from(("0", "-1", "1", str(len(text) + 1), str(len(text) + len(data)), "9" * 15, "x", "", "1.0"))
        )
    return text + data, length


def _plain(array: Any) -> Any:
    return array.ravel().tolist()


def _lie(draw: DrawFn, data: bytes) -> bytes:
    match draw(st.integers(0, 3)):
        case 0:
            return data[: draw(st.integers(0, len(data)))]
        case 1:
            return data + draw(st.binary(min_size=1, max_size=40))
        case 2:
            at = draw(st.integers(0, max(0, len(data) - 4)))
            lie = struct.pack("<I", draw(st.sampled_from((0, 1, 5, 1 << 16, (1 << 31) - 1, (1 << 32) - 1))))
            return data[:at] + lie + data[at + 4 :]
        case _:
            return draw(st.binary(min_size=len(data), max_size=len(data)))


@st.composite
def _part(draw: DrawFn, size: int) -> dict[str, Any]:
    sizes = st.sampled_from((size, size, 0, 1, 24, 96, 4096, 4097, 1 << 30, 1 << 40, -1, 1 << 63, None, "8", 1.5))
    offsets = st.sampled_from((0, 0, 1, 8, 4095, 4096, 1 << 40, 1 << 63, -1, None, "0"))
    return {
        "shared_memory_region": draw(st.sampled_from(("r0", "r0", "r1", "r2", "ghost", "", 5, None))),
        "shared_memory_offset": draw(offsets),
        "shared_memory_byte_size": draw(sizes),
    }


@st.composite
def _registration(draw: DrawFn) -> bytes:
    if not draw(st.integers(0, 6)):
        return draw(st.one_of(_BROKEN, _VALUES.map(_text)))
    numbers = st.sampled_from((0, 1, 64, 4095, 4096, 4097, 8192, 1 << 20, 1 << 40, 1 << 63, -1, None, "1", 1.0, True))
    body = {"key": draw(st.sampled_from(_KEYS)), "byte_size": draw(numbers)}
    if draw(st.booleans()):
        body["offset"] = draw(numbers)
    return _text(body)


@st.composite
def _options(draw: DrawFn) -> bytes:
    if draw(st.booleans()):
        return b""
    if draw(st.booleans()):
        return draw(st.one_of(_BROKEN, _nested(), _VALUES.map(_text)))
    keys = st.sampled_from(("ready", "parameters", "config", "release", "file:1/model.onnx", "unload_dependents", "x"))
    return _text(draw(st.dictionaries(keys, _VALUES, max_size=3)))


ANYTHING = st.one_of(_BROKEN, _nested(), _VALUES.map(_text))
"""JSON of any shape, and what is none."""
REGION_NAMES = st.sampled_from(_REGION_NAMES)
"""As they stand in a path."""
REGISTRATIONS = _registration()
"""Of shared memory."""
OPTIONS = _options()
"""Of calls that take an object, or nothing."""

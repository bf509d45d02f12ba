"""What tools/fuzz sends: hypothesis strategies, one a family, of requests that are wrong in one way or in several.

A case whose framing is sound is answered on a connection that goes on; after any other we hang up, and the server must.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from tools.fuzz.bodies import ANYTHING, OPTIONS, REGION_NAMES, REGISTRATIONS, infer
from tools.fuzz.case import DOORS, Case, paths, pieces, request
from tools.fuzz.device import Device
from tools.fuzz.heads import heads, raw

from kedge_agent.formats.oip import HEADER_LENGTH

__all__ = ["FAMILIES", "Family"]


Family = Callable[[Device], SearchStrategy[Case]]

_BOMB_BYTES = (1 << 20, 1 << 24, 1 << 26, (1 << 26) + 1, 1 << 28)
_BOMBS = {size: gzip.compress(bytes(size)) for size in _BOMB_BYTES}


def targets(device: Device) -> SearchStrategy[Case]:
    """Every path with any method that is known, odd segments, queries and small bodies of JSON."""
    segment = st.one_of(
        st.sampled_from(["v2", "models", "kedge", "v1", "releases", "region", "..", "%2e", "%00", "versions", "stats"]),
        st.sampled_from([model.name for model in device.models] + [model.digest for model in device.models]),
        st.text("abzAZ09-_.~%+!*'(),;:@&=", max_size=20),
        st.integers(-1, 1 << 70).map(str),
    )
    query = st.one_of(
        st.just(""),
        st.text("abz019=&%?/+-_", max_size=30).map("?".__add__),
        st.integers(-2, 5000).map("?batch={}".format),
    )

    @st.composite
    def build(draw: DrawFn) -> Case:
        path = draw(st.sampled_from(paths(device)))
        if draw(st.booleans()):
            parts = path.split("/")
            at = draw(st.integers(1, len(parts) - 1))
            match draw(st.integers(0, 2)):
                case 0:
                    parts[at] = draw(segment)
                case 1:
                    parts.insert(at, draw(segment))
                case _:
                    parts = parts[:at]
            path = "/".join(parts) or "/"
        method = draw(st.sampled_from(("GET", "POST")))
        body = draw(ANYTHING) if method == "POST" and draw(st.booleans()) else b""
        return Case(draw(DOORS), pieces(draw, request(method, path + draw(query), body)), 1)

    return build()


def inference(device: Device) -> SearchStrategy[Case]:
    """Requests whose JSON, shapes, sizes, strings and header length lie."""

    @st.composite
    def build(draw: DrawFn) -> Case:
        model = draw(st.sampled_from(device.models))
        return Case(draw(DOORS), pieces(draw, _infer(draw, model.name, *draw(infer(model)))), 1)

    return build()


def memory(device: Device) -> SearchStrategy[Case]:
    """Shared memory: registrations of what is not there, too short, or not ours; and its use in requests."""

    @st.composite
    def build(draw: DrawFn) -> Case:
        region = draw(REGION_NAMES)
        base = "/v2/systemsharedmemory"
        match draw(st.integers(0, 4)):
            case 0 | 1:
                data = request("POST", f"{base}/region/{region}/register", draw(REGISTRATIONS))
            case 2:
                data = request(draw(st.sampled_from(("GET", "POST"))), f"{base}/region/{region}/status")
            case 3:
                one = draw(st.sampled_from((f"{base}/region/{region}", base, base)))
                data = request("POST", f"{one}/unregister", draw(st.sampled_from((b"", b"{}", b"[]"))))
            case _:
                model = draw(st.sampled_from(device.models))
                data = _infer(draw, model.name, *draw(infer(model, regions=True)))
        return Case("infer", pieces(draw, data), 1)

    return build()


def control(device: Device) -> SearchStrategy[Case]:
    """The model repository, and the control door's own calls."""
    digests = st.one_of(
        st.sampled_from([model.digest for model in device.models]), st.text("0123456789abcdefABg", max_size=66)
    )
    names = st.one_of(st.sampled_from([model.name for model in device.models]), st.text("abz09-_.", max_size=70))

    @st.composite
    def build(draw: DrawFn) -> Case:
        name, body = draw(names), draw(OPTIONS)
        target = draw(
            st.sampled_from(
                (
                    "/v2/repository/index",
                    f"/v2/repository/models/{name}/load",
                    f"/v2/repository/models/{name}/unload",
                    f"/kedge/v1/models/{name}/rollback",
                    f"/kedge/v1/models/{name}/memory",
                    f"/kedge/v1/models/{name}/golden?batch={draw(st.integers(-1, 5000))}",
                    "/kedge/v1/build",
                    f"/kedge/v1/build/{draw(digests)}?after={draw(st.integers(-1, 9))}&wait=0",
                    f"/kedge/v1/engines/{draw(digests)}?part=engine&offset={draw(st.integers(-1, 1 << 65))}",
                    f"/kedge/v1/releases/{draw(digests)}/activate",
                )
            )
        )
        method = draw(st.sampled_from(("POST", "POST", "GET")))
        return Case(draw(st.sampled_from(("control", "infer"))), pieces(draw, request(method, target, body)), 1)

    return build()


def encodings(device: Device) -> SearchStrategy[Case]:
    """Bodies that are compressed, well or badly, that inflate without end, or that wait to be asked for."""

    @st.composite
    def build(draw: DrawFn) -> Case:
        model = draw(st.sampled_from(device.models))
        body, length = draw(infer(model))
        headers = [] if length is None else [(HEADER_LENGTH, length)]
        how = draw(st.sampled_from(("gzip", "deflate", "identity", "br", "GZIP")))
        if not draw(st.integers(0, 20)):
            how, body = "gzip", _BOMBS[draw(st.sampled_from(_BOMB_BYTES))]
        elif how.lower() == "gzip":
            body = gzip.compress(body, 1)
        elif how == "deflate":
            body = zlib.compress(body, 1)
        match draw(st.integers(0, 5)):
            case 0:
                body = body[: draw(st.integers(0, len(body)))]
            case 1:
                body += draw(st.binary(max_size=30))
        headers.append(("Content-Encoding", how))
        if draw(st.booleans()):
            headers.append(("Expect", draw(st.sampled_from(("100-continue", "100-Continue", "more")))))
        data = request("POST", f"/v2/models/{model.name}/infer", body, tuple(headers))
        return Case(draw(DOORS), pieces(draw, data), 1)

    return build()


def pipelines(device: Device) -> SearchStrategy[Case]:
    """Several requests at once, good and bad."""
    parts = st.one_of(targets(device), inference(device), memory(device))

    @st.composite
    def build(draw: DrawFn) -> Case:
        several = draw(st.lists(parts, min_size=2, max_size=6))
        data = b"".join(b"".join(case.pieces) for case in several)
        if draw(st.booleans()):
            return Case(draw(DOORS), pieces(draw, data), len(several))
        return Case(draw(DOORS), pieces(draw, data + draw(st.binary(max_size=60))), None)

    return build()


FAMILIES: dict[str, Family] = {
    "raw": raw,
    "heads": heads,
    "targets": targets,
    "inference": inference,
    "memory": memory,
    "control": control,
    "encodings": encodings,
    "pipelines": pipelines,
}
"""By name; each is given the device for its models' names and tensors."""


def _infer(draw: DrawFn, name: str, body: bytes, length: str | None) -> bytes:
    headers = () if length is None else ((HEADER_LENGTH, length),)
    version = draw(st.sampled_from(("", "", "", "", "/versions/1", "/versions/2", f"/versions/{1 << 64}")))
    return request("POST", f"/v2/models/{name}{version}/infer", body, headers)

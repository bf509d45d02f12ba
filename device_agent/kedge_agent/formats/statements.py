"""Statements that are signed by themselves: that an older version is wanted, and that an engine is what a device built.

They travel beside a release (`formats.offer`), never in it: neither changes its digest. The bytes that were signed are
the bytes that are parsed, by the rules of the manifest: no floating-point numbers, no key twice, none unknown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..wire import MAX_JSON_BYTES, MAX_MANIFEST_BYTES, WireError, parse_json
from .artefact import MODEL_NAME
from .manifest import is_digest
from .passport import Passport, PassportError, parse_passport
from .reader import ManifestError, Reader

__all__ = [
    "Downgrade",
    "EngineStatement",
    "completed_artefact",
    "parse_downgrade",
    "parse_engine_statement",
    "statement_bytes",
]

_MAX_NUMBER = 1 << 53


@dataclass(frozen=True)
class Downgrade:
    """That a release may go live although the model has been at a higher version.

    release: its digest. floor: the least version from then on. from_floor: the highest floor that it lowers: a device
    that has been further does not take it. serial: seconds since 1970 when it was stated; a device takes each once, and
    none that is older than the last.
    """

    model: str
    release: str
    floor: int
    from_floor: int
    serial: int

    def to_json(self) -> dict[str, Any]:
        """As it is written."""
        return {
            "kedge": "downgrade",
            "model": self.model,
            "release": self.release,
            "floor": self.floor,
            "from": self.from_floor,
            "serial": self.serial,
        }


@dataclass(frozen=True)
class EngineStatement:
    """That an engine is the one that a trusted device built of a release's ONNX file by its plan.

    release: digest of the release that had the build plan. onnx, engine: sha256 of the files. plan: `Order.plan` of
    what was asked for. passport: where the engine runs.
    """

    release: str
    onnx: str
    plan: Mapping[str, Any]
    passport: Passport
    engine: str

    def to_json(self) -> dict[str, Any]:
        """As it is written."""
        return {
            "kedge": "engine",
            "release": self.release,
            "onnx": self.onnx,
            "plan": dict(self.plan),
            "passport": self.passport.to_json(),
            "engine": self.engine,
        }


def statement_bytes(statement: Downgrade | EngineStatement) -> bytes:
    """The document that is signed: the same statement gives the same bytes."""
    return json.dumps(statement.to_json(), indent=1, sort_keys=True).encode() + b"\n"


def parse_downgrade(data: bytes) -> Downgrade:
    """A downgrade that was received.

    Raises:
        ManifestError: it is none.
    """
    reader = _document(data, "downgrade")
    floor = reader.integer("floor", 1, _MAX_NUMBER)
    found = Downgrade(
        model=reader.text("model", MODEL_NAME.fullmatch),
        release=reader.text("release", is_digest),
        floor=floor,
        from_floor=reader.integer("from", floor, _MAX_NUMBER),
        serial=reader.integer("serial", 1, _MAX_NUMBER),
    )
    reader.done()
    return found


def parse_engine_statement(data: bytes) -> EngineStatement:
    """An attestation of an engine that was received.

    Raises:
        ManifestError: it is none.
    """
    reader = _document(data, "engine")
    try:
        found = EngineStatement(
            release=reader.text("release", is_digest),
            onnx=reader.text("onnx", is_digest),
            plan=reader.take("plan", dict),
            passport=parse_passport(reader.take("passport", dict)),
            engine=reader.text("engine", is_digest),
        )
    except PassportError as error:
        raise ManifestError(f"{reader.path}.passport: {error}") from error
    reader.done()
    return found


def _document(data: bytes, kind: str) -> Reader:
    try:
        reader = Reader(parse_json(data, limit=MAX_JSON_BYTES), kind)
    except WireError as error:
        raise ManifestError(f"{kind}: {error}") from error
    reader.text("kedge", kind.__eq__)
    return reader


def completed_artefact(base: bytes, own: bytes) -> int | None:
    """Where a manifest has an engine in the place of another one's build plan, nothing else being changed.

    Args:
        base, own: bytes of manifests that parse.

    Returns:
        The place among the artefacts of both; None: the one is not the other with an engine. Other artefacts may be
        engines as well; this one alone is what the plan became.
    """
    try:
        return _completed(base, own)
    except RecursionError:
        # What is nested so deeply that it can just be read is nothing that kedge made.
        return None


def _completed(base: bytes, own: bytes) -> int | None:
    before, after = (parse_json(data, limit=MAX_MANIFEST_BYTES) for data in (base, own))
    planned = [each for each in before["artefacts"] if "build" in each]
    if len(planned) != 1 or len(before["artefacts"]) != len(after["artefacts"]):
        return None
    position = before["artefacts"].index(planned[0])
    engine = after["artefacts"][position]
    if "passport" not in engine or _kept(engine) != _kept(planned[0]):
        return None
    after["artefacts"][position] = planned[0]
    named, files = ({each["name"]: each for each in body.pop("files")} for body in (before, after))
    del files[engine["file"]]
    others = [each for each in before["artefacts"] if each is not planned[0]]
    golden = [*before["golden"]["inputs"], *before["golden"]["outputs"]]
    same = (
        # As text: to Python, true is 1.
        json.dumps(before, sort_keys=True) == json.dumps(after, sort_keys=True)
        and engine["file"] not in {each["file"] for each in (*others, *golden)}
        and named.keys() - files.keys() <= {planned[0]["file"], engine["file"]}
        and all(named.get(name) == entry for name, entry in files.items())
    )
    return position if same else None


def _kept(artefact: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in artefact.items() if key not in ("file", "encoding", "build", "passport")}

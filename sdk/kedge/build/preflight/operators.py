"""Which ONNX operators TensorRT's parser takes, by release, for hosts on which that parser is not available.

The tables are data, `operators.json` beside this file; docs/preflight-tables.md says where they come from. They judge
an operator by its name and types: what depends on shapes or attributes stands in the note, for a person to read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from ...errors import BadInputError, IncompatibleError

__all__ = ["OperatorTable", "Support", "known_versions", "table_for"]

_ONNX_DOMAINS = ("", "ai.onnx")
_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})(?:\.\d{1,9}){0,2}")


@dataclass(frozen=True)
class Support:
    """What a table says of one operator.

    `types` are those of its row, in the table's spelling ("FP16", "INT64"); empty for a supported operator means that
    the row states none. `note` is one line: what is restricted, or why it is not supported.
    """

    supported: bool
    types: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class OperatorTable:
    """The operators and opsets of one release's parser.

    `version` is the release this stands for, `table` the one whose published table the facts are of, and `remark` one
    line on how they came from the one to the other, empty where they are the same. `types` are all types that a
    tensor may have. Those in `quantized_types` come about through QuantizeLinear and DequantizeLinear, so rows do not
    repeat them; those in `io_types` are for inputs and outputs of the network. `casts` says which types the parser
    narrows, and to what.
    """

    version: str
    table: str
    remark: str
    opset_min: int
    opset_max: int
    types: tuple[str, ...]
    quantized_types: tuple[str, ...]
    io_types: tuple[str, ...]
    casts: Mapping[str, str]
    operators: Mapping[str, Support]

    def supports(self, op_type: str, domain: str = "") -> Support:
        """What the table says of an operator; one that it does not list is not supported.

        A function that the model itself defines is for the caller to look into: the table knows operators alone.
        """
        if domain not in _ONNX_DOMAINS:
            return Support(False, note=f"{domain} is not ONNX's own domain: a TensorRT plugin would have to provide it")
        return self.operators.get(op_type) or Support(False, note="the table does not list it")


def known_versions() -> tuple[str, ...]:
    """The releases that there is a table for, oldest first."""
    return tuple(table.version for table in _tables())


def table_for(tensorrt_version: str) -> OperatorTable:
    """The newest table that is not newer than a version of TensorRT.

    Args:
        tensorrt_version: two to four numbers, as "10.3" or "10.13.3.9".

    Raises:
        BadInputError: it is no such version.
        IncompatibleError: it is older than the oldest table.
    """
    wanted = _parse(tensorrt_version)
    fitting = [table for table in _tables() if _parse(table.version) <= wanted]
    if not fitting:
        raise IncompatibleError(
            f"no operator table for TensorRT {tensorrt_version}",
            hint=f"tables are known for {', '.join(known_versions())}",
        )
    return fitting[-1]


def _parse(version: str) -> tuple[int, int]:
    found = _VERSION.fullmatch(version)
    if found is None:
        raise BadInputError(
            f"{version!r} is no version of TensorRT", hint="two to four numbers with dots between them, as 10.3"
        )
    return int(found[1]), int(found[2])


@cache
def _tables() -> tuple[OperatorTable, ...]:
    """All tables, oldest first. One with a base states only what differs from it, so a base comes before."""
    text = resources.files("kedge.build.preflight").joinpath("operators.json").read_text(encoding="utf-8")
    tables: dict[str, OperatorTable] = {}
    entries: dict[str, dict[str, Any]] = {}
    for version, stated in json.loads(text)["versions"].items():
        base = stated.get("base")
        entry = {**entries[base], "remark": "", **stated} if base else {"remark": "", **stated}
        operators = {name: _support(row) for name, row in stated["operators"].items()}
        entries[version] = entry
        tables[version] = OperatorTable(
            version=version,
            table=entry["table"],
            remark=entry["remark"],
            opset_min=entry["opset_min"],
            opset_max=entry["opset_max"],
            types=tuple(entry["types"]),
            quantized_types=tuple(entry["quantized"]),
            io_types=tuple(entry["io_only"]),
            casts=MappingProxyType(entry["casts"]),
            operators=MappingProxyType({**tables[base].operators, **operators} if base else operators),
        )
    return tuple(sorted(tables.values(), key=lambda table: _parse(table.version)))


def _support(row: dict[str, Any]) -> Support:
    return Support(row.get("supported", True), tuple(row.get("types", ())), row.get("note", ""))

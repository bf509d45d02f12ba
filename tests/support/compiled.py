"""What TensorRT for RTX made of a model: read from the text that its engines carry, which no document describes.

Good enough for a test of this one version; nothing that ships depends on it.
"""

from __future__ import annotations

import re

_TENSOR = re.compile(r'\s*tensor=\{.*name="([^"]+)".*type=(\w+)')
_LAYER = re.compile(r'\s*(?:corrltn|fully_connected|deconvolution)=\{ name="[^"]*" output=\{[^}]*\} input=\{([^}]*)\}')
_QUANTIZED = ("int8", "int4", "fp8_e4m3")


def layers(engine: bytes) -> tuple[int, int]:
    """Convolutions and matrix products of an engine, and how many of them read quantised operands."""
    types: dict[str, str] = {}
    found: list[bool] = []
    for text in re.findall(rb"[\x20-\x7e]{6,}", engine):
        line = text.decode("ascii")
        if tensor := _TENSOR.match(line):
            types[tensor[1]] = tensor[2]
        elif layer := _LAYER.match(line):
            operands = re.findall(r'"([^"]+)"', layer[1])[:2]
            found.append(any(types.get(name, "") in _QUANTIZED for name in operands))
    return len(found), sum(found)

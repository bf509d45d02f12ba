"""How a release asks the device to run it: threads and execution providers of onnxruntime."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from kedge_agent.formats.artefact import Serving, read_serving
from kedge_agent.formats.providers import refusal
from kedge_agent.formats.reader import ManifestError, Reader

from ..errors import BadInputError
from ..targets import Target

__all__ = ["parse_serving", "serving_for"]

# Values may hold commas: TensorRT's shapes do.
_NEXT_OPTION = re.compile(r",(?=[A-Za-z_][A-Za-z0-9_]*=)")


def parse_serving(threads: int | None, providers: Iterable[str]) -> Serving | None:
    """What the user asks for; providers as `NAME` or `NAME:key=value,key=value`. None: nothing.

    Raises:
        BadInputError: it is not of that form, or says what a manifest may not (docs/release-format.md).
    """
    body: dict[str, Any] = {} if threads is None else {"threads": threads}
    listed = [_provider(text) for text in providers]
    if listed:
        body["providers"] = listed
    if not body:
        return None
    try:
        return read_serving(Reader(body, "serving"))
    except ManifestError as error:
        raise BadInputError(
            str(error),
            hint="as in --threads 4 --provider CUDAExecutionProvider:device_id=0 --provider CPUExecutionProvider",
        ) from error


def serving_for(runtime: str, target: Target, asked: Serving | None) -> Serving | None:
    """What a release states: as asked, with the profile's number of threads where none was.

    Raises:
        BadInputError: something was asked for, and the runtime is not onnxruntime.
    """
    if runtime != "onnxruntime":
        if asked is not None:
            raise BadInputError(
                f"threads and providers are onnxruntime's, and {target.name} runs this with {runtime}",
                hint="leave --threads and --provider out, or add --runtime onnxruntime",
            )
        return None
    if target.threads is None or (asked is not None and asked.threads is not None):
        return asked
    return replace(asked or Serving(), threads=target.threads)


def _provider(text: str) -> dict[str, Any]:
    name, colon, rest = text.partition(":")
    if not colon:
        _require_allowed(name, {})
        return {"name": name}
    options: dict[str, str] = {}
    for part in _NEXT_OPTION.split(rest):
        key, equals, value = part.partition("=")
        if not equals or key in options:
            raise BadInputError(f"{text!r} is no provider with options", hint="NAME:key=value,key=value, each key once")
        options[key] = value
    _require_allowed(name, options)
    return {"name": name, "options": options}


def _require_allowed(name: str, options: dict[str, str]) -> None:
    # The device would say so too, but only when it is to go live there.
    refused = refusal(name, options)
    if refused is not None:
        raise BadInputError(refused[0], hint=refused[1])

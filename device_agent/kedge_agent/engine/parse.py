"""NVIDIA's ONNX parser: a model to a network, or what the parser holds against each node of it.

The parser of TensorRT for RTX runs on any machine, with or without a GPU. It is not the parser of the TensorRT that
a JetPack carries: reports name whose judgement they hold.
"""

from __future__ import annotations

from typing import Any

from .library import Library, capture, library_of, line_of
from .report import EngineError, EngineTensor, NetworkLayer, ParseReport, ParserFinding

__all__ = ["findings_of", "layers_of", "make_builder", "make_network", "parse_onnx", "refusal", "tensors_of"]

_MAX_MODEL_BYTES = (1 << 31) - 1  # protobuf reads no more in one message
_MAX_FINDINGS = 256
_MAX_LAYERS = 20_000
_ABSENT = "TensorRT has no such operator"


def parse_onnx(model: bytes, runtime: str = "tensorrt-rtx") -> ParseReport:
    """Parse an ONNX model, in this process.

    Raises:
        EngineError: the compiler is missing, or the bytes cannot be a model. What the parser refuses is no error here:
            it is in the report.
    """
    library = library_of(runtime)
    check_model_size(model)
    trt = library.load()
    with capture(library) as said:
        builder = make_builder(trt, library, said.logger)
        network = make_network(trt, builder)
        parser = trt.OnnxParser(network, said.logger)
        taken = parser.parse(model)
        # Read before the parser goes: the findings are its own memory.
        findings = (
            () if taken else findings_of(parser) or (ParserFinding("", "", said.last_error("it did not say why")),)
        )
        return ParseReport(
            parser=f"the parser of {library.title} {trt.__version__}",
            findings=findings,
            layers=layers_of(network) if taken else (),
            inputs=tensors_of(network, "input") if taken else (),
            outputs=tensors_of(network, "output") if taken else (),
            log=said.complaints,
        )


def check_model_size(model: bytes) -> None:
    """Refuse what protobuf cannot read.

    Raises:
        EngineError: it is empty or too large (kind bad_input).
    """
    if not 0 < len(model) <= _MAX_MODEL_BYTES:
        raise EngineError(f"a model of {len(model)} bytes is not ONNX that can be parsed", kind="bad_input")


def make_builder(trt: Any, library: Library, logger: Any) -> Any:
    """The library's builder.

    Raises:
        EngineError: the library makes none, as TensorRT proper does where there is no GPU or no driver (kind missing).
    """
    try:
        return trt.Builder(logger)
    except TypeError as error:  # the binding's own words for a null pointer
        raise EngineError(
            f"{library.title} {trt.__version__} does not start here: it needs an NVIDIA GPU and its driver",
            kind="missing",
            hint="see: nvidia-smi",
        ) from error


def make_network(trt: Any, builder: Any) -> Any:
    """An empty network, strongly typed: no flag changes a type. TensorRT 11 knows no other, and may have no flag."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return builder.create_network(0 if flag is None else 1 << int(flag))


def findings_of(parser: Any) -> tuple[ParserFinding, ...]:
    """What a parser that refused a model says, node by node."""
    findings = []
    for index in range(min(parser.num_errors, _MAX_FINDINGS)):
        error = parser.get_error(index)
        node, op, said = line_of(error.node_name() or ""), line_of(error.node_operator() or ""), line_of(error.desc())
        # For an operator it does not have, the parser's own words are the condition that failed.
        if said in ("", "false"):
            said = _ABSENT
        elif "Plugin not found" in said:
            said = f"{_ABSENT}, and no plugin of its name"
        findings.append(ParserFinding(node, op, said.removeprefix("Assertion failed: "), int(error.node())))
    return tuple(findings)


def refusal(library: Library, findings: tuple[ParserFinding, ...], log: tuple[str, ...]) -> EngineError:
    """The error for a model that the parser refused."""
    first = findings[0]
    where = f"{first.op} {first.node}".strip()
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    return EngineError(
        f"{library.title} refuses {where or 'the model'}: {first.message}{more}",
        kind="refused",
        findings=findings,
        log=log,
    )


def layers_of(network: Any) -> tuple[NetworkLayer, ...]:
    """The layers of a network as the parser made them."""
    out = []
    for index in range(min(network.num_layers, _MAX_LAYERS)):
        layer = network.get_layer(index)
        made = [layer.get_output(position) for position in range(layer.num_outputs)]
        kind = str(layer.type.name)
        out.append(NetworkLayer(str(layer.name)[:512], kind, tuple(_tensor(each) for each in made if each is not None)))
    return tuple(out)


def tensors_of(network: Any, side: str) -> tuple[EngineTensor, ...]:
    """Inputs ("input") or outputs ("output") of a network."""
    if side == "input":
        return tuple(_tensor(network.get_input(index)) for index in range(network.num_inputs))
    return tuple(_tensor(network.get_output(index)) for index in range(network.num_outputs))


def _tensor(tensor: Any) -> EngineTensor:
    try:
        shape = tuple(int(dim) for dim in tensor.shape)
    except ValueError:  # a rank that is not known yet
        shape = ()
    return EngineTensor(str(tensor.name), str(tensor.dtype.name), shape)

"""`kedge infer`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import Output, inventory_option, long_output_options, on_option, path_type, read_inventory

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["infer"]

_SHOWN_VALUES = 8


@click.command()
@click.argument("model")
@on_option
@click.option("--input", "source", type=path_type, required=True, help="Inputs: .npz by name, or .npy for one input.")
@click.option("--output", "destination", type=path_type, help="Write the outputs to this .npz file.")
@inventory_option
@long_output_options
def infer(
    model: str, device: str, source: Path, destination: Path | None, inventory_path: Path | None, out: Output
) -> None:
    """Run a deployed MODEL on data of yours."""
    from ..bench.batches import infer_batches, model_specs
    from ..fleet.inventory import open_device
    from ..model.inputs import load_tensors
    from ..transport.client import AgentClient

    with open_device(device, read_inventory(inventory_path)) as (transport, _), out.progress() as progress:
        client = AgentClient(transport)
        try:
            inputs = load_tensors(source, model_specs(client, model))
            outputs, timings = infer_batches(client, model, inputs, progress.share)
        finally:
            client.close()
    if destination is not None:
        _save(destination, outputs)
    document = {
        "device": device,
        "model": model,
        "requests": len(timings),
        "end_to_end_ms": sum(timings),
        "outputs": {
            name: {"shape": list(array.shape), "dtype": _dtype(array), **_argmax(array)}
            for name, array in outputs.items()
        },
        "written": str(destination) if destination is not None else None,
    }

    def render() -> None:
        from ..report.tables import key_values
        from ..report.text import milliseconds

        rows = []
        for name, array in outputs.items():
            rows.append((f"output {name}", f"{_dtype(array)} {list(array.shape)}"))
            if "argmax" in _argmax(array):
                shown = ", ".join(map(str, _argmax(array)["argmax"][:_SHOWN_VALUES]))
                rows.append(("  largest at", shown + (", …" if array.shape[0] > _SHOWN_VALUES else "")))
        rows.append(("requests", f"{len(timings)} in {milliseconds(sum(timings))}, end to end"))
        if destination is not None:
            rows.append(("written", str(destination)))
        key_values(rows)

    out.result(document, render)


def _dtype(array: NDArray[Any]) -> str:
    return "text" if array.dtype.kind == "O" else str(array.dtype)


def _argmax(array: NDArray[Any]) -> dict[str, list[int]]:
    """Index of the largest value of each sample, for scores [n, classes]."""
    if array.dtype.kind == "O" or array.ndim != 2 or array.shape[1] < 2:
        return {}
    return {"argmax": array.argmax(axis=1).tolist()}


def _save(path: Path, outputs: dict[str, NDArray[Any]]) -> None:
    import numpy as np

    from kedge_agent.formats.strings import as_text
    from kedge_agent.wire import WireError

    from ..errors import BadInputError

    try:
        # Arrays of objects would be pickled; text has a dtype of its own.
        plain = {
            name: as_text(array).astype("U") if array.dtype.kind == "O" else array for name, array in outputs.items()
        }
        with path.open("wb") as handle:
            np.savez(handle, **plain)  # type: ignore[arg-type]
    except WireError as error:
        raise BadInputError(f"an output cannot be written as text: {error}", hint="leave --output out") from error
    except OSError as error:
        raise BadInputError(f"{path} cannot be written: {error.strerror}") from error

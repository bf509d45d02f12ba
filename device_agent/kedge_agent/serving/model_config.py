"""A model's configuration in the terms of Triton's ModelConfig, for clients that read it.

Source: Triton, "Model Configuration Extension" and model_config.proto. It is told, and never taken.
"""

from __future__ import annotations

from typing import Any

from ..formats.tensors import TensorSpec
from .loading import LiveModel

__all__ = ["model_config", "platform_of"]

_TYPES = {"BYTES": "TYPE_STRING"}


def platform_of(runtime: str) -> str:
    """Triton's name for what runs a model: `onnxruntime_onnx`, `tensorrt_plan`, `tensorrt-rtx_plan`."""
    return f"{runtime}_{'onnx' if runtime == 'onnxruntime' else 'plan'}"


def model_config(live: LiveModel) -> dict[str, Any]:
    """The configuration as JSON.

    max_batch_size: how many samples requests are joined up to; 0 where they are not, and the dims are then whole
    shapes, as Triton has it.
    """
    rules, artefact = live.pool.rules, live.artefact
    joined = live.most_samples or 0
    config: dict[str, Any] = {
        "name": live.manifest.model,
        "platform": platform_of(artefact.runtime),
        "backend": artefact.runtime,
        "version_policy": {"specific": {"versions": [live.manifest.version]}},
        "max_batch_size": joined,
        "input": [_tensor(spec, joined) for spec in artefact.inputs],
        "output": [_tensor(spec, joined) for spec in artefact.outputs],
        "instance_group": [
            {
                "name": live.manifest.model,
                "kind": "KIND_CPU" if artefact.runtime == "onnxruntime" else "KIND_GPU",
                "count": rules.workers,
            }
        ],
        "default_model_filename": artefact.file,
        "parameters": {
            "release": {"string_value": live.manifest.digest},
            "queue": {"string_value": str(rules.queue)},
            "deadline_ms": {"string_value": str(rules.deadline_ms)},
            "drop_stale": {"string_value": str(rules.drop_stale).lower()},
        },
    }
    if joined:
        config["dynamic_batching"] = {"max_queue_delay_microseconds": rules.max_delay_us}
    return config


def _tensor(spec: TensorSpec, joined: int) -> dict[str, Any]:
    return {
        "name": spec.name,
        "data_type": _TYPES.get(spec.datatype, f"TYPE_{spec.datatype}"),
        "dims": list(spec.shape[1:] if joined else spec.shape),
    }

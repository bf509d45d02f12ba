"""Which execution providers of onnxruntime a model may ask for, and with which options.

Both come with a release, so both are tables of what is known to be harmless. Options that name a file, a library or a
folder would have onnxruntime load native code from there, or write there; others (`user_compute_stream`,
`gpu_external_alloc`, `trt_onnx_bytestream`) are addresses that onnxruntime follows. None of them is in the tables.

Source of the names: onnxruntime's documentation, "Execution Providers", and the strings of its 1.23 libraries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["ALLOWED", "CPU", "refusal"]

CPU = "CPUExecutionProvider"

ALLOWED: Mapping[str, frozenset[str]] = {
    "TensorrtExecutionProvider": frozenset(
        {
            "device_id", "trt_auxiliary_streams", "trt_bf16_enable", "trt_build_heuristics_enable",
            "trt_builder_optimization_level", "trt_context_memory_sharing_enable", "trt_cuda_graph_enable",
            "trt_dla_core", "trt_dla_enable", "trt_force_sequential_engine_build", "trt_fp16_enable",
            "trt_int8_enable", "trt_layer_norm_fp32_fallback", "trt_max_partition_iterations",
            "trt_max_workspace_size", "trt_min_subgraph_size", "trt_op_types_to_exclude", "trt_profile_max_shapes",
            "trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_sparsity_enable",
        }
    ),
    "CUDAExecutionProvider": frozenset(
        {
            "arena_extend_strategy", "cudnn_conv1d_pad_to_nc1d", "cudnn_conv_algo_search",
            "cudnn_conv_use_max_workspace", "device_id", "do_copy_in_default_stream",
            "enable_skip_layer_norm_strict_mode", "fuse_conv_bias", "gpu_mem_limit", "prefer_nhwc", "sdpa_kernel",
            "tunable_op_enable", "tunable_op_max_tuning_duration_ms", "tunable_op_tuning_enable", "use_tf32",
        }
    ),
    "OpenVINOExecutionProvider": frozenset({"device_type", "num_of_threads", "num_streams", "precision"}),
    "ACLExecutionProvider": frozenset({"enable_fast_math"}),
    "DnnlExecutionProvider": frozenset({"use_arena"}),
    "XnnpackExecutionProvider": frozenset({"intra_op_num_threads"}),
    CPU: frozenset(),
}  # fmt: skip
"""Options by the name of their provider."""

# Numbers, words, and the shape profiles of TensorRT: no value can be a path.
_VALUE = re.compile(r"[A-Za-z0-9_.,:+-]{1,256}")


def refusal(name: str, options: Mapping[str, str]) -> tuple[str, str] | None:
    """Why a release may not ask for this provider with these options, and what it may; None: it may."""
    allowed = ALLOWED.get(name)
    if allowed is None:
        return (
            f"{name[:80]!r} is no execution provider that a release may ask for",
            f"there are {', '.join(ALLOWED)}",
        )
    for key, value in options.items():
        if key not in allowed:
            return (
                f"{name} takes no option {key[:80]!r} from a release",
                f"it takes {', '.join(sorted(allowed)) or 'none'}",
            )
        if _VALUE.fullmatch(value) is None:
            return (f"{name}: {key} cannot be {value[:80]!r}", "a number, a word, or shapes as TensorRT writes them")
    return None

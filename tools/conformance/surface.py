"""What the TensorRT adapter uses of TensorRT, read from its sources: nothing is imported or run.

Variables are known by what they are called, as CLASSES has it, and by what is assigned to them. A name that is
annotated with a type of its own, or bound by `except` or `import`, is none of TensorRT's.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

from .kinds import Names
from .reader import Reader
from .uses import MODULE, Surface

__all__ = ["CLASSES", "RESULTS", "read_folder", "read_sources"]

# What variables and attributes are called in the adapter, but for leading underscores, and the class of what they hold.
CLASSES = {
    "trt": MODULE,
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "error": "ParserError",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
    "tensor": "ITensor",
    "layer": "ILayer",
    "cache": "ITimingCache",
}

# The class of what methods and attributes give. The check holds this against the bindings as well.
RESULTS = {
    "Builder.build_serialized_network": "IHostMemory",
    "Builder.create_builder_config": "IBuilderConfig",
    "Builder.create_network": "INetworkDefinition",
    "Builder.create_optimization_profile": "IOptimizationProfile",
    "IBuilderConfig.create_timing_cache": "ITimingCache",
    "IBuilderConfig.get_timing_cache": "ITimingCache",
    "ICudaEngine.create_engine_inspector": "EngineInspector",
    "ICudaEngine.create_execution_context": "IExecutionContext",
    "ICudaEngine.create_runtime_config": "IRuntimeConfig",
    "ICudaEngine.create_serialization_config": "ISerializationConfig",
    "ICudaEngine.get_tensor_dtype": "DataType",
    "ICudaEngine.get_tensor_format": "TensorFormat",
    "ICudaEngine.get_tensor_location": "TensorLocation",
    "ICudaEngine.get_tensor_mode": "TensorIOMode",
    "ICudaEngine.hardware_compatibility_level": "HardwareCompatibilityLevel",
    "ICudaEngine.profiling_verbosity": "ProfilingVerbosity",
    "ICudaEngine.serialize": "IHostMemory",
    "ICudaEngine.serialize_with_config": "IHostMemory",
    "IExecutionContext.engine": "ICudaEngine",
    "ILayer.get_input": "ITensor",
    "ILayer.get_output": "ITensor",
    "ILayer.type": "LayerType",
    "INetworkDefinition.get_input": "ITensor",
    "INetworkDefinition.get_layer": "ILayer",
    "INetworkDefinition.get_output": "ITensor",
    "IRuntimeCache.serialize": "IHostMemory",
    "IRuntimeConfig.create_runtime_cache": "IRuntimeCache",
    "ITensor.dtype": "DataType",
    "ITimingCache.serialize": "IHostMemory",
    "OnnxParser.get_error": "ParserError",
    "ParserError.code": "ErrorCode",
    "Runtime.deserialize_cuda_engine": "ICudaEngine",
}


def read_folder(*places: Path) -> Surface:
    """What these modules, and those in these folders, use."""
    files = [path for place in places for path in (sorted(place.glob("*.py")) if place.is_dir() else [place])]
    return read_sources({f"{path.parent.name}/{path.name}": path.read_text(encoding="utf-8") for path in files})


def read_sources(sources: Mapping[str, str]) -> Surface:
    """What these sources use, given by their files' names."""
    trees = {name: ast.parse(text, name) for name, text in sources.items()}
    own = {
        node.target.id
        for tree in trees.values()
        for scope in ast.walk(tree)
        if isinstance(scope, ast.ClassDef)
        for node in scope.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and ast.unparse(node.annotation) != "Any"
    }
    surface = Surface()
    for name, tree in trees.items():
        Reader(name, surface, Names(CLASSES, RESULTS, frozenset(own), _constants(tree))).read(tree)
    return surface


def _constants(tree: ast.Module) -> dict[str, list[str]]:
    """The strings in a module's constants: values of a dictionary, elements of a tuple."""
    found = {}
    for node in tree.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            values = node.value.values if isinstance(node.value, ast.Dict) else getattr(node.value, "elts", [])
            if isinstance(target, ast.Name):
                found[target.id] = [str(each.value) for each in values if isinstance(each, ast.Constant)]
    return found

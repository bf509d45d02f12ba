"""What an inference request may ask for, before anything is allocated for it."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest

from kedge_agent.errors import AgentError
from kedge_agent.formats.tensors import TensorSpec
from kedge_agent.serving.infer_request import InputTensor, parse_request, raw_request
from kedge_agent.serving.tensor_json import array_of, list_of

TEXT = [TensorSpec("t", "BYTES", (-1,))]
IMAGE = [TensorSpec("x", "FP32", (-1, 4))]
OUTPUTS = [TensorSpec("y", "FP32", (-1,))]


def text(shape: list[int], **parameters: Any) -> bytes:
    tensor = {"name": "t", "datatype": "BYTES", "shape": shape, "parameters": parameters}
    return json.dumps({"inputs": [tensor]}).encode()


@pytest.mark.parametrize("size", [(16 << 20) + 1, 1 << 42])
def test_strings_beyond_their_limit_are_refused_wherever_they_are(size: int) -> None:
    in_memory = {"shared_memory_region": "r", "shared_memory_byte_size": size}
    for parameters in ({"binary_data_size": size}, in_memory):
        with pytest.raises(AgentError, match="more than strings may have") as caught:
            parse_request(text([1], **parameters), TEXT, OUTPUTS)
        assert caught.value.kind == "too_large"
    with pytest.raises(AgentError, match="more than strings may have"):
        raw_request(size, TEXT, OUTPUTS)


def test_more_strings_than_their_bytes_can_hold_are_refused() -> None:
    with pytest.raises(AgentError, match="too little for 1099511627775 strings"):
        parse_request(text([(1 << 40) - 1], binary_data_size=1000), TEXT, OUTPUTS)


@pytest.mark.parametrize(("size", "shape"), [(16, (1, 4)), (160, (10, 4)), (0, (0, 4))])
def test_the_one_free_size_of_a_raw_request_follows_from_its_bytes(size: int, shape: tuple[int, ...]) -> None:
    assert raw_request(size, IMAGE, OUTPUTS).shapes == {"x": shape}


def test_bytes_that_fill_no_shape_are_refused() -> None:
    with pytest.raises(AgentError, match="do not fill"):
        raw_request(17, IMAGE, OUTPUTS)


def test_a_request_without_data_may_be_kept_and_one_with_data_not() -> None:
    bare = {"name": "x", "datatype": "FP32", "shape": [1, 4]}
    binary = json.dumps({"inputs": [{**bare, "parameters": {"binary_data_size": 16}}]}).encode()
    assert parse_request(binary, IMAGE, OUTPUTS).reusable
    assert not parse_request(json.dumps({"inputs": [{**bare, "data": [1, 2, 3, 4]}]}).encode(), IMAGE, OUTPUTS).reusable


def test_an_output_that_would_be_megabytes_of_json_is_refused_with_the_way_out() -> None:
    assert len(list_of("y", np.zeros(1_000_000, "f4"))) == 1_000_000
    with pytest.raises(AgentError, match="at most 1000000") as caught:
        list_of("y", np.zeros(1_000_001, "f4"))
    assert (caught.value.kind, caught.value.hint) == ("too_large", "ask for binary data")


def test_a_shape_that_nothing_could_hold_is_refused_also_where_a_size_is_0() -> None:
    wide = [TensorSpec("x", "FP32", (-1, -1, -1))]
    tensor = {"name": "x", "datatype": "FP32", "shape": [0, 1 << 31, 1 << 31], "parameters": {"binary_data_size": 0}}
    with pytest.raises(AgentError, match="not a list of sizes"):
        parse_request(json.dumps({"inputs": [tensor]}).encode(), wide, OUTPUTS)


def test_text_among_numbers_is_refused_before_it_costs_memory() -> None:
    data: list[Any] = [0] * 10_000
    data[5] = "x" * 10_000
    item = InputTensor("x", "FP32", (10_000,), data=data)
    tracemalloc.start()
    try:
        with pytest.raises(AgentError, match="values that are not FP32") as caught:
            array_of(item)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("data", [None, {}, [[1, 2], 3, 4], [[1, 2], [3]], [1, None, 2, 3], [[[]]], [True, 2, 3, 4]])
def test_data_that_is_no_tensor_is_refused(data: Any) -> None:
    with pytest.raises(AgentError):
        array_of(InputTensor("x", "FP32", (4,), data=data))


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]], [[[1], [2]], [[3], [4]]]])
def test_data_may_be_flat_or_nested(data: Any) -> None:
    np.testing.assert_array_equal(array_of(InputTensor("x", "FP32", (2, 2), data=data)), [[1, 2], [3, 4]])

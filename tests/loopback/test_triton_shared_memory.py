"""System shared memory between an unmodified `tritonclient` and the real agent."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

from tests.support import oip, triton_models

PREFIX = "/kedge-test-"
A = np.arange(64, dtype=np.int32).reshape(4, 16)
B = np.full((4, 16), 3, np.int32)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[oip.Served]:
    folder = tmp_path_factory.mktemp("shared")
    with oip.served(folder, {"shared_memory_prefix": PREFIX}) as agent:
        agent.deploy(triton_models.simple(folder / "simple.onnx"), "simple")
        yield agent


@pytest.fixture
def client(agent: oip.Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{agent.port}") as client:
        client.unregister_system_shared_memory()
        yield client
        client.unregister_system_shared_memory()


@pytest.fixture
def region() -> Iterator[tuple[str, Path]]:
    """A shared memory object of both inputs, one after the other, and room for both outputs; its key, and its file."""
    key = f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    handle = shm.create_shared_memory_region("mine", key, 4 * A.nbytes, create_only=True)
    shm.set_shared_memory_region(handle, [A, B])
    try:
        yield key, Path("/dev/shm") / key[1:]
    finally:
        shm.destroy_shared_memory_region(handle)


def inputs(region: str) -> list[triton.InferInput]:
    tensors = [triton.InferInput(name, [4, 16], "INT32") for name in ("a", "b")]
    for index, tensor in enumerate(tensors):
        tensor.set_shared_memory(region, A.nbytes, offset=index * A.nbytes)
    return tensors


def contents(file: Path, index: int) -> np.ndarray:
    data = file.read_bytes()[index * A.nbytes : (index + 1) * A.nbytes]
    return np.frombuffer(data, np.int32).reshape(A.shape)


def refusal(attempt: object, *arguments: object, **options: object) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as refused:
        attempt(*arguments, **options)
    return refused.value


def test_a_region_is_registered_shown_and_forgotten(
    agent: oip.Served, client: triton.InferenceServerClient, region: tuple[str, Path]
) -> None:
    key, _ = region
    assert "system_shared_memory" in client.get_server_metadata()["extensions"]
    assert client.get_system_shared_memory_status() == []
    client.register_system_shared_memory("one", key, 2 * A.nbytes)
    client.register_system_shared_memory("a second", key, A.nbytes, offset=A.nbytes)
    row = {"name": "one", "key": key, "offset": 0, "byte_size": 2 * A.nbytes}
    assert client.get_system_shared_memory_status("one") == [row]
    assert {row["name"] for row in client.get_system_shared_memory_status()} == {"one", "a second"}
    oip.conforms(client.get_system_shared_memory_status(), "shared-memory-status")
    client.unregister_system_shared_memory("a second")
    assert client.get_system_shared_memory_status() == [row]
    client.unregister_system_shared_memory()
    assert client.get_system_shared_memory_status() == []


def test_inputs_are_read_from_a_region_and_outputs_written_to_it(
    client: triton.InferenceServerClient, region: tuple[str, Path]
) -> None:
    key, file = region
    client.register_system_shared_memory("mine", key, 4 * A.nbytes)
    wanted = [triton.InferRequestedOutput(name) for name in ("sum", "difference")]
    for index, output in enumerate(wanted):
        output.set_shared_memory("mine", A.nbytes, offset=(2 + index) * A.nbytes)
    result = client.infer("simple", inputs("mine"), outputs=wanted)
    np.testing.assert_array_equal(contents(file, 2), A + B)
    np.testing.assert_array_equal(contents(file, 3), A - B)
    output = result.get_output("sum")
    assert (output["datatype"], output["shape"]) == ("INT32", [4, 16])
    assert "data" not in output
    oip.conforms(result.get_response(), "infer-response")


def test_shared_memory_and_bytes_of_the_body_are_mixed(
    client: triton.InferenceServerClient, region: tuple[str, Path]
) -> None:
    key, file = region
    client.register_system_shared_memory("mine", key, 3 * A.nbytes, offset=A.nbytes)
    a = triton.InferInput("a", [4, 16], "INT32").set_data_from_numpy(A)
    b = triton.InferInput("b", [4, 16], "INT32").set_shared_memory("mine", B.nbytes)
    there, here = triton.InferRequestedOutput("sum"), triton.InferRequestedOutput("difference")
    there.set_shared_memory("mine", A.nbytes, offset=2 * A.nbytes)
    result = client.infer("simple", [a, b], outputs=[there, here])
    np.testing.assert_array_equal(contents(file, 3), A + B)
    np.testing.assert_array_equal(result.as_numpy("difference"), A - B)


def test_a_client_that_truncates_its_region_gets_an_error_and_the_agent_lives(
    agent: oip.Served, client: triton.InferenceServerClient, region: tuple[str, Path]
) -> None:
    key, file = region
    client.register_system_shared_memory("mine", key, 4 * A.nbytes)
    client.infer("simple", inputs("mine"))
    wanted = triton.InferRequestedOutput("sum")
    wanted.set_shared_memory("mine", A.nbytes, offset=2 * A.nbytes)
    os.truncate(file, 2 * A.nbytes)
    assert refusal(client.infer, "simple", inputs("mine"), outputs=[wanted]).status() == "400"
    assert file.stat().st_size == 2 * A.nbytes, "what the client made shorter has been made longer"
    os.truncate(file, A.nbytes // 2)
    refused = refusal(client.infer, "simple", inputs("mine"))
    assert (refused.status(), "shorter" in refused.message()) == ("400", True)
    os.truncate(file, 0)
    assert refusal(client.infer, "simple", inputs("mine")).status() == "400"
    assert agent.alive()


def test_a_region_whose_object_is_unlinked_serves_on(
    client: triton.InferenceServerClient, region: tuple[str, Path]
) -> None:
    key, file = region
    client.register_system_shared_memory("mine", key, 2 * A.nbytes)
    data = file.read_bytes()
    file.unlink()
    result = client.infer("simple", inputs("mine"))
    np.testing.assert_array_equal(result.as_numpy("sum"), A + B)
    file.write_bytes(data)  # tritonclient wants to unlink it itself


def test_what_cannot_be_registered_is_refused(client: triton.InferenceServerClient, region: tuple[str, Path]) -> None:
    key, file = region
    register = client.register_system_shared_memory
    assert refusal(register, "x", key, 5 * A.nbytes).status() == "400", "longer than the object"
    assert refusal(register, "x", key, 8, offset=4 * A.nbytes).status() == "400", "beyond the object"
    assert refusal(register, "x", key, 0).status() == "400"
    assert refusal(register, "x", key, 8, offset=-8).status() == "400"
    assert refusal(register, "x", f"{PREFIX}nothing-here", 8).status() == "404"
    assert refusal(register, "x", "/somebody-else-s", 8).status() == "403"
    assert refusal(register, "x", f"{PREFIX}../../etc/passwd", 8).status() in {"400", "403"}
    link = Path("/dev/shm") / f"{PREFIX[1:]}{secrets.token_hex(4)}"
    link.symlink_to(file)
    try:
        assert refusal(register, "x", f"/{link.name}", 8).status() == "403"
    finally:
        link.unlink()
    register("x", key, 8)
    assert refusal(register, "x", key, 8).status() == "400", "the name is taken"
    assert [row["name"] for row in client.get_system_shared_memory_status()] == ["x"]


def test_a_tensor_that_its_region_cannot_hold_is_refused(
    client: triton.InferenceServerClient, region: tuple[str, Path]
) -> None:
    key, _ = region
    client.register_system_shared_memory("mine", key, 2 * A.nbytes)
    assert refusal(client.infer, "simple", inputs("ghost")).status() == "404"
    beyond = inputs("mine")
    beyond[1].set_shared_memory("mine", B.nbytes, offset=A.nbytes + 4)
    assert refusal(client.infer, "simple", beyond).status() == "400"
    short = inputs("mine")
    short[1].set_shared_memory("mine", B.nbytes - 4, offset=A.nbytes)
    assert refusal(client.infer, "simple", short).status() == "400"
    for size, offset in ((A.nbytes - 4, 0), (A.nbytes, A.nbytes + 4)):
        wanted = triton.InferRequestedOutput("sum")
        wanted.set_shared_memory("mine", size, offset=offset)
        assert refusal(client.infer, "simple", inputs("mine"), outputs=[wanted]).status() == "400"
    np.testing.assert_array_equal(client.infer("simple", inputs("mine")).as_numpy("sum"), A + B)


def test_cuda_shared_memory_is_refused_but_may_be_cleared(client: triton.InferenceServerClient) -> None:
    refused = refusal(client.register_cuda_shared_memory, "gpu", "aGFuZGxl", 0, 64)
    assert refused.status() == "400"
    assert "CUDA" in refused.message()
    # Triton's own examples begin with these two.
    client.unregister_cuda_shared_memory()
    assert client.get_cuda_shared_memory_status() == []


def test_shared_memory_is_off_unless_the_device_s_owner_allows_it(tmp_path: Path, region: tuple[str, Path]) -> None:
    key, _ = region
    with oip.served(tmp_path) as agent, triton.InferenceServerClient(f"127.0.0.1:{agent.port}") as client:
        assert "system_shared_memory" not in client.get_server_metadata()["extensions"]
        assert refusal(client.register_system_shared_memory, "x", key, 8).status() == "403"
        assert agent.alive()

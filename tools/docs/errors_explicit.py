"""Places whose messages the walk over the errors cannot follow: what is said there, and why it is not seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["EXPLICIT", "UNSAID", "Said"]


@dataclass(frozen=True)
class Said:
    """messages: none where the words are another error's, which has an entry of its own. kind: of an agent's fault.

    error: the class, where the walk cannot tell that either.
    """

    messages: tuple[str, ...]
    reason: str
    kind: str = ""
    error: str = ""


EXPLICIT: Mapping[str, Said] = {
    "kedge.build.serving:_require_allowed": Said(
        (
            "{name} is no execution provider that a release may ask for",
            "{name} takes no option {key} from a release",
            "{name}: {key} cannot be {value}",
        ),
        "kedge_agent.formats.providers.refusal gives message and hint together",
    ),
    "kedge_agent.runtime.onnx_providers:require_allowed": Said(
        (
            "{name} is no execution provider that a release may ask for",
            "{name} takes no option {key} from a release",
            "{name}: {key} cannot be {value}",
        ),
        "kedge_agent.formats.providers.refusal gives message and hint together",
        "bad_input",
    ),
    "kedge.fleet.entries:_names": Said(
        ("no list of names",), "the caller says of what: a group's devices, a device's groups", error="BadInputError"
    ),
    "kedge_agent.store.journal:append": Said((), "a step that there is not is a defect of the agent's"),
    "kedge.release.signing:_signed_by": Said(
        (
            "ssh-keygen is not installed",
            "ssh-keygen refuses to run for user {getuid}, who has no entry in /etc/passwd",
        ),
        "kedge_agent.formats.sshkeygen.keygen_problem gives message and hint together",
    ),
    "kedge_agent.diagnose.collectors.service:find_service": Said(
        ("systemd has no unit of the agent",),
        "else the first reason why systemd cannot be asked",
    ),
    "kedge_agent.diagnose.kernel_log:_file": Said((), "why each file cannot be read, one after the other"),
    "kedge_agent.diagnose.snapshot:_masked": Said(
        (
            "its name is none of a member",
            "another has its name",
            "a snapshot has at most {MAX_MEMBERS} members",
            "it is too large",
        ),
        "a method of an attribute gives the reason",
    ),
    "kedge_agent.engine.apart:_asked": Said((), "what the compiling child process said, an EngineError itself"),
    "kedge_agent.formats.sshkeygen:_run": Said(("ssh-keygen cannot be run: {error}",), "the text is cut to a length"),
    "kedge_agent.measure.apart:_refused": Said((), "what the trying child process said, an AgentError itself"),
    "kedge_agent.runtime.cuda_bindings:_call": Said((), "CUDA's own name of its result"),
    "kedge_agent.runtime.tensorrt_engine:profile_for": Said(
        ("input {name} is {shape}, the engine takes {least} to {greatest}",),
        "of each profile, what does not fit",
    ),
    "kedge_agent.serving.deploys:started": Said((), "what recovery after a crash found, which has entries of its own"),
    "kedge_agent.serving.infer_request:_input": Said(
        ("input {name} is {datatype}, got {datatype}", "input {name} wants shape {shape}, got {shape}"),
        "TensorSpec.mismatch says what differs",
    ),
    "kedge_agent.serving.outcome:_taken_back": Said(
        ("release {digest} was taken back: {reason}",),
        "kedge_agent.serving.reverting.taken_back says it, also to the journal",
        "gate",
    ),
    "kedge_agent.serving.repository:_start": Said(
        ("safe mode: the agent crashed {anonymous} times in a row",),
        "an attribute, which kedge_agent.serving.deploys sets",
        "busy",
    ),
    "kedge_agent.serving.staging:_check_engine": Said(
        ("engine: {engine}; device: {device}",),
        "Fit.refusals has a part a key of the passport",
        "incompatible",
    ),
    "kedge_agent.store.releases:verify_release": Said(
        (
            "release {release}: {name} cannot be read: {strerror}",
            "release {release}: {name} has {size} bytes, and the manifest names {size_bytes}",
            "release {release}: {name} has other bytes than the manifest names{which}",
        ),
        "DamagedError makes its own text of the files that are damaged",
        "integrity",
    ),
    "kedge.deploy.bootstrap:_start": Said((), "what the agent said that does not start"),
    "kedge.errors:error_of_kind": Said((), "what the agent reported, which has an entry under its own area"),
    "kedge.transport.ssh_jump:_of": Said((), "the same error again, with the jump host's name before it"),
}
"""By module:function."""

UNSAID: Mapping[str, str] = {
    "AssertionError": "kedge's own defects, which are told with exit code 1 as such",
    "IndexError": "whoever looks up a place that is not there says so in its own words",
    "RuntimeError": "kedge's own defects, likewise",
}
"""Classes whose words nobody is meant to read, and why."""

"""The TensorRT adapter against NVIDIA's own bindings: names and calls, in every version that JetPack carries."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest
from tools.conformance.bindings import VERSIONS, Bindings, Member
from tools.conformance.check import ADAPTER, TABLE, table
from tools.conformance.compare import faults
from tools.conformance.surface import CLASSES, RESULTS, read_folder, read_sources
from tools.conformance.uses import MODULE, Surface

from tests.support import environment

MADE_UP = Bindings(
    "tensorrt",
    "1.0",
    {
        MODULE: {"Builder": Member(), "Flag": Member()},
        "Flag": {"FAST": Member(), "name": Member()},
        "Builder": {
            "__init__": Member(("(self: Builder, logger: ILogger) -> None",)),
            "create_network": Member(("(self: Builder, flags: int = 0) -> INetworkDefinition",)),
            "set": Member(
                ("(self: Builder, a: Map[int, int], b: Kind = <Kind.NO: 0>) -> None", "(self: Builder) -> int")
            ),
            "threads": Member(("(arg0: Builder) -> int",), writable=True),
            "logger": Member(("(arg0: Builder) -> ILogger",)),
        },
        "INetworkDefinition": {},
        "IProgressMonitor": {"phase_finish": Member(("(self: IProgressMonitor, phase_name: str) -> None",))},
    },
)
MADE_UP_RTX = Bindings("tensorrt-rtx", "2.0", MADE_UP.classes | {"Builder": {"targets": Member(), "extra": Member()}})


def said(source: str, *bindings: Bindings) -> list[str]:
    """What is wrong with a made-up adapter, without the places."""
    found = faults(read_sources({"made_up.py": textwrap.dedent(source)}), bindings or (MADE_UP,), {})
    return [line.rpartition(" (made_up.py")[0] for line in found]


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Bindings]:
    return environment.tensorrt_bindings(tmp_path_factory.mktemp("bindings"))


@pytest.fixture(scope="module")
def adapter() -> Surface:
    return read_folder(*ADAPTER)


@pytest.mark.slow
def test_everything_the_adapter_uses_is_in_every_version_it_serves(
    adapter: Surface, versions: Sequence[Bindings]
) -> None:
    assert [each.version for each in versions] == [*VERSIONS, versions[-1].version]
    assert versions[-1].runtime == "tensorrt-rtx"
    assert faults(adapter, versions, RESULTS) == []


@pytest.mark.slow
def test_the_classes_in_the_tables_are_in_every_version(versions: Sequence[Bindings]) -> None:
    for each in versions:
        assert set(CLASSES.values()) - set(each.classes) == set(), each.title


@pytest.mark.slow
def test_the_document_is_what_the_check_writes_today(adapter: Surface, versions: Sequence[Bindings]) -> None:
    assert TABLE.read_text(encoding="utf-8") == table(adapter, versions), "python -m tools.conformance.check writes it"


@pytest.mark.slow
def test_what_tensorrt_11_removed_is_found_missing_in_the_real_bindings(versions: Sequence[Bindings]) -> None:
    source = "def build(trt, config):\n    config.set_flag(trt.BuilderFlag.FP16)\n    config.set_flags(1, 2)\n"
    found = faults(read_sources({"old.py": source}), versions, {})
    lacking = [each.title for each in versions if each.version.startswith("11.") or each.runtime == "tensorrt-rtx"]
    assert [line for line in found if "FP16" in line] == [
        f"{title}: BuilderFlag.FP16 is absent (old.py:2)" for title in lacking
    ]
    assert len([line for line in found if "IBuilderConfig.set_flags is absent (old.py:3)" in line]) == len(versions)


def test_the_adapter_is_read_at_all(adapter: Surface) -> None:
    paths = {use.path for use in adapter.uses}
    for path in (
        "trt.Builder",
        "OnnxParser.parse",
        "Builder.build_serialized_network",
        "IBuilderConfig.progress_monitor",
    ):
        assert path in paths


def test_a_method_that_does_not_exist_is_found() -> None:
    assert said("def build(builder):\n    builder.no_such_thing()\n") == [
        "TensorRT 1.0: Builder.no_such_thing is absent"
    ]


@pytest.mark.parametrize(
    "source",
    [
        "def f(trt):\n    made = trt.Builder(None)\n    made.no_such_thing()",
        "def f(trt):\n    return trt.Builder(None).no_such_thing",
        "class C:\n    def f(self):\n        self._builder.no_such_thing = 1",
        "def f(builders):\n    return [builder.no_such_thing for builder in builders]",
        "def f(builder):\n    with open('x'):\n        return {'x': lambda: builder.no_such_thing()}",
        "def f(builder, x):\n    try:\n        y = x\n    finally:\n        builder.no_such_thing()",
        "def f(trt):\n    return getattr(trt.Builder, 'no_such_thing')",
        "NAMES = {'a': 'no_such_thing'}\ndef f(trt, x):\n    return getattr(trt.Builder, NAMES[x])",
    ],
)
def test_it_is_found_however_it_is_written(source: str) -> None:
    assert "TensorRT 1.0: Builder.no_such_thing is absent" in said(source)


@pytest.mark.parametrize(
    "source",
    [
        "def f(builder: Path):\n    return builder.no_such_thing",
        "try:\n    pass\nexcept ValueError as error:\n    print(error.no_such_thing)",
        "from x import builder\nbuilder.no_such_thing()",
        "def f():\n    builder = bytes(3)\n    return builder.no_such_thing()",
        "class Report:\n    builder: str\ndef f(report):\n    return report.builder.no_such_thing",
    ],
)
def test_what_is_none_of_tensorrt_s_is_left_alone(source: str) -> None:
    assert said(source) == []


def test_a_call_that_the_docstring_does_not_allow_is_found() -> None:
    assert said("def f(builder):\n    builder.create_network(flags=1)\n    builder.create_network()") == []
    assert (
        said("def f(builder):\n    builder.set(1)\n    builder.set(1, b=2)\n    builder.set()\n    builder.set(*x)")
        == []
    )
    for call in ("create_network(1, 2)", "create_network(flag=1)", "set(b=1)", "create_network(1, flags=1)"):
        assert len(said(f"def f(builder):\n    builder.{call}")) == 1, call
    assert said("def f(trt):\n    trt.Builder()") == [
        "TensorRT 1.0: trt.Builder takes (self: Builder, logger: ILogger) -> None"
    ]


def test_an_assignment_to_what_only_reads_is_found() -> None:
    assert said("def f(builder):\n    builder.threads = 1\n    builder.threads += 1") == []
    assert said("def f(builder):\n    builder.logger = 1") == ["TensorRT 1.0: Builder.logger cannot be assigned to"]


def test_a_method_that_overrides_nothing_is_found() -> None:
    made = "def f(trt):\n    class Monitor(trt.IProgressMonitor):\n        def {}: ...\n        def _own(self): ..."
    bindings = Bindings("tensorrt", "1.0", MADE_UP.classes | {MODULE: {"IProgressMonitor": Member()}})
    assert said(made.format("phase_finish(self, name)"), bindings) == []
    assert said(made.format("phase_end(self, name)"), bindings) == [
        "TensorRT 1.0: IProgressMonitor.phase_end is absent"
    ]
    assert said(made.format("phase_finish(self, name, more)"), bindings) == [
        "TensorRT 1.0: IProgressMonitor.phase_finish is overridden with 2 parameters, not 1"
    ]


@pytest.mark.parametrize(
    "body",
    [
        "if hasattr(builder, 'targets'):\n        builder.targets\n        builder.extra",
        "if not hasattr(builder, 'targets'):\n        return\n    builder.extra",
        "found = getattr(builder, 'targets', None)\n    if found is None:\n        raise ValueError\n    builder.extra",
        "return builder.extra if hasattr(builder, 'targets') else None",
        "return hasattr(builder, 'targets') and builder.extra",
        "if library.cross:\n        builder.extra",
        "if runtime != 'tensorrt-rtx':\n        return\n    builder.extra",
        "if not library.cross or x:\n        return\n    builder.extra",
    ],
)
def test_what_is_asked_for_before_it_is_used_may_be_absent(body: str) -> None:
    assert said(f"def f(builder, library, x):\n    {body}", MADE_UP, MADE_UP_RTX) == []


@pytest.mark.parametrize(
    "body",
    [
        "if hasattr(builder, 'threads'):\n        builder.extra",
        "if hasattr(builder, 'targets') or x:\n        builder.extra",
        "if not library.cross:\n        builder.extra",
    ],
)
def test_a_question_about_something_else_excuses_nothing(body: str) -> None:
    assert "TensorRT 1.0: Builder.extra is absent" in said(
        f"def f(builder, library, x):\n    {body}", MADE_UP, MADE_UP_RTX
    )


def test_what_no_version_has_is_found_even_if_it_is_asked_for() -> None:
    assert said("def f(builder):\n    getattr(builder, 'misspelt', None)") == ["no version has Builder.misspelt"]


def test_what_cannot_be_told_from_the_sources_is_said() -> None:
    made_up = "def f(builder, trt, name):\n    getattr(trt.Flag, name)\n    builder.create_network(0).inputs"
    assert faults(read_sources({"made_up.py": made_up}), [MADE_UP], {}) == [
        "made_up.py:2: a name that is made when it runs, of Flag",
        "TensorRT 1.0: INetworkDefinition.inputs is absent (made_up.py:3)",
    ]
    untold = "def f(builder):\n    builder.logger.log()\n    builder.threads.bit_length()"
    classes = MADE_UP.classes | {"ILogger": {}}
    assert faults(read_sources({"made_up.py": untold}), [Bindings("tensorrt", "1.0", classes)], {}) == [
        "TensorRT 1.0: Builder.logger gives ILogger, which RESULTS lacks (made_up.py:2)"
    ]


def test_a_table_that_says_what_the_bindings_do_not_is_found() -> None:
    assert faults(Surface(), [MADE_UP], {"Builder.create_network": "Builder"}) == [
        "TensorRT 1.0: Builder.create_network gives INetworkDefinition, not Builder as RESULTS has it"
    ]


def test_a_machine_without_a_compiler_or_an_index_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tools.conformance import bindings

    monkeypatch.setattr(bindings.shutil, "which", lambda _: None)
    with pytest.raises(bindings.UnavailableError, match="no C compiler"):
        bindings.tensorrt_bindings("10.3.0", tmp_path)

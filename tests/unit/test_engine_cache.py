"""The cache of engines: what it finds, what it never builds twice, and what it does with damage."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kedge.build import engines
from kedge.build.cache import CachedEngine, EngineCache
from kedge.build.engines import build_engine, translated
from kedge.cli import main
from kedge.errors import BadInputError, BusyError, IncompatibleError, IntegrityError, NoSpaceError
from kedge.transport.known import KnownObjects
from kedge_agent.engine.order import Order, engine_key
from kedge_agent.engine.report import EngineError
from kedge_agent.formats.manifest import FileEntry
from kedge_agent.formats.passport import Passport
from tests.support import models
from tests.support.environment import tensorrt_rtx

ONNX = "a" * 64
ORDER = Order(compute_capabilities=("8.9",))
HERE = Passport("tensorrt-rtx", "1.7.1.116", "linux", "x86_64", ("8.9",))
MASKS = {"8.0": 2, "8.6": 4, "8.9": 8, "12.0": 16, "12.1": 32}


def made(passport: Passport = HERE, size: int = 4096, fill: int = 0) -> bytes:
    """A file with the header of an engine of this passport."""
    version = [int(part) for part in passport.runtime_version.split(".")]
    magic = b"vtrt" if passport.runtime == "tensorrt-rtx" else b"ftrt"
    head = struct.pack("<4sIIIQ4B", magic, 0, 2, 0, size, *version)
    mask = sum(MASKS[each] for each in passport.compute_capabilities) if magic == b"vtrt" else 0
    return (head + b"\0" * (32 - len(head)) + struct.pack("<I", mask)).ljust(size, bytes([fill]))


def put(cache: EngineCache, order: Order = ORDER, passport: Passport = HERE, **engine: int) -> CachedEngine:
    key = engine_key(ONNX, order, passport)
    return cache.put(key, ONNX, order, passport, made(passport, **engine), {"seconds": 1.5})


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def test_an_engine_comes_back_as_it_was_put(cache: EngineCache) -> None:
    kept = put(cache)
    found = cache.get(engine_key(ONNX, ORDER, HERE))
    assert found == kept
    assert kept.path.read_bytes() == made()
    assert (kept.sha256, kept.size_bytes) == (hashlib.sha256(made()).hexdigest(), 4096)
    assert (kept.passport, kept.report, kept.onnx_sha256) == (HERE, {"seconds": 1.5}, ONNX)
    assert cache.entries() == [kept]


def test_an_empty_or_absent_cache_has_nothing(cache: EngineCache) -> None:
    assert cache.get("0" * 64) is None
    assert cache.entries() == []
    assert cache.find(ONNX, ORDER, HERE) is None
    assert cache.gc(keep_bytes=0) == []


def test_the_first_engine_of_a_key_stays(cache: EngineCache) -> None:
    first = put(cache, fill=1)
    second = put(cache, fill=2)
    assert second == first
    assert second.path.read_bytes() == made(fill=1)
    assert not [path for path in cache.folder.iterdir() if path.name.startswith(".")]


def test_an_engine_that_is_not_what_its_passport_says_is_not_kept(cache: EngineCache) -> None:
    key = engine_key(ONNX, ORDER, HERE)
    for wrong in (made(replace(HERE, compute_capabilities=("8.6",))), made()[:-1], b"ONNX", b""):
        with pytest.raises(IntegrityError):
            cache.put(key, ONNX, ORDER, HERE, wrong, {})
    assert cache.get(key) is None
    assert list(cache.folder.iterdir()) == []


@pytest.mark.parametrize(
    "order",
    [
        replace(ORDER, profiles={"x": ((1, 3), (4, 3), (8, 3))}),
        replace(ORDER, sparse_weights=True),
        replace(ORDER, optimization_level=1),
    ],
)
def test_what_decides_what_is_computed_is_part_of_the_key(cache: EngineCache, order: Order) -> None:
    put(cache)
    assert cache.find(ONNX, order, HERE) is None
    assert cache.find("b" * 64, ORDER, HERE) is None


def test_a_limit_that_was_asked_for_is_part_of_the_key(cache: EngineCache) -> None:
    put(cache)
    assert cache.find(ONNX, replace(ORDER, workspace_bytes=1 << 20), HERE) is None


def test_an_engine_serves_every_machine_that_its_passport_fits(cache: EngineCache) -> None:
    both = replace(ORDER, compute_capabilities=("8.9", "12.0"))
    kept = put(cache, both, replace(HERE, compute_capabilities=("8.9", "12.0")))
    for capability in ("8.9", "12.0"):
        found = cache.find(ONNX, ORDER, replace(HERE, compute_capabilities=(capability,)))
        assert found is not None
        assert (found[0], found[1].fits, found[1].warnings) == (kept, True, ())


@pytest.mark.parametrize(
    "other",
    [
        replace(HERE, compute_capabilities=("8.6",)),
        replace(HERE, compute_capabilities=()),
        replace(HERE, runtime_version="1.7.2.3"),
        replace(HERE, arch="aarch64"),
        replace(HERE, os="windows"),
        replace(HERE, runtime="tensorrt", runtime_version="10.3.0.30"),
    ],
)
def test_hard_differences_find_nothing(cache: EngineCache, other: Passport) -> None:
    put(cache)
    assert cache.find(ONNX, ORDER, other) is None


def test_soft_differences_find_the_engine_and_warn(cache: EngineCache) -> None:
    orin = Passport("tensorrt", "10.3.0.30", "linux", "aarch64", ("8.7",), "nvidia,p3767-0003", "36.4.3", "12.6")
    order = Order("tensorrt")
    kept = put(cache, order, orin)
    found = cache.find(ONNX, order, replace(orin, module="nvidia,p3767-0005", l4t="36.4.0", power_mode="2"))
    assert found is not None
    assert found[0] == kept
    assert found[1].warnings == (
        "module: built on nvidia,p3767-0003, this is nvidia,p3767-0005",
        "Jetson Linux: built on 36.4.3, this is 36.4.0",
    )


def test_a_version_of_which_the_fourth_part_is_not_known_fits(cache: EngineCache) -> None:
    orin = Passport("tensorrt", "10.3.0.30", "linux", "aarch64", ("8.7",))
    kept = put(cache, Order("tensorrt"), orin)
    found = cache.find(ONNX, Order("tensorrt"), replace(orin, runtime_version="10.3.0"))
    assert found is not None
    assert found[0] == kept


def test_of_several_that_fit_the_newest_is_taken(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    for when, capabilities in ((100.0, ("8.9", "12.0")), (300.0, ("8.6", "8.9")), (200.0, ("8.0", "8.9"))):
        monkeypatch.setattr(time, "time", lambda when=when: when)
        put(cache, replace(ORDER, compute_capabilities=capabilities), replace(HERE, compute_capabilities=capabilities))
    found = cache.find(ONNX, ORDER, HERE)
    assert found is not None
    assert found[0].passport.compute_capabilities == ("8.6", "8.9")


def _truncated(folder: Path) -> None:
    (folder / "engine").write_bytes(made()[:-7])


def _lengthened(folder: Path) -> None:
    (folder / "engine").write_bytes(made() + b"\0")


def _edited(folder: Path) -> None:
    data = bytearray(made())
    data[2000] ^= 1
    (folder / "engine").write_bytes(data)


def _of_another_version(folder: Path) -> None:
    (folder / "engine").write_bytes(made(replace(HERE, runtime_version="1.7.1.117")))


def _not_json(folder: Path) -> None:
    (folder / "entry.json").write_text("{")


def _nested_too_deep(folder: Path) -> None:
    (folder / "entry.json").write_text("[" * 100_000)


def _a_list(folder: Path) -> None:
    (folder / "entry.json").write_text("[]")


def _changed(key: str, value: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        body = json.loads((folder / "entry.json").read_text())
        (folder / "entry.json").write_text(json.dumps(body | {key: value}))

    return damage


def _lacking(key: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        body = json.loads((folder / "entry.json").read_text())
        del body[key]
        (folder / "entry.json").write_text(json.dumps(body))

    return damage


DAMAGES: dict[str, Callable[[Path], None]] = {
    "engine truncated": _truncated,
    "engine lengthened": _lengthened,
    "engine edited": _edited,
    "engine of another version": _of_another_version,
    "engine missing": lambda folder: (folder / "engine").unlink(),
    "entry missing": lambda folder: (folder / "entry.json").unlink(),
    "entry not JSON": _not_json,
    "entry nested too deep": _nested_too_deep,
    "entry a list": _a_list,
    "entry not UTF-8": lambda folder: (folder / "entry.json").write_bytes(b"\xff\xfe{}"),
    "entry a folder": lambda folder: ((folder / "entry.json").unlink(), (folder / "entry.json").mkdir())[0],
    "another ONNX": _changed("onnx_sha256", "b" * 64),
    "another passport": _changed("passport", replace(HERE, arch="aarch64").to_json()),
    "no passport": _changed("passport", 7),
    "a plan of another kind": _changed("plan", "x"),
    "a size that is not": _changed("bytes", -4096),
    "a time that is none": _changed("built", 10**400),
    "a report without its figures": _changed("report", {}),
    "a key more": _changed("surprise", 1),
    **{f"lacking {key}": _lacking(key) for key in ("sha256", "bytes", "built", "report", "plan", "entry_sha256")},
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_entry_is_forgotten_and_can_be_built_anew(cache: EngineCache, damage: str) -> None:
    kept = put(cache)
    DAMAGES[damage](kept.path.parent)
    cache.entries()
    cache.gc(keep_bytes=1 << 40)
    assert cache.find(ONNX, ORDER, HERE) is None
    assert cache.get(kept.key) is None
    again = put(cache, fill=3)
    assert again.path.read_bytes() == made(fill=3)
    assert cache.find(ONNX, ORDER, HERE) is not None


def test_random_damage_never_raises_and_never_gives_other_bytes(cache: EngineCache) -> None:
    dice = random.Random(4)  # noqa: S311 - not for secrets
    kept = put(cache, size=256)
    files = {name: (kept.path.parent / name).read_bytes() for name in ("engine", "entry.json")}
    for _ in range(150):
        name = dice.choice(["engine", "entry.json"])
        data = bytearray(files[name])
        for _ in range(dice.randrange(1, 4)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        for each, content in {**files, name: bytes(data)}.items():
            kept.path.parent.mkdir(exist_ok=True)
            (kept.path.parent / each).write_bytes(content)
        cache.entries()
        found = cache.get(kept.key)
        assert found is None or found == kept, bytes(data)


def test_files_that_are_not_the_caches_own_are_left_alone(cache: EngineCache) -> None:
    put(cache)
    (cache.folder / "notes.txt").write_text("mine")
    (cache.folder / ("f" * 64)).write_text("a file with the name of a key")
    assert len(cache.entries()) == 1
    cache.gc(keep_bytes=0)
    assert (cache.folder / "notes.txt").read_text() == "mine"


def _three(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> list[CachedEngine]:
    out = []
    for index, capability in enumerate(("8.0", "8.6", "8.9")):
        monkeypatch.setattr(time, "time", lambda when=1000.0 * index: when)
        here = replace(HERE, compute_capabilities=(capability,))
        out.append(put(cache, replace(ORDER, compute_capabilities=(capability,)), here, size=1000))
    monkeypatch.setattr(time, "time", lambda: 3000.0)
    return out


def test_the_oldest_go_until_as_much_is_left_as_may_stay(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    oldest, middle, newest = _three(cache, monkeypatch)
    assert cache.gc(keep_bytes=3000) == []
    assert cache.gc(keep_bytes=2999) == [oldest]
    assert cache.gc(keep_bytes=1000) == [middle]
    assert cache.entries() == [newest]
    assert cache.gc(keep_bytes=0) == [newest]
    assert list(cache.folder.iterdir()) == []


def test_what_is_too_old_goes_and_nothing_goes_unasked(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    oldest, middle, newest = _three(cache, monkeypatch)
    assert cache.gc() == []
    assert cache.gc(older_than_s=2500) == [oldest]
    assert cache.gc(older_than_s=1500, keep_bytes=1 << 30) == [middle]
    assert cache.entries() == [newest]


def test_what_is_needed_stays_however_old_and_counts(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    oldest, middle, newest = _three(cache, monkeypatch)
    assert cache.gc(keep_bytes=2000, older_than_s=2500, needed={oldest.sha256}) == [middle]
    assert cache.gc(keep_bytes=0, needed={oldest.sha256}) == [newest]
    assert cache.entries() == [oldest]


def _build_slowly(folder: str, log: str, start: Any) -> None:
    cache, key = EngineCache(Path(folder)), engine_key(ONNX, ORDER, HERE)
    start.wait()
    with cache.building(key):
        if cache.get(key) is None:
            with Path(log).open("a") as file:
                file.write("built\n")
            time.sleep(0.2)
            put(cache)


def test_of_two_processes_that_want_the_same_engine_one_builds_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    arguments = (str(tmp_path / "engines"), str(tmp_path / "log"), start)
    both = [context.Process(target=_build_slowly, args=arguments) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(30)
        assert process.exitcode == 0
    assert (tmp_path / "log").read_text() == "built\n"


def test_of_many_threads_that_want_the_same_engine_one_builds_it(tmp_path: Path) -> None:
    start = threading.Barrier(6)
    arguments = (str(tmp_path / "engines"), str(tmp_path / "log"), start)
    threads = [threading.Thread(target=_build_slowly, args=arguments) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (tmp_path / "log").read_text() == "built\n"


def test_a_lock_that_was_removed_meanwhile_keeps_others_out_all_the_same(cache: EngineCache) -> None:
    key = engine_key(ONNX, ORDER, HERE)
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        with cache.building(key):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()

    with cache.building(key):
        waiting = threading.Thread(target=work)
        waiting.start()
        time.sleep(0.1)
        cache.remove(key)
    others = [threading.Thread(target=work) for _ in range(3)]
    for thread in others:
        thread.start()
    for thread in (waiting, *others):
        thread.join(30)
    assert most == [1, 1, 1, 1]


def test_an_error_inside_comes_out_and_frees_the_lock(cache: EngineCache) -> None:
    for _ in range(2):
        with pytest.raises(FileNotFoundError), cache.building("0" * 64):
            raise FileNotFoundError("a file of the user's")


@pytest.fixture
def model(tmp_path: Path) -> bytes:
    tensorrt_rtx()
    return models.classifier(tmp_path / "m.onnx", batch=1).read_bytes()


def _built(model: bytes, cache: EngineCache, told: list[float] | None = None) -> tuple[CachedEngine, bool]:
    def progress(step: str, share: float) -> None:
        if told is not None:
            told.append(share)

    return build_engine(model, hashlib.sha256(model).hexdigest(), ORDER, cache=cache, progress=progress)


def test_the_second_build_gives_the_very_same_bytes(model: bytes, cache: EngineCache) -> None:
    told: list[float] = []
    first, built = _built(model, cache, told)
    assert built
    assert told[0] == 0.0
    assert max(told) <= 1.0
    assert len(told) > 3
    content = first.path.read_bytes()
    assert content.startswith(b"vtrt")
    again, built = _built(model, cache)
    assert not built
    assert again == first
    assert again.path.read_bytes() == content
    assert again.report["network"]


def test_a_damaged_engine_is_compiled_again(model: bytes, cache: EngineCache) -> None:
    first, _ = _built(model, cache)
    first.path.write_bytes(first.path.read_bytes()[:-1])
    again, built = _built(model, cache)
    assert built
    assert again.path.stat().st_size == again.size_bytes


def test_a_model_that_the_compiler_refuses_is_not_kept(cache: EngineCache) -> None:
    tensorrt_rtx()
    with pytest.raises((IncompatibleError, BadInputError)):
        _built(b"no model", cache)
    assert cache.entries() == []


def test_without_the_compiler_the_error_says_what_to_install(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "passport_here", lambda *_: None)
    with pytest.raises(IncompatibleError, match="TensorRT for RTX is not installed here") as caught:
        _built(b"", cache)
    assert caught.value.hint == "pip install 'kedge[tensorrt]'"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("missing", IncompatibleError),
        ("bad_input", BadInputError),
        ("refused", IncompatibleError),
        ("killed", NoSpaceError),
        ("memory", NoSpaceError),
        ("crashed", IncompatibleError),
        ("timeout", IncompatibleError),
        ("cancelled", BusyError),
    ],
)
def test_a_compilers_failure_becomes_one_of_ours(kind: str, expected: type[Exception]) -> None:
    error = translated(EngineError("what is wrong", kind=kind, log=("INFO: news", "ERROR: this", "WARNING: that")))
    assert type(error) is expected
    assert error.message == "what is wrong"
    assert "ERROR: this | WARNING: that" in error.hint
    assert "news" not in error.hint
    assert ("kedge preflight" in error.hint) == (kind == "refused")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCache:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return EngineCache()


def test_the_list_shows_engines_the_newest_first(
    own_cache: EngineCache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "list"]) == 0
    shown = capsys.readouterr().out
    assert f"no engines in {own_cache.folder}" in shown
    assert "0 pushed files" in shown
    kept = _three(own_cache, monkeypatch)
    assert main(["cache", "list", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    nothing = {"folder": str(own_cache.folder.parent / "objects"), "files": 0, "bytes": 0}
    engines = [each.to_json() for each in reversed(kept)]
    releases = {"folder": str(own_cache.folder.parent / "releases"), "entries": []}
    told = {"folder": str(own_cache.folder), "engines": engines, "releases": releases, "pushed": nothing}
    assert document == told
    assert main(["cache", "list"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines() if "tensorrt-rtx 1.7.1.116" in line] == [
        each.key[:8] for each in reversed(kept)
    ]
    assert "3 kB in" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_the_command_removes_what_it_is_told_to(
    own_cache: EngineCache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "gc"]) == 3
    assert "--keep-mib or --older-than-days" in capsys.readouterr().err
    kept = _three(own_cache, monkeypatch)
    assert main(["cache", "gc", "--older-than-days", str(2500 / 86400), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [each["key"] for each in document["removed"]] == [kept[0].key]
    assert document["freed_bytes"] == 1000
    assert main(["cache", "gc", "--keep-mib", "0"]) == 0
    assert "2 engines removed, 2 kB freed" in capsys.readouterr().out
    assert own_cache.entries() == []


def test_pushed_files_are_listed_and_go_before_engines_do(
    own_cache: EngineCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _three(own_cache, monkeypatch)
    weights = tmp_path / "weights"
    weights.write_bytes(bytes(1 << 20))
    KnownObjects().remember([(FileEntry("weights", 1 << 20, "a" * 64, ("b" * 64,)), weights)])
    assert main(["cache", "list", "--json"]) == 0
    pushed = json.loads(capsys.readouterr().out)["pushed"]
    assert (pushed["files"], pushed["bytes"]) == (1, 1 << 20)
    assert main(["cache", "gc", "--keep-mib", "1"]) == 0
    shown = capsys.readouterr().out
    assert "0 engines removed" in shown
    assert "1 pushed files let go, of 1.05 MB" in shown
    assert KnownObjects().entries() == []
    assert len(own_cache.entries()) == 3


def test_what_cannot_be_read_just_now_is_no_damaged_engine(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = put(cache)

    def fails(path: Path) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr("kedge.build.cache.hash_file", fails)
        assert cache.get(kept.key) is None
    assert cache.get(kept.key) == kept


def test_what_a_put_that_was_ended_left_is_swept_when_it_is_old(cache: EngineCache) -> None:
    put(cache)
    for name, age in ((".0123456789ab.old", 7200), (".0123456789ab.new", 0)):
        left = cache.folder / name
        left.mkdir()
        os.utime(left, (time.time() - age,) * 2)
    assert cache.gc(keep_bytes=1 << 40) == []
    assert [entry.name for entry in cache.folder.glob(".*")] == [".0123456789ab.new"]

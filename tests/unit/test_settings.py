"""The agent's settings: what may stand in the file, and what is said about the rest."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from kedge_agent.errors import AgentError
from kedge_agent.runtime.pool import PoolRules
from kedge_agent.serving.limits import Limits
from kedge_agent.settings import (
    SYSTEM_SETTINGS,
    SYSTEM_STATE,
    RecorderRules,
    Settings,
    parse_settings,
    read_settings,
    settings_path,
)
from kedge_agent.store.rules import ReleaseRules


def parsed(body: Any) -> Settings:
    return parse_settings(json.dumps(body).encode())


def test_an_empty_object_and_no_file_are_the_defaults(tmp_path: Path) -> None:
    assert parsed({}) == Settings() == read_settings(tmp_path / "agent.json")
    assert Settings().tcp_port is None
    assert Settings().shared_memory_prefix is None


def test_a_file_that_somebody_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="there is no file of settings") as caught:
        read_settings(tmp_path / "mine.json", must_exist=True)
    assert "--config" in caught.value.hint


def test_every_setting_is_read() -> None:
    settings = parsed(
        {
            "tcp_port": 8000,
            "threads": 3,
            "shared_memory_prefix": "/kedge_",
            "limits": {
                "connections": 16,
                "header_bytes": 4096,
                "body_bytes": 1 << 20,
                "idle_s": 30,
                "slowest_bytes_per_s": 1000,
            },
            "models": {
                "*": {"queue": 4},
                "camera": {
                    "workers": 2,
                    "queue": 1,
                    "deadline_ms": 100,
                    "drop_stale": True,
                    "max_batch": 8,
                    "max_delay_us": 0,
                },
            },
            "recorder": {"enabled": False, "mb": 4},
            "drain_s": 2.5,
            "stuck_s": 60,
        }
    )
    assert settings == Settings(
        tcp_port=8000,
        threads=3,
        shared_memory_prefix="/kedge_",
        limits=Limits(16, 4096, 1 << 20, 30.0, 1000),
        models={
            "*": PoolRules(queue=4),
            "camera": PoolRules(2, 1, 100, drop_stale=True, max_batch=8, max_delay_us=0),
        },
        recorder=RecorderRules(enabled=False, mb=4),
        drain_s=2.5,
        stuck_s=60.0,
    )


def test_a_model_s_own_rules_replace_those_of_the_star() -> None:
    settings = parsed({"models": {"*": {"queue": 4}, "camera": {"workers": 2}}})
    assert settings.rules_of("camera") == PoolRules(workers=2)
    assert settings.rules_of("other") == PoolRules(queue=4)
    assert Settings().rules_of("other") == PoolRules()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "the whole is not an object"),
        ({"tcp_port": 0}, "tcp_port is 0; it is a whole number from 1 to 65535"),
        ({"tcp_port": "8000"}, "tcp_port is '8000'"),
        ({"tcp_port": True}, "tcp_port is True"),
        ({"tcp_port": 8000.0}, "tcp_port is 8000.0"),
        ({"threads": None}, "threads is None"),
        ({"threads": 1025}, "threads is 1025; it is a whole number from 0 to 1024"),
        ({"shared_memory_prefix": "/"}, "shared_memory_prefix is '/'"),
        ({"shared_memory_prefix": "/a"}, "shared_memory_prefix is '/a'"),
        ({"shared_memory_prefix": "kedge"}, "shared_memory_prefix is 'kedge'"),
        ({"shared_memory_prefix": "/../etc"}, "shared_memory_prefix is '/../etc'"),
        ({"limits": 3}, "limits is not an object"),
        ({"limits": {"connections": 0}}, "limits.connections is 0"),
        ({"limits": {"idle_s": "long"}}, "limits.idle_s is 'long'; it is a number from 1 to 86400"),
        ({"models": []}, "models is []; it is an object"),
        ({"models": {"A B": {}}}, "models has 'A B', which is no model's name"),
        ({"models": {"camera": 1}}, "models.camera is not an object"),
        ({"models": {"camera": {"workers": 0}}}, "models.camera.workers is 0; it goes from 1 to 64"),
        ({"models": {"camera": {"drop_stale": 1}}}, "models.camera.drop_stale is 1; it is true or false"),
        ({"drain_s": -1}, "drain_s is -1; it is a number from 0 to 3600"),
        ({"drain_s": False}, "drain_s is False"),
        ({"stuck_s": 1e400}, "stuck_s is inf"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_its_name(body: Any, said: str) -> None:
    text = json.dumps(body).replace("Infinity", "1e400")
    with pytest.raises(AgentError) as caught:
        parse_settings(text.encode())
    assert said in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("body", "said", "hint"),
    [
        ({"tcp-port": 1}, "there is no setting tcp-port", "did you mean tcp_port?"),
        ({"limits": {"idle": 1}}, "there is no setting limits.idle", "did you mean limits.idle_s?"),
        ({"models": {"*": {"deadline": 1}}}, "there is no setting models.*.deadline", "models.*.deadline_ms?"),
        ({"zzz": 1}, "there is no setting zzz", "known here: tcp_port, threads"),
    ],
)
def test_an_unknown_setting_is_refused_and_the_nearest_known_one_is_named(body: Any, said: str, hint: str) -> None:
    with pytest.raises(AgentError) as caught:
        parsed(body)
    assert said in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "text", [b"", b"{", b'{"threads": 1, "threads": 2}', b'{"drain_s": NaN}', b"\xff", b"[" * 9999]
)
def test_what_is_not_strict_json_is_refused(text: bytes) -> None:
    with pytest.raises(AgentError):
        parse_settings(text)


def test_what_is_wrong_in_a_file_is_said_with_the_file_s_name(tmp_path: Path) -> None:
    path = tmp_path / "agent.json"
    path.write_text('{"thread": 1}')
    with pytest.raises(AgentError, match="there is no setting thread") as caught:
        read_settings(path)
    assert str(path) in caught.value.message
    assert caught.value.hint == "did you mean threads?"
    path.write_text(" " * 300_000)
    with pytest.raises(AgentError, match="is longer than"):
        read_settings(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(AgentError, match="reading"):
        read_settings(path)


def test_the_file_is_the_named_one_the_system_s_or_the_state_folder_s(tmp_path: Path) -> None:
    assert settings_path(tmp_path, None) == tmp_path / "agent.json"
    assert settings_path(SYSTEM_STATE, None) == SYSTEM_SETTINGS
    assert settings_path(SYSTEM_STATE, tmp_path / "x.json") == tmp_path / "x.json"


def test_the_document_s_example_is_accepted_and_every_setting_is_in_the_document() -> None:
    text = (Path(__file__).parents[2] / "docs" / "agent.md").read_text()
    lines = text.splitlines()
    first, last = lines.index("    {"), lines.index("    }")
    example = parse_settings("\n".join(lines[first : last + 1]).encode())
    assert example.tcp_port == 8000
    assert example.rules_of("camera").drop_stale
    names = [
        *(f"`releases.{each.name}`" for each in fields(ReleaseRules) if each.name not in ("thresholds", "settings")),
        *(f"`recorder.{each.name}`" for each in fields(RecorderRules)),
        *(
            f"`{each.name}`"
            for each in fields(Settings)
            if each.name not in ("limits", "models", "recorder", "releases")
        ),
        *(f"`limits.{each.name}`" for each in fields(Limits)),
        *(f"`.{each.name}`" for each in fields(PoolRules)),
    ]
    assert [name for name in names if f"| {name} |" not in text and f"| … {name} |" not in text] == []

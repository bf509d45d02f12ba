"""`kedge doctor` on a device that something was done to, live and out of a snapshot; whether its cures can be done."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from kedge.cli.app import root
from tests.support.schemas import validate

# What a device has and the machine of the tests need not. NVIDIA, Jetson Linux Developer Guide: nvpmodel,
# jetson_clocks; NVIDIA, "nvidia-smi"; systemd; util-linux and procps, which every Debian and Ubuntu have.
DEVICES_HAVE = frozenset(
    ("nvpmodel", "jetson_clocks", "nvidia-smi", "systemctl", "timedatectl", "dmesg", "ps", "renice", "kill", "sudo")
)
_BUILT_IN = frozenset(("kill", "cd", "echo", "${EDITOR:-vi}"))


@dataclass
class Doctor:
    """What a person at a host runs. device: its name. environment: of the commands. folder: for snapshots."""

    device: str
    folder: Path
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    taken: int = 0

    def kedge(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "kedge", *words],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            env=self.environment,
            stdin=subprocess.DEVNULL,
        )

    def live(self) -> dict[str, Any]:
        """The document on the device as it is."""
        return self._judged("--on", self.device)

    def snapshot(self) -> Path:
        """Take a snapshot of it."""
        self.taken += 1
        path = self.folder / f"{self.device}-20261126T0000{self.taken:02}Z.kedge-snapshot.tar.zst"
        done = self.kedge("snapshot", "--on", self.device, "-o", str(path), "--seconds", "30", "--json")
        assert done.returncode == 0, done.stderr
        return path

    def offline(self) -> dict[str, Any]:
        """The document on a snapshot that is taken now."""
        return self._judged(str(self.snapshot()))

    def names(self, *checks: str, offline: bool = True) -> dict[str, Any]:
        """The first cause, live and (where it can be told) out of a snapshot, is one of these, and can be cured.

        Returns:
            the live document.
        """
        documents = [self.live(), *([self.offline()] if offline else [])]
        for document in documents:
            first = document["first_cause"]
            assert first is not None, told(document)
            assert first["check"] in checks, told(document)
            assert first["evidence"]
            assert first["cause"]
            assert_can_be_done(first["cure"])
        return documents[0]

    def finds_no_fault(self) -> dict[str, Any]:
        """Nothing is at fault any more."""
        document = self.live()
        assert document["first_cause"] is None, told(document)
        return document

    def _judged(self, *words: str) -> dict[str, Any]:
        done = self.kedge("doctor", *words, "--json")
        assert done.returncode in (0, 10), done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        validate(document, "doctor")
        faults = [each for each in document["findings"] if each["result"] == "fault"]
        assert done.returncode == (10 if faults else 0)
        assert (document["first_cause"] is None) == (not faults)
        return document


def finding(document: dict[str, Any], check: str) -> dict[str, Any]:
    """The finding of a check; of several the worst."""
    order = ("fault", "warning", "unknown", "ok")
    found = [each for each in document["findings"] if each["check"] == check]
    best: dict[str, Any] = min(found, key=lambda each: order.index(each["result"]))
    return best


def told(document: dict[str, Any]) -> str:
    """What is amiss or not known, for a message."""
    amiss = [each for each in document["findings"] if each["result"] != "ok"]
    return "\n".join(f"{each['result']} {each['check']}: {each['evidence']} → {each['cure']}" for each in amiss)


def assert_can_be_done(cure: str) -> None:
    """Each command of a cure is one of kedge's, with its options, or a program that devices have."""
    found = list(commands(cure))
    assert found, f"no command: {cure!r}"
    for words in found:
        if words[0] == "kedge":
            _assert_parses(words[1:])
        elif words[0] == "ssh":
            # A way in that is to be tried, or a command for the device.
            if words[-1] != "true":
                assert_can_be_done(words[-1])
        else:
            known = words[0] in DEVICES_HAVE | _BUILT_IN or words[0].endswith(("/bin/kedge-agent", "/bin/python3"))
            assert known or shutil.which(words[0]), f"no program {words[0]}: {cure}"


def commands(line: str) -> Iterator[list[str]]:
    """The commands of a line, without sudo and comments."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    words: list[str] = []
    for token in [*lexer, ";"]:
        if set(token) <= set("|&;"):
            if words[:1] == ["sudo"]:
                words = words[1:]
            if words:
                yield words
            words = []
        else:
            words.append(token)


def on_device(cure: str) -> str:
    """What is to be run on a device, of a cure that is pasted on the host; without sudo."""
    found = shlex.split(cure, comments=True)
    assert (found[0], "@127.0.0.1" in found[-2]) == ("ssh", True), cure
    return found[-1].removeprefix("sudo ")


def _assert_parses(words: list[str]) -> None:
    command: click.Command = root
    context = click.Context(root, info_name="kedge")
    while isinstance(command, click.Group) and words:
        name, found, words = command.resolve_command(context, words)
        assert found is not None, f"kedge has no command {name}"
        command = found
        context = click.Context(command, info_name=name, parent=context)
    command.make_context(context.info_name, list(words), parent=context.parent)

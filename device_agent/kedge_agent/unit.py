"""The systemd unit of an agent that may do what it needs, and nothing else.

What each line is for stands in docs/agent.md. The text depends on its arguments alone, so that it can be read, and
changed, before it is installed.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .errors import AgentError
from .store.layout import SYSTEM_STATE

__all__ = ["UnitOptions", "systemd_version", "unit_text"]

Hardware = Literal["cpu", "gpu", "jetson"]

_CLOSE_S = 30
_BACK_OFF_SYSTEMD = 254
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_HOMES = ("/home", "/root", "/run/user")

_UNIT = """\
# Made by `kedge-agent unit`. What each line is for, and how to install it: docs/agent.md
[Unit]
Description=kedge agent on {state}
Documentation=man:systemd.exec(5)
RequiresMountsFor={state}
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
KillMode=mixed
TimeoutStartSec=60
TimeoutStopSec={stop_s}
WatchdogSec=30
Restart=on-failure
RestartPreventExitStatus=2 3
{restart}
OOMPolicy=continue
OOMScoreAdjust=-250
LimitCORE=0
LimitNOFILE=8192
{memlock}
User={user}
Group={user}
UMask=0077
{folders}
NoNewPrivileges=yes
PrivateMounts=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
ProtectProc=invisible
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
LockPersonality=yes
KeyringMode=private
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
{devices}
{network}
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallFilter=chown fchownat

[Install]
WantedBy=multi-user.target
"""

_NO_NETWORK = """\
PrivateNetwork=yes
RestrictAddressFamilies=AF_UNIX
IPAddressDeny=any"""

_LOCALHOST = """\
RestrictAddressFamilies=AF_UNIX AF_INET
IPAddressDeny=any
IPAddressAllow=localhost"""

_NO_DEVICES = """\
PrivateDevices=yes
DevicePolicy=closed
MemoryDenyWriteExecute=yes"""

_NODES: dict[Hardware, tuple[str, ...]] = {
    "gpu": ("char-nvidia*",),
    # Jetson Linux 36: the nodes that libcuda opens there.
    "jetson": (
        "/dev/nvmap",
        "/dev/host1x-fence",
        "/dev/nvsciipc",
        "char-drm",
        "char-nvidia*",
        "char-nvhost*",
        "char-nvgpu*",
    ),
}


@dataclass(frozen=True)
class UnitOptions:
    """What the unit is for.

    command: how the agent is run, `serve` included; the first word is an absolute path.
    user: an unprivileged user with a group of the same name.
    tcp: whether the settings may open a port of localhost.
    systemd: its version where the unit will run; None: not known, and nothing recent is used.
    """

    command: Sequence[str]
    state: Path = SYSTEM_STATE
    user: str = "kedge"
    tcp: bool = False
    hardware: Hardware = "cpu"
    drain_s: float = 20.0
    systemd: int | None = None

    def __post_init__(self) -> None:
        if _USER.fullmatch(self.user) is None or self.user == "root":
            raise AgentError(f"{self.user[:80]!r} is no name of an unprivileged user", hint="name one with --user")
        if not self.state.is_absolute() or re.search(r"[\s\"'\\%:]", str(self.state)):
            raise AgentError(f"a unit cannot have the state folder {str(self.state)!r}", hint="take a plain path")
        for path in (self.command[0], str(Path(self.command[0]).resolve()), str(self.state)):
            if path.startswith(tuple(f"{home}/" for home in _HOMES)):
                raise AgentError(
                    f"{path} is within a home folder, which a service does not see",
                    hint="install the agent elsewhere, for instance a virtual environment in /opt/kedge",
                )


def unit_text(options: UnitOptions) -> str:
    """The unit."""
    restart = "RestartSec=5"
    if options.systemd is not None and options.systemd >= _BACK_OFF_SYSTEMD:
        restart = "RestartSec=1\nRestartSteps=6\nRestartMaxDelaySec=60"
    devices = _NO_DEVICES
    if options.hardware != "cpu":
        allowed = "\n".join(f"DeviceAllow={node} rw" for node in _NODES[options.hardware])
        # The runtimes of a GPU write code and run it.
        devices = f"DevicePolicy=closed\n{allowed}\nMemoryDenyWriteExecute=no"
    return _UNIT.format(
        state=options.state,
        command=" ".join(_quoted(word) for word in options.command),
        stop_s=int(options.drain_s) + _CLOSE_S,
        restart=restart,
        memlock="LimitMEMLOCK=64M" if options.hardware == "cpu" else "LimitMEMLOCK=infinity",
        user=options.user,
        folders=_folders(options.state),
        devices=devices,
        network=_LOCALHOST if options.tcp else _NO_NETWORK,
    )


def systemd_version() -> int | None:
    """Version of the systemd here, or None where there is none that says."""
    try:
        said = subprocess.run(
            ["systemctl", "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.match(r"systemd (\d+)", said)
    return int(found[1]) if found else None


def _folders(state: Path) -> str:
    if state == SYSTEM_STATE:
        return (
            "StateDirectory=kedge\nStateDirectoryMode=0700\nRuntimeDirectory=kedge\nRuntimeDirectoryMode=0755\n"
            "ConfigurationDirectory=kedge\nPrivateTmp=yes"
        )
    # Any other agent's sockets are in /tmp, where clients must find them.
    return f"ReadWritePaths={state} /tmp\nPrivateTmp=no"


def _quoted(word: str) -> str:
    word = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$")
    return word if re.fullmatch(r"[A-Za-z0-9@%+=:,./_$-]+", word) else '"' + word.replace('"', '\\"') + '"'

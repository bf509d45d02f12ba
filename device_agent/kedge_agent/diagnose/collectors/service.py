"""The agent's unit of systemd, if it has one.

Source: systemctl(1), "show"; org.freedesktop.systemd1(5) for the properties.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

from ..device import Device, UnavailableError

__all__ = ["find_service", "units"]

_PROPERTIES = "Id,LoadState,ActiveState,SubState,Result,NRestarts,UnitFileState,MainPID"
_PATIENCE_S = 2.0


def units(device: Device) -> list[str]:
    """Names that an agent's unit may have: of the default state folder, and of this one, as provisioning names it."""
    mine = hashlib.sha256(os.fsencode(device.state)).hexdigest()[:8]
    return ["kedge-agent.service", f"kedge-agent-{mine}.service"]


def find_service(device: Device, pid: int | None) -> dict[str, Any]:
    """What systemd says of the agent: of the unit whose process it is, else of the one that is there.

    Raises:
        UnavailableError: there is no systemd, or no such unit.
    """
    if not (device.root / "run/systemd/system").is_dir():
        raise UnavailableError("this system was not started by systemd")
    found, reasons = [], []
    # A user may have a manager of their own.
    for own in ([], ["--user"]) if os.geteuid() else ([],):
        try:
            found += _shown(device, own)
        except UnavailableError as error:
            reasons.append(str(error))
    if not found:
        raise UnavailableError(reasons[0] if reasons else "systemd has no unit of the agent")
    unit = min(found, key=lambda each: (each["MainPID"] != str(pid), each["ActiveState"] != "active"))
    main = int(unit["MainPID"]) if unit["MainPID"].isdigit() else 0
    return {
        "unit": unit["Id"],
        "active": unit["ActiveState"] or None,
        "sub": unit["SubState"] or None,
        "result": unit["Result"] or None,
        "restarts": int(unit["NRestarts"]) if unit["NRestarts"].isdigit() else None,
        "enabled": unit["UnitFileState"] or None,
        "main_pid": main or None,
    }


def _shown(device: Device, own: list[str]) -> list[dict[str, str]]:
    told = device.command("systemctl", *own, "show", f"--property={_PROPERTIES}", *units(device), timeout_s=_PATIENCE_S)
    names = _PROPERTIES.split(",")
    out = []
    for part in told.split("\n\n"):
        values = dict(line.split("=", 1) for line in part.splitlines() if "=" in line)
        if values.get("LoadState") not in (None, "not-found"):
            out.append({name: values.get(name, "") for name in names})
    return out

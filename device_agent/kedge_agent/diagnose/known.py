"""What this device is known by: its names, addresses and users, for a redactor to mask wherever they stand.

Sources: hostname(5), hosts(5), resolv.conf(5), passwd(5), machine-id(5), proc_net(5) (`arp`, `if_inet6`); Linux,
Documentation/networking/fib_trie.rst and Documentation/ABI/testing/sysfs-class-net (`address`); the Devicetree
Specification, 3.2 (`serial-number` of the root node). Values of environment variables that are secret by their names
are masked too: nothing of an environment is collected, but what a process was given may stand in its log.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from .collectors.holder import lock_holder
from .device import Collected, Device, UnavailableError
from .plausible import in_place_only, is_secret_key
from .running import Collector

__all__ = ["KNOWN"]

_MOST = 300
_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")
_FIRST_USER, _NOBODY = 1000, 65534


def _collect(device: Device) -> Collected:
    kinds = {
        "host": _hosts(device),
        "ip": _addresses(device),
        "mac": _cards(device),
        "user": _users(device),
        "id": _identities(device),
        "secret": _environment(device),
    }
    return Collected({kind: list(dict.fromkeys(values))[:_MOST] for kind, values in kinds.items()})


KNOWN = Collector("known", _collect, 3.0)
"""Its document is no member of a snapshot: values by the redactor's kinds."""


def _text(device: Device, path: str) -> str:
    try:
        return device.text(path, 1 << 16)
    except UnavailableError:
        return ""


def _hosts(device: Device) -> Iterable[str]:
    names = [os.uname().nodename] if device.live else []
    names += _text(device, "etc/hostname").split()
    for line in _text(device, "etc/hosts").splitlines():
        address, *rest = line.partition("#")[0].split() or [""]
        # Names of this machine, and of others that somebody found worth writing down.
        names += [name for name in rest if not address.startswith(("ff0", "fe0")) and "localhost" not in name]
    for line in _text(device, "etc/resolv.conf").splitlines():
        words = line.split()
        if words and words[0] in ("search", "domain"):
            names += [word for word in words[1:] if "." in word.strip(".")]
    # Its short name, where it has a long one.
    return [each for name in names for each in (name, name.partition(".")[0]) if re.search("[A-Za-z]", each)]


def _addresses(device: Device) -> Iterable[str]:
    found = re.findall(r"(?:\d{1,3}\.){3}\d{1,3}", _text(device, "proc/net/fib_trie") + _text(device, "proc/net/arp"))
    found += re.findall(r"^\s*nameserver\s+(\S+)", _text(device, "etc/resolv.conf"), re.MULTILINE)
    for line in _text(device, "proc/net/if_inet6").splitlines():
        digits = line.split(" ")[0]
        if re.fullmatch("[0-9a-f]{32}", digits):
            found.append(str(ipaddress.IPv6Address(int(digits, 16))))
    for text in found:
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_address(text)
            if not (address.is_loopback or address.is_unspecified or text.startswith(("0.", "255."))):
                yield text


def _cards(device: Device) -> Iterable[str]:
    texts = [_text(device, "proc/net/arp")]
    with contextlib.suppress(OSError):
        names = sorted(os.listdir(device.root / "sys/class/net"))[:_MOST]
        texts += [_text(device, f"sys/class/net/{name}/address") for name in names]
    return [card for text in texts for card in _MAC.findall(text.lower()) if len(set(card)) > 2]


def _users(device: Device) -> Iterable[str]:
    for line in _text(device, "etc/passwd").splitlines():
        fields = line.split(":")
        if len(fields) > 5 and fields[2].isdigit() and _FIRST_USER <= int(fields[2]) < _NOBODY:
            yield fields[0]
            yield PurePosixPath(fields[5]).name
            full_name = fields[4].partition(",")[0]
            if " " in full_name:
                yield full_name


def _identities(device: Device) -> Iterable[str]:
    for path in ("etc/machine-id", "proc/device-tree/serial-number", "sys/firmware/devicetree/base/serial-number"):
        text = _text(device, path).strip("\0\n ")
        if len(text) >= 8:
            yield text


def _environment(device: Device) -> Iterable[str]:
    """Secrets that this process, or the daemon, was given."""
    found = [(name, value) for name, value in os.environ.items()] if device.live else []
    with contextlib.suppress(UnavailableError, ValueError):
        pid = lock_holder(device)
        if pid is not None:
            words = device.data(f"proc/{pid}/environ").decode("utf-8", "replace").split("\0")
            found += [(name, value) for name, _, value in (word.partition("=") for word in words)]
    return [value for name, value in found if is_secret_key(name, value) and not in_place_only(value)]

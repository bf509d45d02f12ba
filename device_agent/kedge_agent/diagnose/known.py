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
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from .collectors.holder import daemon_of
from .device import Collected, Device, UnavailableError
from .plausible import in_place_only
from .running import Collector, Outcome, run_collectors
from .secret_keys import is_secret_key

__all__ = ["KNOWN", "Known", "known_of"]

_MOST = 300
_DEADLINE_S = 3.0
# The agent's process may not let us see what it was given; all the rest is masked without it.
_SPARED = "secret"
_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")
_URL_PASSWORD = re.compile(r"://[^\s/:@]{0,256}:([^\s/]{1,256})@")
_FIRST_USER, _NOBODY = 1000, 65534


@dataclass(frozen=True)
class Known:
    """What this device is known by.

    values: by the redactor's kinds. whole: nothing is missing without which no text may leave the device. outcome: how
    it went, for the manifest; the first kind that failed is told.
    """

    values: dict[str, list[str]]
    whole: bool
    outcome: Outcome


def known_of(device: Device, deadline_s: float) -> Known:
    """Find it out, each kind in a process of its own, so that one that fails takes no other with it."""
    outcomes = run_collectors(KNOWN, device, deadline_s)
    values = {kind: each.data["values"] for kind, each in outcomes.items() if each.data is not None}
    failed = [kind for kind in outcomes if kind not in values]
    ms = max(each.ms for each in outcomes.values())
    whole = Outcome("known", "ok", None, ms, None)
    if failed:
        first = outcomes[failed[0]]
        whole = replace(whole, status=first.status, reason=f"{first.name}: {first.reason}")
    return Known(values, set(failed) <= {_SPARED}, whole)


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
        if len(fields) > 5 and re.fullmatch("[0-9]{1,10}", fields[2]) and _FIRST_USER <= int(fields[2]) < _NOBODY:
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
    pid = daemon_of(device)
    if pid is not None:
        with contextlib.suppress(UnavailableError):
            words = device.data(f"proc/{pid}/environ").decode("utf-8", "replace").split("\0")
            found += [(name, value) for name, _, value in (word.partition("=") for word in words)]
    secrets = [value for name, value in found if is_secret_key(name, value)]
    # DATABASE_URL and the like.
    secrets += [match[1] for _, value in found for match in _URL_PASSWORD.finditer(value)]
    return [value for value in secrets if not in_place_only(value)]


def _collector(kind: str, find: Callable[[Device], Iterable[str]]) -> Collector:
    def collect(device: Device) -> Collected:
        return Collected({"values": list(dict.fromkeys(find(device)))[:_MOST]})

    return Collector(kind, collect, _DEADLINE_S)


KNOWN = (
    _collector("host", _hosts),
    _collector("ip", _addresses),
    _collector("mac", _cards),
    _collector("user", _users),
    _collector("id", _identities),
    _collector(_SPARED, _environment),
)
"""By the redactor's kinds; their documents are no members of a snapshot."""

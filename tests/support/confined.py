"""Runs a command under what a unit asks systemd to ask of the kernel: `python confined.py RULES -- COMMAND …`.

RULES is JSON: `allowed`, the names of system calls; `families`, numbers of address families; `no_jit`. It is for
machines on which systemd does not run: libseccomp makes the filters, as it does for systemd. Source of what
MemoryDenyWriteExecute= forbids: systemd.exec(5).
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import sys

_ALLOW = 0x7FFF0000
_EPERM, _EAFNOSUPPORT = 0x00050000 | 1, 0x00050000 | 97
_LT, _GT, _MASKED_EQ = 2, 6, 7
_WRITE_EXECUTE = mmap.PROT_WRITE | mmap.PROT_EXEC
_SHM_EXEC = 0o100000


class _Compare(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operation", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


class _Filter:
    def __init__(self, library: ctypes.CDLL, default: int) -> None:
        self._library = library
        library.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(default)))

    def rule(self, action: int, call: str, *compare: tuple[int, int, int, int]) -> None:
        number = self._library.seccomp_syscall_resolve_name(call.encode())
        if number < 0:
            return  # not one of this processor's
        array = (_Compare * len(compare))(*(_Compare(*each) for each in compare))
        code = self._library.seccomp_rule_add_array(
            self._context, ctypes.c_uint32(action), ctypes.c_int(number), ctypes.c_uint(len(compare)), array
        )
        if code:
            raise OSError(-code, f"rule for {call}")

    def load(self) -> None:
        if code := self._library.seccomp_load(self._context):
            raise OSError(-code, "loading a filter")


def confine(allowed: list[str], families: list[int], *, no_jit: bool) -> None:
    """Put the filters on this process; they stay on whatever it executes."""
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    forbidden = _Filter(library, _ALLOW)
    if no_jit:
        forbidden.rule(_EPERM, "mmap", (2, _MASKED_EQ, _WRITE_EXECUTE, _WRITE_EXECUTE))
        for call in ("mprotect", "pkey_mprotect"):
            forbidden.rule(_EPERM, call, (2, _MASKED_EQ, mmap.PROT_EXEC, mmap.PROT_EXEC))
        forbidden.rule(_EPERM, "shmat", (2, _MASKED_EQ, _SHM_EXEC, _SHM_EXEC))
    forbidden.rule(_EAFNOSUPPORT, "socket", (0, _LT, min(families), 0))
    forbidden.rule(_EAFNOSUPPORT, "socket", (0, _GT, max(families), 0))
    permitted = _Filter(library, _EPERM)
    for call in allowed:
        permitted.rule(_ALLOW, call)
    forbidden.load()
    permitted.load()


if __name__ == "__main__":
    rules = json.loads(sys.argv[1])
    confine(rules["allowed"], rules["families"], no_jit=rules["no_jit"])
    os.execv(sys.argv[3], sys.argv[3:])  # noqa: S606  (the command is the test's own)

"""Make the `kedge-agent` wheel from the agent that is installed beside this SDK.

A wheel is a zip with a few metadata files (PyPA, "Binary distribution format"). Made here, it needs
no build back end on the host. It is not compressed, because zlib's bytes differ between hosts: the
same agent gives the same bytes everywhere, and an unchanged one is never sent twice.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from importlib import resources
from typing import TYPE_CHECKING

from .. import __version__

if TYPE_CHECKING:
    from importlib.abc import Traversable

__all__ = ["agent_wheel"]

_EPOCH = (1980, 1, 1, 0, 0, 0)


def agent_wheel() -> tuple[str, bytes]:
    """File name and bytes of the agent's wheel."""
    info = f"kedge_agent-{__version__}.dist-info"
    files = dict(sorted(_walk(resources.files("kedge_agent"), "kedge_agent")))
    files[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: kedge-agent\nVersion: {__version__}\nRequires-Python: >=3.10\n"
        "Requires-Dist: numpy>=1.26\n"
    ).encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: kedge\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/entry_points.txt"] = b"[console_scripts]\nkedge-agent = kedge_agent.cli:main\n"
    record = "".join(f"{name},sha256={_hash(data)},{len(data)}\n" for name, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return f"kedge_agent-{__version__}-py3-none-any.whl", out.getvalue()


def _walk(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    out: list[tuple[str, bytes]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            if entry.name != "__pycache__":
                out += _walk(entry, f"{prefix}/{entry.name}")
        elif entry.name.endswith((".py", ".typed")):
            out.append((f"{prefix}/{entry.name}", entry.read_bytes()))
    return out


def _hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")

"""Fetch axe-core, which judges whether everyone can read a page, from npm's registry; neither Node nor npm is needed.

    python tools/setup/axe.py

It goes into the cache folder, once. Tests use it in Chromium; nothing of it is in a release.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import sys
import tarfile
import tempfile
import urllib.request
from pathlib import Path

from kedge.config import cache_dir

__all__ = ["VERSION", "axe_path", "fetch"]

VERSION = "4.14.1"
# As the registry states it (https://registry.npmjs.org/axe-core/4.14.1, dist.integrity).
_SHA512 = "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
_URL = f"https://registry.npmjs.org/axe-core/-/axe-core-{VERSION}.tgz"
_MAX_BYTES = 16 << 20
_TIMEOUT_S = 60


def axe_path() -> Path:
    """Where it lies, once it was fetched."""
    return cache_dir() / "axe-core" / VERSION / "axe.min.js"


def fetch() -> Path:
    """Its script, fetched where it is not there yet.

    Raises:
        OSError: the registry does not answer, or sends something else.
    """
    path = axe_path()
    if path.is_file():
        return path
    with urllib.request.urlopen(_URL, timeout=_TIMEOUT_S) as answer:
        archive: bytes = answer.read(_MAX_BYTES)
    if base64.b64encode(hashlib.sha512(archive).digest()).decode() != _SHA512:
        raise OSError(f"{_URL} is not what was pinned")
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as members:
        member = members.extractfile("package/axe.min.js")
        if member is None:
            raise OSError(f"{_URL} holds no axe.min.js")
        script = member.read()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(script)
    os.replace(file.name, path)
    return path


def main() -> int:
    try:
        print(fetch())
    except OSError as error:
        print(f"axe-core {VERSION} cannot be had: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

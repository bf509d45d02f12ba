"""Puts a file with asyncssh's SFTP, and prints the seconds that took from the connection on.

python push_asyncssh.py PORT USER KEY SOURCE TARGET
"""

from __future__ import annotations

import asyncio
import sys
import time

import asyncssh


async def put(port: str, user: str, key: str, source: str, target: str) -> float:
    begin = time.perf_counter()
    async with (
        asyncssh.connect("127.0.0.1", int(port), username=user, client_keys=[key], known_hosts=None) as connection,
        connection.start_sftp_client() as sftp,
    ):
        await sftp.put(source, target)
    return time.perf_counter() - begin


print(asyncio.run(put(*sys.argv[1:])))

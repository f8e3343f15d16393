"""`aiohttp_loop.py URLS CA_FILE`: workers on one aiohttp session read every body, store nothing, and count."""

import asyncio
import socket
import ssl
import sys
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver

WIDTH = 256


class Loopback(AbstractResolver):
    """Takes every name to 127.0.0.1, as libcurl does by itself with `*.localhost`."""

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_INET) -> list[Any]:
        """One address, without asking anybody."""
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": family, "proto": 0, "flags": 0}]

    async def close(self) -> None:
        """Nothing to close."""


async def main(urls: list[str], ca_file: str) -> int:
    """How many URLs answered 200."""
    trust = ssl.create_default_context(cafile=ca_file)
    connector = aiohttp.TCPConnector(
        limit=WIDTH, force_close=True, use_dns_cache=False, resolver=Loopback(), family=socket.AF_INET, ssl=trust
    )
    waiting, good = iter(urls), 0

    async def work(session: aiohttp.ClientSession) -> None:
        nonlocal good
        for url in waiting:
            try:
                async with session.get(url) as response:
                    await response.read()
                    good += response.status == 200
            except (aiohttp.ClientError, TimeoutError):
                continue

    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=20)) as session:
        await asyncio.gather(*(work(session) for _ in range(WIDTH)))
    return good


if __name__ == "__main__":
    print(asyncio.run(main(Path(sys.argv[1]).read_text().split(), sys.argv[2])))

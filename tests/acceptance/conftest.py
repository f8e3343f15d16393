"""Servers that the acceptance tests probe and drive, and environments of other people's programs."""

import asyncio
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import BIN, environment, run, unavailable
from urlhealth.settings import ROOT


class CountingWeb:
    """A web on loopback that answers 200, or 500, after a short while and counts the requests by path."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s
        self.requests: Counter[str] = Counter()
        #: Paths that are answered with 500.
        self.failing: set[str] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        async with server:
            await self._stop.wait()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split()[1].decode()
            self.requests[path] += 1
            await asyncio.sleep(self.delay_s)
            status = b"500 Failed" if path in self.failing else b"200 OK"
            writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
def counting_web() -> Iterator[CountingWeb]:
    web = CountingWeb(delay_s=0.02)
    yield web
    web.close()


def new_python(folder: Path) -> Path:
    """The python of a new environment in this folder, with nothing in it."""
    run(str(BIN / "uv"), "venv", "--quiet", "--python", sys.executable, str(folder / "venv"), env=environment(folder))
    return folder / "venv" / "bin" / "python"


def install_client(folder: Path) -> Path:
    """The python of a new environment with the client's wheel, and nothing else but what that needs."""
    env = environment(folder)
    build = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    run(*build, env=env, cwd=ROOT / "clients/python")
    (wheel,) = folder.glob("*.whl")
    python = new_python(folder)
    install(python, str(wheel))
    return python


def install(python: Path, *packages: str) -> None:
    """Install packages there, or end the test because they are not to be had."""
    command = (str(BIN / "uv"), "pip", "install", "--quiet", "--python", str(python), *packages)
    done = run(*command, env=environment(python.parent), check=False)
    if done.returncode:
        unavailable(f"{', '.join(packages)} cannot be installed here: {done.stderr[-300:]}")

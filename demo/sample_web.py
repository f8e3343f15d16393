"""A web to try things on: some sixty sites on loopback that behave, and misbehave, as their seed says.

    python -m demo.sample_web --seed 1

prints one line of JSON when it is ready (URLs, what each is like, the certificate to trust) and serves until it is
stopped. Its hosts end in `.localhost`, which curl and browsers take to loopback without asking any name server.
"""

import argparse
import asyncio
import json
import signal
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from demo.certificates import make_certificates
from demo.sites import Act, Kind, Site, State, sites
from urlhealth.vocabulary import Clock, system_clock

__all__ = ["Kind", "SampleWeb", "Site", "running", "sites"]

ADDRESS: Final = "127.0.0.1"
#: Size of the huge bodies; well beyond what a probe reads.
_HUGE_BYTES: Final = 1 << 30
_RESET: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True, kw_only=True)
class SampleWeb:
    """A sample web that is up."""

    seed: int
    sites: Sequence[Site]
    #: The certificates of its https sites are trusted by who trusts this.
    ca_file: Path

    def describe(self) -> dict[str, Any]:
        """What the command line prints."""
        return {
            "seed": self.seed,
            "anchor_ms": self.sites[0].anchor_ms,
            "port": self.sites[0].port,
            "tls_port": self.sites[0].tls_port,
            "ca_file": str(self.ca_file),
            "sites": [{"url": site.url, "kind": site.kind, "group": f"{site.group}.localhost"} for site in self.sites],
        }


@asynccontextmanager
async def running(
    seed: int,
    *,
    folder: Path,
    port: int = 0,
    tls_port: int = 0,
    anchor_ms: int | None = None,
    clock: Clock = system_clock,
) -> AsyncIterator[SampleWeb]:
    """Serve the sites of a seed inside the block, on the ports given (0: free ones).

    Raises:
        OSError: a port is taken.
    """
    with _listener(port) as plain, _listener(tls_port) as tls:
        made = sites(
            seed,
            anchor_ms=clock() if anchor_ms is None else anchor_ms,
            port=plain.getsockname()[1],
            tls_port=tls.getsockname()[1],
        )
        ca_file, context = make_certificates(made, folder)
        serve = partial(_serve, {site.host: site for site in made}, clock)
        async with (
            await asyncio.start_server(serve, sock=plain),
            await asyncio.start_server(serve, sock=tls, ssl=context, ssl_handshake_timeout=10),
        ):
            yield SampleWeb(seed=seed, sites=made, ca_file=ca_file)


def _listener(port: int) -> socket.socket:
    listener = socket.create_server((ADDRESS, port), backlog=1024)
    listener.setblocking(False)
    return listener


async def _serve(
    by_host: dict[str, Site], clock: Clock, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """One request a connection."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        path = head[0].split(" ")[1] if head[0].count(" ") >= 2 else "/"
        host = next((line[5:].strip() for line in head if line.lower().startswith("host:")), "")
        site = by_host.get(host.rpartition(":")[0])
        if site is None:
            await _answer(writer, State(status=404))
        else:
            await _behave(site, site.state_at(clock()), path, reader, writer)
    except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass  # The client went away, or is none.
    except asyncio.CancelledError:
        pass  # The web stops; nobody waits for this task.
    finally:
        writer.close()


async def _behave(
    site: Site, state: State, path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    match state.act:
        case Act.HANG:
            await reader.read()  # Until the client gives up.
        case Act.RESET:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
        case Act.HUGE:
            await _send_huge(writer, announced=site.name.endswith("-01"))
        case Act.DRIP:
            await _drip(writer)
        case Act.REDIRECT if (hop := _hop(path)) < state.hops:
            await asyncio.sleep(state.delay_ms / 1000)
            await _answer(writer, State(status=302), f"Location: {_next_location(site, state, hop + 1)}\r\n")
        case _:
            await asyncio.sleep(state.delay_ms / 1000)
            await _answer(writer, state)


def _hop(path: str) -> int:
    number = path.removeprefix("/hop/")
    return int(number) if number.isascii() and number.isdigit() else 0


def _next_location(site: Site, state: State, hop: int) -> str:
    if site.kind is Kind.LOOP:
        return "/"
    if hop == state.hops and site.name.endswith("-02"):
        return f"https://{site.host}:{site.tls_port}/hop/{hop}"
    return f"/hop/{hop}"


async def _answer(writer: asyncio.StreamWriter, state: State, headers: str = "") -> None:
    phrase = HTTPStatus(state.status).phrase
    headers += f"Content-Length: {state.size_bytes}\r\nConnection: close\r\n"
    writer.write(f"HTTP/1.1 {state.status} {phrase}\r\n{headers}\r\n".encode() + b"." * state.size_bytes)
    await writer.drain()


async def _send_huge(writer: asyncio.StreamWriter, *, announced: bool) -> None:
    length = f"Content-Length: {_HUGE_BYTES}\r\n" if announced else ""
    writer.write(f"HTTP/1.1 200 OK\r\n{length}Connection: close\r\n\r\n".encode())
    chunk = bytes(1 << 16)
    for _ in range(_HUGE_BYTES // len(chunk)):
        writer.write(chunk)
        await writer.drain()


async def _drip(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while not writer.transport.is_closing():
        writer.write(b".")
        await writer.drain()
        await asyncio.sleep(0.5)


async def _main(arguments: argparse.Namespace, folder: Path) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(
        arguments.seed,
        folder=folder,
        port=arguments.port,
        tls_port=arguments.tls_port,
        anchor_ms=arguments.anchor_ms,
    ) as web:
        print(json.dumps(web.describe()), flush=True)
        await stop.wait()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.sample_web", description="Serve a sample web on loopback.")
    parser.add_argument("--seed", type=int, default=0, help="what the sites are like (default 0)")
    parser.add_argument("--port", type=int, default=0, help="http port (default: a free one)")
    parser.add_argument("--tls-port", type=int, default=0, help="https port (default: a free one)")
    parser.add_argument("--anchor-ms", type=int, help="instant to which a simulated past leads (default: now)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sample-web-") as folder:
        try:
            asyncio.run(_main(arguments, Path(folder)))
        except OSError as error:
            parser.exit(1, f"the sample web cannot start: {error}\n")


if __name__ == "__main__":
    main()

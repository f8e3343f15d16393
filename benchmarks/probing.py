"""The probing engine beside a bare libcurl loop that stores nothing, on a web of the benchmark's own on loopback."""

import multiprocessing
import socket
import statistics
import time
from ipaddress import ip_network

import pycurl

from urlhealth.probing.engine import ProbeEngine
from urlhealth.probing.guard import AddressGuard
from urlhealth.probing.urls import parse_targets
from urlhealth.vocabulary import ProbeRequest

URLS = 2_000
ROUNDS = 3
WIDTH = 64


def answer(listener: socket.socket) -> None:
    """Answer every connection with a short 200."""
    while True:
        connection, _ = listener.accept()
        with connection:
            if connection.recv(65_536):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")


def bare(urls: list[str]) -> float:
    """Seconds that a plain multi loop takes."""
    multi, waiting, under_way = pycurl.CurlMulti(), list(urls), 0
    started = time.perf_counter()
    while waiting or under_way:
        while waiting and under_way < WIDTH:
            curl = pycurl.Curl()
            curl.setopt(pycurl.URL, waiting.pop())
            curl.setopt(pycurl.FRESH_CONNECT, 1)
            curl.setopt(pycurl.WRITEFUNCTION, len)
            multi.add_handle(curl)
            under_way += 1
        multi.perform()
        _, done, failed = multi.info_read()
        for curl in [*done, *(item[0] for item in failed)]:
            multi.remove_handle(curl)
            curl.close()
            under_way -= 1
        multi.select(0.01)
    return time.perf_counter() - started


def ours(urls: list[str]) -> float:
    """Seconds that the engine takes, guard on, until every result is there."""
    guard = AddressGuard([ip_network("127.0.0.0/8")])
    engine = ProbeEngine(
        user_agent="bench", concurrency=WIDTH, concurrency_per_host=WIDTH, guard=guard, worker_id="bench"
    )
    requests = [ProbeRequest(target=target) for target in parse_targets(urls)]
    started, found = time.perf_counter(), 0
    while found < len(urls):
        room = engine.capacity
        engine.submit(requests[:room])
        del requests[:room]
        found += len(engine.results(0.1))
    seconds = time.perf_counter() - started
    engine.close()
    return seconds


def main() -> None:
    """Both in turn, and the ratio of the medians."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        server = multiprocessing.get_context("fork").Process(target=answer, args=(listener,), daemon=True)
        server.start()
        urls = [f"http://127.0.0.1:{listener.getsockname()[1]}/{i}" for i in range(URLS)]
        pairs = [(bare(urls), ours(urls)) for _ in range(ROUNDS)]
        server.terminate()
    plain, own = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"{URLS} http URLs: bare loop {URLS / plain:.0f} URL/s, engine {URLS / own:.0f} URL/s, ratio {plain / own:.2f}"
    )


if __name__ == "__main__":
    main()

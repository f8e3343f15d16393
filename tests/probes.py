"""Probing engines for tests, and results in the order of the URLs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from typing import Any

from urlhealth.probing.engine import ProbeEngine
from urlhealth.probing.guard import AddressGuard
from urlhealth.probing.urls import parse_target
from urlhealth.vocabulary import ProbeOptions, ProbeRequest, ProbeResult

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
#: Timeouts and a size that are quickly exceeded.
QUICK = ProbeOptions(connect_timeout_s=0.3, timeout_s=0.6, max_bytes=100_000)


def make_engine(*, concurrency: int = 64, per_host: int = 8, allow: Any = LOOPBACK, **more: Any) -> ProbeEngine:
    return ProbeEngine(
        user_agent="urlhealth-tests/1",
        concurrency=concurrency,
        concurrency_per_host=per_host,
        guard=AddressGuard(allow),
        worker_id="tests",
        **more,
    )


@contextmanager
def running_engine(**arguments: Any) -> Iterator[ProbeEngine]:
    engine = make_engine(**arguments)
    try:
        yield engine
    finally:
        engine.close()


def probe_all(engine: ProbeEngine, urls: list[str], options: ProbeOptions = QUICK) -> list[ProbeResult]:
    """The results in the order of the URLs."""
    requests = [
        ProbeRequest(target=parse_target(url), options=options, task_id=str(place)) for place, url in enumerate(urls)
    ]
    engine.submit(requests)
    found: dict[str | None, ProbeResult] = {}
    deadline = time.monotonic() + 20
    while len(found) < len(urls):
        assert time.monotonic() < deadline, "results are missing"
        found |= {probed.request.task_id: probed.result for probed in engine.results(1.0)}
    return [found[str(place)] for place in range(len(urls))]


def probe(engine: ProbeEngine, url: str, options: ProbeOptions = QUICK) -> ProbeResult:
    return probe_all(engine, [url], options)[0]

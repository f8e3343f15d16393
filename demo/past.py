"""A past for the sample web: what probes would have found, computed from the behaviours that the server lives on."""

from collections.abc import Iterator, Sequence
from random import Random
from typing import Final

from demo.sites import DAY_MS, Act, Certificate, Site, State
from urlhealth.probing.urls import parse_target
from urlhealth.probing.verdict import judge_status
from urlhealth.vocabulary import DEFAULT_OPTIONS, Outcome, ProbeResult, Target

#: What a probe says of each act that fails; HTTP statuses speak for themselves.
_ERRORS: Final = {
    Act.HANG: "no answer after 10.0 s",
    Act.RESET: "the connection broke: Recv failure: Connection reset by peer",
    Act.HUGE: f"the body is larger than {DEFAULT_OPTIONS.max_bytes} bytes",
    Act.DRIP: "the answer was not complete after 10.0 s (20 bytes came)",
    Act.REDIRECT: "too many redirects: Maximum (10) redirects followed",
}


def past(
    sites: Sequence[Site], *, until_ms: int, days: float = 30, every_s: int = 900
) -> Iterator[tuple[Target, ProbeResult]]:
    """What probing each site every `every_s` seconds would have found in the `days` before `until_ms`, oldest first.

    The probes of the sites are spread over the interval, as a scheduler would.
    """
    targets = [parse_target(site.url) for site in sites]
    every_ms = every_s * 1000
    random = Random(sites[0].seed)
    start_ms = until_ms - int(days * DAY_MS) // every_ms * every_ms
    for turn_ms in range(start_ms, until_ms, every_ms):
        for position, (site, target) in enumerate(zip(sites, targets, strict=True)):
            ts_ms = turn_ms + position * every_ms // len(sites)
            yield target, simulate(site, target, ts_ms, random)


def simulate(site: Site, target: Target, ts_ms: int, random: Random) -> ProbeResult:
    """What a probe at `ts_ms` would have found; `random` varies its durations."""
    state = site.state_at(ts_ms)
    dns_ms, connect_ms = random.uniform(0.005, 0.05), random.lognormvariate(-1.5, 0.4)
    tls_ms = random.lognormvariate(1.2, 0.3) if site.certificate else None
    if site.certificate is Certificate.SELF_SIGNED:
        return ProbeResult(
            target=target.key,
            ts_ms=ts_ms,
            outcome=Outcome.TLS,
            dns_ms=dns_ms,
            connect_ms=connect_ms,
            total_ms=dns_ms + connect_ms + random.lognormvariate(1.2, 0.3),
            address="127.0.0.1",
            error="the certificate is not trusted: SSL certificate problem: self-signed certificate",
        )
    redirects = min(state.hops, DEFAULT_OPTIONS.max_redirects)
    answered = state.act not in (Act.HANG, Act.RESET)
    first_byte_ms = sum(state.delay_ms + random.lognormvariate(-0.3, 0.4) for _ in range(redirects + 1))
    spent_ms = dns_ms + connect_ms + (tls_ms or 0.0)
    return ProbeResult(
        target=target.key,
        ts_ms=ts_ms,
        outcome=state.outcome,
        status_code=_status(state) if answered else None,
        dns_ms=dns_ms,
        connect_ms=connect_ms,
        tls_ms=tls_ms,
        first_byte_ms=first_byte_ms if answered else None,
        total_ms=_total_ms(state, spent_ms + first_byte_ms),
        size_bytes=_size_bytes(state),
        redirects=redirects,
        address="127.0.0.1",
        http_version="1.1" if answered else None,
        cert_expires_ms=site.cert_expires_ms,
        error=_error(state),
    )


def _status(state: State) -> int:
    return 302 if state.outcome is Outcome.TOO_MANY_REDIRECTS else state.status


def _total_ms(state: State, answered_ms: float) -> float:
    return DEFAULT_OPTIONS.timeout_s * 1000 + 1 if state.outcome is Outcome.TIMEOUT else answered_ms + 0.1


def _size_bytes(state: State) -> int:
    match state.act:
        case Act.HANG | Act.RESET:
            return 0
        case Act.HUGE:
            return DEFAULT_OPTIONS.max_bytes
        case Act.DRIP:
            return 20
    return 0 if state.outcome is Outcome.TOO_MANY_REDIRECTS else state.size_bytes


def _error(state: State) -> str | None:
    match state.outcome:
        case Outcome.OK:
            return None
        case Outcome.HTTP_ERROR:
            return judge_status(state.status)[1]
    return _ERRORS[state.act]

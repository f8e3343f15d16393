"""Random probe histories, and how they may arrive."""

from dataclasses import dataclass, replace

import hypothesis.strategies as st
import numpy as np

from urlhealth.features.verdicts import Verdicts

START_MS = 1_709_164_800_000 + 17 * 60_000  # a Thursday
LATE_S = 600.0

#: (URL, host, group): two URLs share a host, three a group, one is alone.
TARGETS = (
    ("https://a.example/1", "a.example", "first"),
    ("https://a.example/2", "a.example", "first"),
    ("https://b.example/", "b.example", "first"),
    ("https://c.example/", "c.example", "second"),
)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One verdict, as a row."""

    probe_id: int
    target: str
    host: str
    group: str
    ts_ms: int
    health: int
    status_code: int = 0
    first_byte_ms: float = float("nan")
    total_ms: float = float("nan")
    cert_expires_ms: int = 0
    http_version: int = 11


def verdicts(probes: list[Probe]) -> Verdicts:
    """The probes as columns, in their order."""

    def column(name: str, dtype: object) -> np.ndarray:
        return np.array([getattr(p, name) for p in probes], dtype)

    n = len(probes)
    return Verdicts(
        **{name: column(name, object) for name in ("target", "host", "group")},
        **{name: column(name, np.int64) for name in ("probe_id", "ts_ms", "cert_expires_ms")},
        **{name: column(name, np.float32) for name in ("first_byte_ms", "total_ms")},
        **{name: np.full(n, np.nan, np.float32) for name in ("dns_ms", "connect_ms", "tls_ms")},
        health=column("health", np.int8),
        status_code=column("status_code", np.int32),
        http_version=column("http_version", np.int32),
        outcome=1 - column("health", np.int32),
        size_bytes=np.zeros(n, np.int64),
        redirects=np.zeros(n, np.int32),
    )


#: Steps between probes of all targets together: the same instant, seconds, minutes, hours, days, beyond 48 h.
_STEP_S = st.one_of(
    st.sampled_from([0, 1, 60, 3600, 86_400, 172_800]),
    st.integers(1, 900),
    st.integers(900, 90_000),
    st.integers(150_000, 400_000),
)


@st.composite
def histories(draw: st.DrawFn, *, max_size: int = 60) -> list[Probe]:
    """Probes in the order of time; no target has two at one instant. Some of one URL only, some all within hours."""
    step = draw(st.sampled_from([_STEP_S, st.integers(1, 1200)]))
    which_target = st.integers(0, draw(st.integers(0, len(TARGETS) - 1)))
    steps = draw(st.lists(st.tuples(step, which_target, st.sampled_from([1, 1, 1, 0, 0, -1])), max_size=max_size))
    now_ms, probes, seen = START_MS, [], set()
    for number, (step_s, which, health) in enumerate(steps, start=1):
        now_ms += step_s * 1000 + number % 7
        url, host, group = TARGETS[which]
        if (url, now_ms) in seen:
            continue
        seen.add((url, now_ms))
        answered = health == 1 or number % 3 == 0
        probes.append(
            Probe(
                probe_id=number * 10,
                target=url,
                host=host,
                group=group,
                ts_ms=now_ms,
                health=health,
                status_code=(200 if health == 1 else 503) if answered else 0,
                first_byte_ms=float(5 + number % 40) if answered else float("nan"),
                total_ms=float(20 + 13 * number % 500) if answered else float("nan"),
                cert_expires_ms=START_MS + 40 * 86_400_000 if answered else 0,
            )
        )
    return probes


@st.composite
def arrivals(draw: st.DrawFn, probes: list[Probe]) -> list[list[Probe]]:
    """The same probes in batches of random size, each up to LATE_S late, some of them twice (and contradicting)."""
    delayed = []
    for probe in probes:
        delayed.append((probe.ts_ms + draw(st.integers(0, int(LATE_S * 1000))), probe))
        if draw(st.integers(0, 9)) == 0:
            other = replace(
                probe, probe_id=probe.probe_id + 1, health=probe.health if probe.health < 0 else 1 - probe.health
            )
            delayed.append((probe.ts_ms + draw(st.integers(0, int(LATE_S * 1000))), other))
    arrived = [probe for _, probe in sorted(delayed, key=lambda item: item[0])]
    return draw(batches(arrived))


@st.composite
def batches(draw: st.DrawFn, probes: list[Probe]) -> list[list[Probe]]:
    """The probes in their order, cut into batches of random size."""
    cut = []
    while probes:
        size = draw(st.integers(1, len(probes)))
        cut.append(probes[:size])
        probes = probes[size:]
    return cut

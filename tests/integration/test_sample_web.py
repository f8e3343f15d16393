"""The sample web: its behaviours, the past computed from them, and that the live server keeps to both."""

import os
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import pytest

from demo.__main__ import misranked
from demo.home import own_home
from demo.past import past
from demo.programs import DemoFailed, first_line, program, run, wait_for
from demo.sample_web import SampleWeb
from demo.sites import COUNTS, DAY_MS, Certificate, Kind, Site, sites
from urlhealth.probing.engine import ProbeEngine
from urlhealth.probing.guard import AddressGuard
from urlhealth.probing.urls import parse_target
from urlhealth.settings import Settings
from urlhealth.vocabulary import Outcome, ProbeOptions, ProbeRequest, ProbeResult

ANCHOR_MS = 1_790_000_000_000
SEEDS = (1, 2, 3)
ROOT = Path(__file__).resolve().parents[2]


def of_kind(seed: int, *kinds: Kind) -> list[Site]:
    return [site for site in sites(seed, anchor_ms=ANCHOR_MS) if site.kind in kinds]


def fails(site: Site, start_ms: int, end_ms: int) -> list[bool]:
    """Whether it fails, every five minutes."""
    return [site.state_at(t_ms).outcome is not Outcome.OK for t_ms in range(start_ms, end_ms, 300_000)]


def onsets(failing: list[bool]) -> int:
    return sum(later and not earlier for earlier, later in pairwise(failing))


def test_it_has_the_sites_that_the_demo_needs() -> None:
    made = sites(7, anchor_ms=ANCHOR_MS)
    assert len(made) >= 60
    assert len({site.host for site in made}) == len(made)
    assert all(parse_target(site.url).group == f"{site.group}.localhost" for site in made)
    counts = Counter(site.kind for site in made)
    assert counts == COUNTS
    assert counts[Kind.STEADY] >= 14
    assert counts[Kind.FLAPPING] >= 12
    assert min(counts[Kind.DAILY], counts[Kind.DYING]) >= 4
    assert min(counts.values()) >= 2
    assert {site.certificate for site in made} == {None, *Certificate}


def test_a_seed_makes_the_same_web_again_and_another_one_another() -> None:
    assert sites(5, anchor_ms=ANCHOR_MS) == sites(5, anchor_ms=ANCHOR_MS)
    first, second = (fails(of_kind(seed, Kind.FLAPPING)[0], ANCHOR_MS - DAY_MS, ANCHOR_MS) for seed in (5, 6))
    assert first != second


@pytest.mark.parametrize("seed", SEEDS)
def test_steady_and_slow_sites_never_fail(seed: int) -> None:
    for site in of_kind(seed, Kind.STEADY, Kind.SLOW, Kind.EXPIRING, Kind.REDIRECT):
        assert not any(fails(site, ANCHOR_MS - 5 * DAY_MS, ANCHOR_MS + DAY_MS))
        assert (site.delay_ms >= 500) == (site.kind is Kind.SLOW)


@pytest.mark.parametrize("seed", SEEDS)
def test_flapping_sites_have_short_outages_on_each_day(seed: int) -> None:
    for site in of_kind(seed, Kind.FLAPPING):
        for day in range(-10, 2):
            failing = fails(site, ANCHOR_MS + day * DAY_MS, ANCHOR_MS + (day + 1) * DAY_MS)
            assert onsets(failing) >= 3
            assert sum(failing) < len(failing) / 2


@pytest.mark.parametrize("seed", SEEDS)
def test_daily_sites_fail_once_a_day_at_the_same_hour(seed: int) -> None:
    for site in of_kind(seed, Kind.DAILY):
        starts_ms = []
        for day in range(-14, 0):
            midnight_ms = ANCHOR_MS // DAY_MS * DAY_MS + day * DAY_MS
            failing = fails(site, midnight_ms, midnight_ms + DAY_MS)
            assert onsets(failing) == (0 if site.name == "daily-04" and (midnight_ms // DAY_MS + 3) % 7 >= 5 else 1)
            if any(failing):
                starts_ms.append(failing.index(True) * 300_000)
        assert len(starts_ms) == (10 if site.name == "daily-04" else 14)
        assert max(starts_ms) - min(starts_ms) <= 15 * 60_000


@pytest.mark.parametrize("seed", SEEDS)
def test_dying_sites_were_well_get_worse_and_end(seed: int) -> None:
    for site in of_kind(seed, Kind.DYING):
        assert not any(fails(site, ANCHOR_MS - 30 * DAY_MS, ANCHOR_MS - 12 * DAY_MS))
        earlier, later = (
            onsets(fails(site, ANCHOR_MS - (days + 3) * DAY_MS, ANCHOR_MS - days * DAY_MS)) for days in (6, 0)
        )
        assert later > earlier
        assert onsets(fails(site, ANCHOR_MS - DAY_MS, ANCHOR_MS)) >= 4
        assert all(fails(site, ANCHOR_MS + DAY_MS + 1, ANCHOR_MS + 2 * DAY_MS))


def test_the_past_is_in_order_complete_and_of_the_same_behaviours() -> None:
    made = sites(3, anchor_ms=ANCHOR_MS)
    by_url = {site.url: site for site in made}
    history = list(past(made, until_ms=ANCHOR_MS, days=1))
    times = [result.ts_ms for _, result in history]
    assert times == sorted(times)
    assert times[0] >= ANCHOR_MS - DAY_MS
    assert times[-1] < ANCHOR_MS
    assert Counter(target.url for target, _ in history) == dict.fromkeys(by_url, 96)
    assert {result.outcome for _, result in history} >= {
        Outcome.OK, Outcome.HTTP_ERROR, Outcome.TLS, Outcome.TIMEOUT, Outcome.CONNECT, Outcome.TOO_LARGE,
        Outcome.TOO_MANY_REDIRECTS,
    }  # fmt: skip
    for target, result in history:
        site = by_url[target.url]
        expected = Outcome.TLS if site.kind is Kind.SELF_SIGNED else site.state_at(result.ts_ms).outcome
        assert result.outcome is expected
        assert (result.error is None) == (result.outcome is Outcome.OK)
        parts = (result.dns_ms, result.connect_ms, result.tls_ms, result.first_byte_ms)
        assert result.total_ms is not None
        assert sum(part or 0.0 for part in parts) <= result.total_ms
    assert list(islice(past(made, until_ms=ANCHOR_MS, days=1), 200)) == history[:200]


@pytest.fixture(scope="module")
def found(sample_web: SampleWeb) -> Iterator[dict[str, ProbeResult]]:
    """One probe of each site, by its name."""
    engine = ProbeEngine(
        user_agent="urlhealth tests",
        concurrency=256,
        concurrency_per_host=8,
        guard=AddressGuard(Settings(allow_addresses="127.0.0.0/8,::1/128").allow_addresses),
        worker_id="tests",
        ca_file=sample_web.ca_file,
    )
    options = ProbeOptions(timeout_s=4.0)
    engine.submit(
        [ProbeRequest(target=parse_target(site.url), options=options, task_id=site.name) for site in sample_web.sites]
    )
    results: dict[str, ProbeResult] = {}
    while len(results) < len(sample_web.sites):
        batch = engine.results(10.0)
        assert batch
        results |= {str(probed.request.task_id): probed.result for probed in batch}
    untrusting = ProbeOptions(verify_tls=False)
    url = next(site.url for site in sample_web.sites if site.kind is Kind.SELF_SIGNED)
    engine.submit([ProbeRequest(target=parse_target(url), options=untrusting)])
    results["selfsigned, not checked"] = engine.results(10.0)[0].result
    yield results
    engine.close()


def test_the_live_web_behaves_as_its_sites_say(sample_web: SampleWeb, found: dict[str, ProbeResult]) -> None:
    for site in sample_web.sites:
        result = found[site.name]
        if site.kind is Kind.SELF_SIGNED:
            assert result.outcome is Outcome.TLS
            assert "self-signed certificate" in (result.error or "")
        else:
            # An outage may begin or end while the probe is under way.
            ended_ms = result.ts_ms + int(result.total_ms or 0) + 1
            assert result.outcome in {site.state_at(result.ts_ms).outcome, site.state_at(ended_ms).outcome}, result


def test_certificates_are_checked_unless_told_otherwise(sample_web: SampleWeb, found: dict[str, ProbeResult]) -> None:
    for site in sample_web.sites:
        result = found[site.name]
        if site.certificate is None and site.name != "redirect-02":
            assert (result.tls_ms, result.cert_expires_ms) == (None, None)
        elif site.kind in (Kind.STEADY, Kind.SLOW, Kind.EXPIRING):
            assert result.outcome is Outcome.OK
            assert result.tls_ms is not None
            assert result.tls_ms > 0
            assert result.cert_expires_ms == site.cert_expires_ms
    expiring = found["expiring-01"]
    assert expiring.cert_expires_ms is not None
    assert expiring.cert_expires_ms - expiring.ts_ms < 6 * DAY_MS
    unchecked = found["selfsigned, not checked"]
    assert unchecked.outcome is Outcome.OK
    assert unchecked.cert_expires_ms is not None
    assert unchecked.cert_expires_ms - unchecked.ts_ms > 89 * DAY_MS


def test_redirects_are_followed_to_their_end(found: dict[str, ProbeResult]) -> None:
    plain, to_tls, loop = found["redirect-01"], found["redirect-02"], found["loop-01"]
    assert plain.outcome is to_tls.outcome is Outcome.OK
    assert plain.redirects >= 2
    assert (plain.final_url or "").endswith(f"/hop/{plain.redirects}")
    assert (to_tls.final_url or "").startswith("https://redirect-02.")
    assert to_tls.cert_expires_ms is not None
    # Only one of its requests had a handshake, which libcurl's sums cannot tell.
    assert to_tls.tls_ms is None
    assert (loop.outcome, loop.redirects) == (Outcome.TOO_MANY_REDIRECTS, 10)


def test_slow_and_huge_answers(found: dict[str, ProbeResult]) -> None:
    slow = found["slow-01"]
    assert slow.first_byte_ms is not None
    assert slow.first_byte_ms > 450
    assert found["huge-01"].size_bytes == 0
    assert found["huge-02"].size_bytes >= 10 * 1024 * 1024
    assert found["hanging-01"].error == "no answer after 4.0 s"
    assert found["dripping-01"].size_bytes >= 5


def test_a_port_that_is_taken_is_said_in_one_line(sample_web: SampleWeb) -> None:
    port = str(sample_web.sites[0].port)
    done = subprocess.run(
        (sys.executable, "-m", "demo.sample_web", "--port", port), cwd=ROOT, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 1
    assert done.stderr.startswith("the sample web cannot start: ")
    assert done.stderr.count("\n") == 1


def test_a_demo_empties_no_folder_that_something_else_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("URLHEALTH_HOME", str(tmp_path))
    (tmp_path / "urlhealth.db").touch()
    with pytest.raises(DemoFailed, match="is in use: unset URLHEALTH_HOME"), own_home():
        pass
    assert (tmp_path / "urlhealth.db").exists()
    (tmp_path / "urlhealth.db").unlink()
    with own_home() as home:
        assert home == tmp_path
        (home / "urlhealth.db").touch()
        (home / "feast").mkdir()
        with pytest.raises(DemoFailed, match="a demo is running in"), own_home():
            pass
        assert (home / "urlhealth.db").exists()
    with own_home() as home:
        assert len([*home.iterdir()]) == 1


def test_a_demo_says_in_one_line_that_its_port_is_taken(tmp_path: Path, sample_web: SampleWeb) -> None:
    port = str(sample_web.sites[0].port)
    done = subprocess.run(
        (sys.executable, "-m", "demo", "--exit", "--port", port),
        env={**os.environ, "URLHEALTH_HOME": str(tmp_path / "demo")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stdout.startswith(f"the demo failed: port {port} on 127.0.0.1 is taken")
    assert not (tmp_path / "demo").exists()


def test_programs_of_the_demo_end_with_it_and_a_failed_one_shows_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    sleeper = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    with program((sys.executable, "-c", sleeper), log=log, stdout=subprocess.PIPE) as p:
        child = os.pidfd_open(int(first_line(p, log=log)))
    assert p.returncode is not None
    # A process descriptor becomes readable when the process has ended.
    assert select.select([child], [], [], 10)[0]
    os.close(child)
    failing = (sys.executable, "-c", "raise SystemExit('no such luck')")
    with program(failing, log=log) as p, pytest.raises(DemoFailed, match="no such luck"):
        wait_for(lambda: False, what="luck", limit_s=20, process=p, log=log)
    with pytest.raises(DemoFailed, match=r"wishing failed: .* exited with 1"):
        run(failing, step="wishing")


def test_the_ranking_is_checked() -> None:
    made = sites(1, anchor_ms=ANCHOR_MS)
    risks = {site.url: 0.9 if site.kind in (Kind.FLAPPING, Kind.DYING) else 0.1 for site in made}
    assert misranked(risks, made) is None
    steady = next(site for site in made if site.kind is Kind.STEADY)
    slow = next(site for site in made if site.kind is Kind.SLOW)
    assert misranked({**risks, slow.url: 0.95}, made) is None
    assert f"{steady.url} (90.00%), which is steady" in (misranked({**risks, steady.url: 0.9}, made) or "")

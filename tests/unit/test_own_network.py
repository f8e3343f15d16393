"""Whose fault it is that many hosts fail, told by a clock of the test's own."""

from collections.abc import Sequence

from urlhealth.probing.own_network import OwnNetwork
from urlhealth.probing.urls import parse_target
from urlhealth.vocabulary import Outcome, Probed, ProbeRequest, ProbeResult


def probed(site: str, outcome: Outcome = Outcome.DNS, **more: object) -> Probed:
    request = ProbeRequest(target=parse_target(f"https://{site}.example/"))
    result = ProbeResult(target=request.target.key, ts_ms=1, outcome=outcome, error="broken", **more)  # type: ignore[arg-type]
    return Probed(request=request, result=result)


def outcomes(found: Sequence[Probed]) -> list[Outcome]:
    return [item.result.outcome for item in found]


DOWN = ProbeResult(target="https://canary.example/", ts_ms=1, outcome=Outcome.DNS)
UP = ProbeResult(target="https://canary.example/", ts_ms=1, outcome=Outcome.OK, status_code=200)


def suspicious(network: OwnNetwork) -> None:
    """Three unrelated sites fail at once."""
    for site in "abc":
        assert not network.wants_canary(0.0)
        assert network.judge(probed(site), 0.0) == ()
    assert network.wants_canary(0.0)
    assert not network.wants_canary(0.0)
    assert network.next_due_s is None


def test_an_outage_of_our_own_is_called_so_until_the_canary_is_asked_again() -> None:
    network = OwnNetwork()
    suspicious(network)
    assert network.judge(probed("d", Outcome.TIMEOUT), 0.5) == ()
    assert network.judge(probed("e", Outcome.TIMEOUT, connect_ms=3.0), 0.5) != ()
    found = network.canary(DOWN, 1.0)
    assert outcomes(found) == [Outcome.SELF] * 4
    assert found[0].result.error == (
        "our own network was out: https://canary.example/ could not be reached either (broken)"
    )
    assert outcomes(network.judge(probed("f"), 2.0)) == [Outcome.SELF]
    assert network.judge(probed("g"), 6.5) == ()
    assert network.wants_canary(6.5)
    assert outcomes(network.canary(UP, 7.0)) == [Outcome.DNS]


def test_a_canary_that_answers_makes_it_the_targets_fault() -> None:
    network = OwnNetwork()
    suspicious(network)
    assert outcomes(network.canary(UP, 1.0)) == [Outcome.DNS] * 3
    assert outcomes(network.judge(probed("d"), 2.0)) == [Outcome.DNS]


def test_few_failures_among_many_answers_are_only_held_back_for_a_moment() -> None:
    network = OwnNetwork()
    for n in range(10):
        assert outcomes(network.judge(probed(f"up{n}", Outcome.HTTP_ERROR, status_code=500), 0.0)) == [
            Outcome.HTTP_ERROR
        ]
    for site in "abcd":
        assert network.judge(probed(site), 0.5) == ()
        assert not network.wants_canary(0.5)
    assert network.next_due_s == 1.5
    assert network.due(1.4) == []
    assert outcomes(network.due(1.5)) == [Outcome.DNS] * 4


def test_one_site_of_many_hosts_and_old_failures_are_not_suspicious() -> None:
    network = OwnNetwork()
    for n in range(5):
        network.judge(probed(f"host{n}.same"), 0.0)
    assert not network.wants_canary(0.0)
    network.due(1.0)
    network.judge(probed("b"), 20.0)
    network.judge(probed("c"), 40.0)
    assert not network.wants_canary(40.0)

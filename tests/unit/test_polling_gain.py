"""The gain over equal intervals: what is said of it, against what is true of simulated outages."""

from array import array

import numpy as np
import pytest

from urlhealth.polling.gain import Gain, estimated
from urlhealth.polling.hazard import LENGTH_SHARES
from urlhealth.polling.policy import HOUR_MS, AdaptivePolicy
from urlhealth.polling.replay import Series, judge, judge_uniform, outages_of, replay_adaptive

DAYS = 60
SHARES = array("f", LENGTH_SHARES)


class Counting(AdaptivePolicy):
    """A policy that counts what it found."""

    realised = Gain()

    def observe(self, target: int, t_ms: int, failing: bool | None) -> bool:
        before_h = self.hazards.seen_h[target]
        onset = super().observe(target, t_ms, failing)
        if onset:
            interval_h, uniform_h = t_ms / HOUR_MS - before_h, 1 / self.budget_per_url_hour
            shares = self.hazards.length_shares(target)
            self.realised = self.realised.found(shares, interval_h=interval_h, uniform_h=uniform_h)
        return onset


def simulated(seed: int) -> list[Series]:
    """Thirty targets with 1, 5 or 25 onsets in ten days; outages of 5 minutes, 18 minutes or 1.5 hours on average."""
    rng = np.random.default_rng(seed)
    series = []
    for number in range(30):
        rate, t_h = (0.004, 0.02, 0.1)[number % 3], 0.0
        rows = [(0, False)]
        while True:
            t_h += rng.exponential(1 / rate)
            end_h = t_h + rng.exponential(rng.choice([0.08, 0.3, 1.5]))
            if end_h > 24 * DAYS:
                break
            rows += [(round(t_h * HOUR_MS), True), (round(end_h * HOUR_MS) + 1, False)]
            t_h = end_h
        rows.append((24 * DAYS * HOUR_MS, False))
        ts_ms, failing = zip(*rows, strict=True)
        name = str(number)
        series.append(Series(url=name, group=name, ts_ms=np.array(ts_ms), failing=np.array(failing), start_ms=0))
    return series


def test_the_realised_gain_is_that_of_the_true_outages() -> None:
    series = simulated(1)
    policy = Counting(budget_per_url_hour=1.0)
    outages, probes = outages_of(series), replay_adaptive(series, policy)
    found, uniform = judge(outages, probes), judge_uniform(series, outages, 1.0)
    realised = policy.realised
    assert realised.caught == pytest.approx(found.caught.sum(), rel=0.05)
    assert realised.outages == pytest.approx(len(outages.series), rel=0.15)
    assert realised.caught_ratio == pytest.approx(found.caught.sum() / uniform.caught.sum(), rel=0.08)
    assert realised.delay_ratio == pytest.approx(found.delay_h.sum() / uniform.delay_h.sum(), rel=0.1)


def test_equal_intervals_gain_nothing() -> None:
    gain = Gain().found(SHARES, interval_h=0.5, uniform_h=0.5)
    assert (gain.caught_ratio, gain.delay_ratio) == (1.0, 1.0)
    assert gain.outages > 1  # some were missed
    assert Gain().caught_ratio is None
    policy = AdaptivePolicy(budget_per_url_hour=1.0, min_interval_s=3600, max_interval_s=3600)
    policy.start(policy.add(0), 0)
    assert estimated(policy, 0.0).caught_ratio == pytest.approx(1.0)


def test_a_shorter_interval_catches_more_sooner() -> None:
    gain = Gain().found(SHARES, interval_h=0.1, uniform_h=1.0)
    assert gain.caught_ratio is not None
    assert gain.delay_ratio is not None
    assert gain.caught_ratio > 1.5
    assert gain.delay_ratio < 0.9


def test_the_estimate_is_of_what_is_up_and_planned() -> None:
    policy = AdaptivePolicy(budget_per_url_hour=1.0)
    assert estimated(policy, 0.0) == Gain()
    for _ in range(3):
        policy.start(policy.add(0), 0)
    policy.stop(2, 0)
    for hour in range(1, 6):
        policy.observe(0, hour * HOUR_MS, True)
        policy.observe(1, hour * HOUR_MS, False)
    gain = estimated(policy, 5.0)
    assert gain.outages == pytest.approx(policy.hazards.rate(1, 5.0))
    assert 0 < gain.caught < gain.outages

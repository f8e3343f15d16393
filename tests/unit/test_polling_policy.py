"""The adaptive policy: budget, limits, fairness, and what moves it."""

import numpy as np
import pytest

from urlhealth.errors import ConfigurationError
from urlhealth.polling.policy import HOUR_MS, AdaptivePolicy
from urlhealth.vocabulary import Objective

MIN_MS, MAX_MS = 300_000, 43_200_000


def run(policy: AdaptivePolicy, targets: int, hours: float, seed: int = 0) -> list[list[int]]:
    """Instants at which each target was probed; every third flaps, the rest is up."""
    rng = np.random.default_rng(seed)
    for _ in range(targets):
        policy.start(policy.add(0), 0)
    probed: list[list[int]] = [[] for _ in range(targets)]
    while (now := policy.next_ms()) is not None and now <= hours * HOUR_MS:
        for target in policy.due(now):
            policy.observe(target, now, target % 3 == 0 and bool(rng.random() < 0.3))
            probed[target].append(now)
    policy.due(int(hours * HOUR_MS))
    return probed


@pytest.mark.parametrize("objective", Objective)
def test_the_budget_and_the_limits_are_kept_and_flapping_targets_get_more(objective: Objective) -> None:
    policy = AdaptivePolicy(budget_per_url_hour=1.0, objective=objective)
    probed = run(policy, 30, 240)
    assert policy.spent == pytest.approx(30 * 240, rel=0.01)
    gaps = np.concatenate([np.diff(times) for times in probed])
    assert gaps.min() >= MIN_MS
    assert gaps.max() <= MAX_MS
    flapping, steady = (np.mean([len(t) for i, t in enumerate(probed) if (i % 3 == 0) is f]) for f in (True, False))
    assert flapping > 3 * steady


def test_one_target_alone_gets_its_budget() -> None:
    policy = AdaptivePolicy(budget_per_url_hour=0.5)
    run(policy, 1, 400)
    assert policy.spent == pytest.approx(200, abs=2)


def test_what_was_handed_out_and_never_observed_is_due_again() -> None:
    policy = AdaptivePolicy(budget_per_url_hour=1.0)
    policy.start(policy.add(0), 0)
    first = MAX_MS
    assert policy.due(first) == [0]
    assert policy.due(first + MIN_MS - 1000) == []
    assert policy.due(first + MIN_MS) == [0]


def test_a_limit_leaves_the_rest_due() -> None:
    policy = AdaptivePolicy(budget_per_url_hour=1.0)
    for _ in range(5):
        policy.start(policy.add(0), 0)
    assert len(first := policy.due(MAX_MS, limit=2)) == 2
    rest = policy.due(MAX_MS)
    assert sorted(first + rest) == [0, 1, 2, 3, 4]


def test_a_stopped_target_is_never_due_and_an_unknown_outcome_teaches_nothing() -> None:
    policy = AdaptivePolicy(budget_per_url_hour=1.0)
    for _ in range(2):
        policy.start(policy.add(0), 0)
    policy.stop(1, 0)
    assert policy.due(MAX_MS) == [0]
    policy.observe(0, MAX_MS, None)
    assert not policy.hazards.failing(0)
    assert policy.due(2 * MAX_MS) == [0]


def test_an_outage_brings_its_group_forward() -> None:
    def wait_ms(group: str) -> int:
        policy = AdaptivePolicy(budget_per_url_hour=1.0)
        for name in ("ours", group):
            target = policy.add(0, group=name)
            policy.hazards.learn(target, [24.0 * day for day in range(30)], [False] * 30, 720.0)
            policy.start(target, 720 * HOUR_MS)
        policy.observe(1, 720 * HOUR_MS, False)
        policy.observe(0, 720 * HOUR_MS + MIN_MS, True)
        return policy._due_ms[1]

    assert wait_ms("ours") < wait_ms("others")


def test_a_heavier_target_is_probed_more() -> None:
    policy = AdaptivePolicy(budget_per_url_hour=1.0)
    for weight in (1.0, 10.0):
        policy.start(policy.add(0, weight=weight), 0)
    assert policy._planned[1] > 2 * policy._planned[0]


@pytest.mark.parametrize(
    ("budget", "low_s", "high_s"), [(20.0, 300, 43_200), (0.01, 300, 43_200), (1.0, 600, 300), (float("nan"), 300, 600)]
)
def test_a_budget_that_the_limits_cannot_spend_is_refused(budget: float, low_s: float, high_s: float) -> None:
    with pytest.raises(ConfigurationError):
        AdaptivePolicy(budget_per_url_hour=budget, min_interval_s=low_s, max_interval_s=high_s)

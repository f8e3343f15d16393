"""Estimates from probes that miss outages, held against a simulated truth."""

import numpy as np
import pytest

from urlhealth.polling.hazard import Hazards

RATE, LENGTH_H = 0.1, 0.3


def simulated(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Begins and ends of outages: exponential up-times and lengths."""
    up_h = rng.exponential(1 / RATE, 4_000)
    down_h = rng.exponential(LENGTH_H, 4_000)
    ends = np.cumsum(up_h + down_h)
    return ends - down_h, ends


@pytest.mark.parametrize(("interval_h", "hours"), [(1 / 12, 3_000), (0.5, 6_000), (3.0, 20_000)])
def test_the_rate_does_not_depend_on_how_often_the_target_was_probed(interval_h: float, hours: int) -> None:
    begins, ends = simulated(np.random.default_rng(1))
    hazards = Hazards()
    target = hazards.add(0.0)
    seen = 0
    for t_h in np.arange(interval_h, hours, interval_h):
        at = np.searchsorted(begins, t_h, side="right") - 1
        seen += hazards.observe(target, float(t_h), bool(at >= 0 and t_h < ends[at]))
    # The longest memory alone; the whole chain says what is the case just now.
    estimate = hazards._onsets[0] / hazards._exposures[0]
    if interval_h < 1:
        assert estimate == pytest.approx(RATE, rel=0.3)
    else:  # Nine of ten outages are missed: the rest hardly tells their lengths.
        assert seen / hours < 0.12 * RATE
        assert 0.5 * RATE < estimate < 1.5 * RATE


def test_a_complete_past_is_counted_as_it_stands() -> None:
    hazards = Hazards()
    target = hazards.add(0.0)
    hazards.learn(target, [0.0, 10.0, 10.5, 20.5, 21.0], [False, True, False, True, False], 31.0)
    assert hazards._onsets[0] == 2
    assert hazards._exposures[0] == pytest.approx(30.0)
    assert not hazards.failing(target)


def test_a_burst_shows_at_once_and_fades() -> None:
    hazards = Hazards()
    target = hazards.add(0.0)
    hazards.learn(target, [24.0 * day for day in range(60)], [False] * 60, 1440.0)
    quiet = hazards.rate(target, 1440.0)
    for minute in range(0, 60, 10):
        hazards.observe(target, 1440.0 + minute / 60, minute % 20 == 0)
    assert hazards.rate(target, 1441.0) > 20 * quiet
    assert hazards.rate(target, 1441.0) > 3 * hazards.rate(target, 1441.0 + 72)


def test_a_gap_in_a_past_teaches_nothing_beyond_what_is_known() -> None:
    hazards = Hazards()
    target = hazards.add(0.0)
    hazards.learn(target, [0.0, 1000.0], [False, False], 1000.0)
    assert hazards._exposures[0] == pytest.approx(48.0)


def test_a_target_that_relapses_unseen_is_expected_to_do_so_again() -> None:
    hazards = Hazards()
    steady, relapsing = hazards.add(0.0), hazards.add(0.0)
    times = [0.0, *(day * 24.0 + minute / 60 for day in range(1, 30) for minute in (0, 6))]
    hazards.learn(relapsing, times, [True] + [False, True] * 29, 720.0)
    hazards.learn(steady, times, [True] * len(times), 720.0)
    assert hazards.relapse_rate(relapsing) == pytest.approx(1 / 24, rel=0.3)
    assert hazards.relapse_rate(steady) < 0.002


def test_what_is_dumped_is_restored_and_other_forms_are_refused() -> None:
    hazards = Hazards()
    for _ in range(3):
        hazards.add(0.0)
    rng = np.random.default_rng(0)
    for hour in range(1, 60):
        hazards.observe(1, hour / 2, bool(rng.random() < 0.3))
    dumped = hazards.dump(1)
    assert len(dumped) < 150
    assert hazards.restore(2, dumped)
    assert hazards.dump(2) == dumped
    assert hazards.rate(2, 40.0) == hazards.rate(1, 40.0)
    assert hazards.length_shares(2) == hazards.length_shares(1)
    for target in (1, 2):
        hazards.observe(target, 41.0, True)
    assert hazards.dump(2) == hazards.dump(1)
    assert hazards.all_rates(45.0) == pytest.approx([hazards.rate(target, 45.0) for target in range(3)])
    assert hazards.all_failing().tolist() == [False, True, True]
    before = hazards.dump(0)
    for other in (b"", dumped[:-1], bytes([99]) + dumped[1:]):
        assert not hazards.restore(0, other)
    assert hazards.dump(0) == before

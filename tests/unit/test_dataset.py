import numpy as np
import pytest

from models.dataset import AHEAD_MS, WARM_UP_MS, Dataset, History, instants
from models.labels import HOUR_MS
from models.training import split

START_MS = 1_700_000_000_000


def history(*lives_h: tuple[float, float]) -> History:
    """Targets that were probed at the first and the last hour of their lives."""
    n = len(lives_h)
    return History(
        url=np.array([f"https://{i}.example/" for i in range(n)], dtype=object),
        host=np.array([f"{i}.example" for i in range(n)], dtype=object),
        group=np.array(["example"] * n, dtype=object),
        target=np.repeat(np.arange(n), 2),
        ts_ms=START_MS + np.round(np.array(lives_h) * HOUR_MS).astype(np.int64).ravel(),
        health=np.ones(2 * n, dtype=np.int8),
    )


def test_instants_are_hourly_between_the_warm_up_and_the_end() -> None:
    target, t_ms = instants(history((0, 300), (100, 200)), max_rows=10_000, rng=np.random.default_rng(0))
    assert (np.diff(t_ms) >= 0).all()
    for number, birth_h, death_h in ((0, 0, 300 - 24), (1, 100, 200)):
        own = t_ms[target == number]
        assert own.min() >= START_MS + birth_h * HOUR_MS + WARM_UP_MS
        assert own.max() <= START_MS + death_h * HOUR_MS
        assert len(own) == pytest.approx(death_h - birth_h - 24, abs=1)
        assert len(np.unique(own // HOUR_MS)) == len(own)
    assert t_ms.max() <= START_MS + 300 * HOUR_MS - AHEAD_MS
    assert len(np.unique(t_ms % HOUR_MS)) > 200


def test_too_many_rows_lose_whole_instants_chosen_by_the_seed() -> None:
    lives = history(*[(0, 500)] * 10)
    target, t_ms = instants(lives, max_rows=1_000, rng=np.random.default_rng(0))
    assert 900 < len(target) <= 1_000
    assert (np.unique(t_ms, return_counts=True)[1] == 10).all()
    again = instants(lives, max_rows=1_000, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(t_ms, again[1])
    assert not np.array_equal(t_ms, instants(lives, max_rows=1_000, rng=np.random.default_rng(1))[1])


def test_a_target_that_was_seen_once_has_no_instants() -> None:
    target, _ = instants(history((0, 300), (50, 50)), max_rows=10_000, rng=np.random.default_rng(0))
    assert set(target) == {0}


def test_no_label_of_the_older_part_reaches_the_newer() -> None:
    t_ms = START_MS + np.arange(0, 480) * HOUR_MS
    n = len(t_ms)
    rows = Dataset(
        X=np.zeros((n, 1), np.float32),
        Y=np.zeros((n, 6)),
        failing=np.zeros(n),
        t_ms=t_ms,
        target=np.array(["u"] * n, dtype=object),
        group=np.array(["g"] * n, dtype=object),
    )
    learn, test, test_from_ms = split(rows)
    assert learn.t_ms.max() + 24 * HOUR_MS <= test_from_ms < test.t_ms.min()
    assert len(test) == pytest.approx(0.2 * n, abs=1)
    assert learn.fingerprint() != test.fingerprint()
    assert learn.fingerprint() == rows.take(np.arange(len(learn))).fingerprint()

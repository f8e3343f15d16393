"""Measures of drift, against values worked by hand and against SciPy."""

import math

import numpy as np
import pytest
from scipy.stats import ks_2samp

from urlhealth.features.catalog import VECTOR
from urlhealth.features.drift import bin_edges, compare, ks, psi

NAN = math.nan


def test_psi_worked_by_hand() -> None:
    """The lower five tenths of 1..100 hold twice as much as before, the upper five nothing (counted as 0.0001)."""
    reference, current = np.arange(1.0, 101.0), np.tile(np.arange(1.0, 51.0), 2)
    by_hand = 5 * (0.2 - 0.1) * math.log(2) + 5 * (0.0001 - 0.1) * math.log(0.0001 / 0.1)
    assert psi(reference, current) == pytest.approx(by_hand, abs=1e-12)
    assert by_hand == pytest.approx(3.797, abs=1e-3)
    assert psi(reference, reference[::-1]) == 0


@pytest.mark.parametrize("common", [0.0, 1.0])
def test_a_feature_of_two_values_has_a_bin_for_each(common: float) -> None:
    """From 95 : 5 to 80 : 20, whichever of them is the common one."""
    reference = np.array([common] * 95 + [1 - common] * 5)
    current = np.array([common] * 80 + [1 - common] * 20)
    by_hand = (0.80 - 0.95) * math.log(0.80 / 0.95) + (0.20 - 0.05) * math.log(0.20 / 0.05)
    assert psi(reference, current) == pytest.approx(by_hand, abs=1e-12)


def test_a_common_value_amid_others_has_a_bin_of_its_own() -> None:
    reference = np.array([-1.0] * 4 + [0.0] * 92 + [1.0] * 4)
    moved = np.array([-1.0] * 14 + [0.0] * 82 + [1.0] * 4)
    by_hand = 0.1 * math.log(0.14 / 0.04) - 0.1 * math.log(0.82 / 0.92)
    assert psi(reference, moved) == pytest.approx(by_hand, abs=1e-12)


def test_missing_values_are_a_bin() -> None:
    reference, current = np.array([5.0] * 8 + [NAN] * 2), np.array([5.0] * 4 + [NAN] * 6)
    by_hand = (0.4 - 0.8) * math.log(0.4 / 0.8) + (0.6 - 0.2) * math.log(0.6 / 0.2)
    assert psi(reference, current) == pytest.approx(by_hand, abs=1e-12)
    assert ks(reference, current) == 0
    assert bin_edges(np.array([NAN])).size == 0
    assert psi(np.array([NAN]), np.array([NAN])) == 0
    assert math.isnan(ks(np.array([NAN]), np.array([1.0])))


def test_ks_worked_by_hand_and_by_scipy() -> None:
    """Three of four values of one side are below all of the other."""
    assert ks(np.array([1.0, 2.0, 3.0, 9.0]), np.array([8.0, 9.0])) == 0.75
    rng = np.random.default_rng(0)
    was, now = rng.normal(size=300).round(1), rng.normal(0.3, 2, size=170).round(1)
    assert ks(was, now) == pytest.approx(ks_2samp(was, now).statistic, abs=1e-12)


def test_the_feature_that_moved_most_comes_first() -> None:
    rng = np.random.default_rng(1)
    reference, current = rng.normal(size=(2, 500, 3)).astype(np.float32)
    current[:, 1] += 2
    current[:100, 2] = np.nan
    found = compare(reference, current, names=("a", "b", "c"))
    assert (found.rows_reference, found.rows_current) == (500, 500)
    assert [feature.feature for feature in found.features] == ["b", "c", "a"]
    assert found.largest_psi == found.features[0].psi > 1
    assert (found.features[1].missing_reference, found.features[1].missing_current) == (0, 0.2)
    whole = np.zeros((2, len(VECTOR)), np.float32)
    assert [feature.psi for feature in compare(whole, whole).features] == [0] * len(VECTOR)

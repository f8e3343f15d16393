from pathlib import Path

import numpy as np
import pytest

from models.evaluation import binary_metrics, evaluate, mean_log_loss, plot, reliability
from urlhealth.vocabulary import PROBABILITIES


def test_figures_of_a_worked_example() -> None:
    figures = binary_metrics(np.array([0.9, 0.8, 0.3, 0.1]), np.array([1.0, 0.0, 1.0, 0.0]))
    assert figures.rows == 4
    assert figures.base_rate == 0.5
    assert figures.brier == pytest.approx((0.01 + 0.64 + 0.49 + 0.01) / 4)
    assert figures.log_loss == pytest.approx(-np.log([0.9, 0.2, 0.3, 0.9]).mean())
    assert figures.roc_auc == pytest.approx(3 / 4)
    assert figures.average_precision == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_calibration_error_is_the_mean_distance_over_bins() -> None:
    p = np.repeat([0.1, 0.5], 100)
    y = np.concatenate([np.arange(100) < 10, np.arange(100) < 80]).astype(float)
    predicted, observed, share = reliability(p, y)
    np.testing.assert_allclose(predicted, [0.1, 0.5])
    np.testing.assert_allclose(observed, [0.1, 0.8])
    np.testing.assert_allclose(share, [0.5, 0.5])
    assert binary_metrics(p, y).ece == pytest.approx(0.15)


def test_one_class_and_no_rows_leave_figures_out() -> None:
    alone = binary_metrics(np.array([0.1, 0.2]), np.array([0.0, 0.0])).figures()
    assert "average_precision" not in alone
    assert alone["brier"] == pytest.approx(0.025)
    assert binary_metrics(np.zeros(0), np.zeros(0)).figures() == {"rows": 0}


def test_onsets_count_only_where_the_target_is_up() -> None:
    Y = np.array([[0.0] * 6, [1.0] * 6, [1.0] * 6, [np.nan] * 6])
    figures = evaluate(np.full((4, 6), 0.5), Y, failing=np.array([0.0, 0.0, 1.0, 0.0]))
    assert [figures[output].rows for output in PROBABILITIES] == [2, 2, 2, 3, 3, 3]
    assert mean_log_loss(figures) == pytest.approx(np.log(2))


def test_plots_are_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Y = (rng.random((200, 6)) < 0.3).astype(float)
    P = np.clip(Y * 0.3 + rng.random((200, 6)) * 0.5, 0, 1)
    Y[:, 5] = 0.0
    plot(tmp_path, {"model": P}, Y, np.zeros(200), feature_names=["a", "b"], importance=np.array([1.0, 2.0]))
    for name in ("precision_recall", "roc", "reliability", "importance"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")

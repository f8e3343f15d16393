import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skops.io
import yaml
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from urlhealth.errors import ModelMismatch
from urlhealth.features.catalog import VECTOR
from urlhealth.features.columns import names
from urlhealth.prediction.champion import BUNDLED_FILE, load_bundled
from urlhealth.prediction.estimators import Forest, HealthForecaster, LogitMean
from urlhealth.prediction.model_files import TRUSTED_TYPES, load_forecaster
from urlhealth.vocabulary import PROBABILITIES

FEATURES = list(names(VECTOR))
STATE = FEATURES.index("failing_now")
K = len(FEATURES)


def sample(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors with gaps, and labels that depend on features 1 and 2 and on the state, some unknown."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, K)).astype(np.float32)
    X[rng.random((n, K)) < 0.1] = np.nan
    X[:, STATE] = rng.random(n) < 0.15
    risk = np.nan_to_num(X[:, STATE + 1]) + 2 * (np.nan_to_num(X[:, STATE + 2]) > 0.5) - 4
    wait_h = rng.exponential(1 / np.exp(risk))
    onset = np.stack([(wait_h < hours) | (X[:, STATE] == 1) for hours in (1, 6, 24)], axis=1)
    at_end = onset & (rng.random((n, 3)) < 0.5)
    Y = np.concatenate([onset, at_end], axis=1).astype(np.float64)
    Y[rng.random(Y.shape) < 0.05] = np.nan
    return X, Y


def fit(X: np.ndarray, Y: np.ndarray, **options: object) -> HealthForecaster:
    return HealthForecaster(state_feature="failing_now", **options).fit(X, Y, feature_names=FEATURES)


@pytest.fixture(scope="module")
def model() -> HealthForecaster:
    return fit(*sample(8_000, seed=1))


def logit(p: np.ndarray) -> np.ndarray:
    return np.log(p / (1 - p))


def test_answers_are_probabilities_and_consistent(model: HealthForecaster) -> None:
    X, _ = sample(2_000, seed=2)
    P = model.predict_proba(X * 10)
    assert P.shape == (2_000, len(PROBABILITIES))
    assert P.dtype == np.float64
    assert ((P >= 0) & (P <= 1)).all()
    assert (np.diff(P[:, :3], axis=1) >= 0).all()
    assert (P[:, 3:] <= P[:, :3]).all()


def test_it_learns_what_the_labels_depend_on(model: HealthForecaster) -> None:
    X, Y = sample(4_000, seed=3)
    P = model.predict_proba(X)
    for j, output in enumerate(PROBABILITIES):
        rows = ~np.isnan(Y[:, j]) & (X[:, STATE] == 0)
        assert roc_auc_score(Y[rows, j], P[rows, j]) > (0.7 if output.startswith("onset") else 0.6)
        assert P[rows, j].mean() == pytest.approx(Y[rows, j].mean(), rel=0.2)


def test_of_a_failing_target_every_onset_is_certain(model: HealthForecaster) -> None:
    X, _ = sample(500, seed=4)
    P = model.predict_proba(X)
    failing = X[:, STATE] == 1
    assert (P[failing, :3] == 1).all()
    assert (P[~failing, :3] < 1).all()
    assert P[failing, 5].mean() == pytest.approx(0.5, abs=0.1)


def test_what_is_not_known_or_not_finite_gets_an_answer(model: HealthForecaster) -> None:
    nothing = np.full((1, K), np.nan)
    assert np.isfinite(model.predict_proba(nothing)).all()
    infinite = np.where(np.arange(K) % 2, np.inf, -np.inf)[None]
    infinite[:, STATE] = 0
    blank = np.where(np.isinf(infinite), np.nan, infinite)
    np.testing.assert_array_equal(model.predict_proba(infinite), model.predict_proba(blank))
    assert model.predict_proba(np.zeros((0, K))).shape == (0, 6)


def test_a_feature_that_training_never_knew_counts_for_nothing() -> None:
    X, Y = sample(2_000, seed=17)
    X[:, STATE + 3] = np.nan
    model = fit(X, Y)
    known = np.where(np.arange(K) == STATE + 3, 5.0, X)
    np.testing.assert_array_equal(model.predict_proba(known), model.predict_proba(X))


def test_one_row_at_a_time_gives_what_all_together_give(model: HealthForecaster) -> None:
    X, _ = sample(1_100, seed=5)
    together = model.predict_proba(X)
    for i in (0, 511, 512, 1_099):
        np.testing.assert_allclose(model.predict_proba(X[i : i + 1]), together[i : i + 1], rtol=1e-12)


def test_trees_answer_as_scikit_learn_does() -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier

    X, Y = sample(4_000, seed=6)
    X = X.astype(np.float64)
    with threadpool_limits(1):
        boosted = HistGradientBoostingClassifier(max_iter=30, random_state=0).fit(X, np.nan_to_num(Y[:, 2]))
    forest = Forest.of(boosted)
    fresh = sample(1_500, seed=7)[0].astype(np.float64)
    np.testing.assert_allclose(forest.logits(fresh), boosted.decision_function(fresh), rtol=1e-9, atol=1e-12)
    assert forest.reference == pytest.approx(boosted.decision_function(X).mean())


@pytest.mark.parametrize("output", PROBABILITIES)
def test_contributions_add_up_to_the_log_odds(model: HealthForecaster, output: str) -> None:
    X, _ = sample(600, seed=8)
    failing = X[:, STATE] == 1
    contributions = model.contributions(X, output)
    assert contributions.shape == X.shape
    total = contributions.sum(axis=1) + model.reference(output)
    np.testing.assert_allclose(total[~failing], model.if_up_[output].logits(model._rows(X[~failing])[0]), atol=1e-9)
    if output.startswith("onset"):
        assert (np.argmax(contributions[failing], axis=1) == STATE).all()
    else:
        P = model.predict_proba(X)[:, PROBABILITIES.index(output)]
        np.testing.assert_allclose(total[failing], logit(P[failing]), atol=1e-6)


def test_contributions_name_the_features_that_matter(model: HealthForecaster) -> None:
    X, _ = sample(2_000, seed=9)
    importance = np.abs(model.contributions(X[X[:, STATE] == 0], "onset_24h")).mean(axis=0)
    assert set(np.argsort(-importance)[:2]) == {STATE + 1, STATE + 2}


def test_an_output_of_one_class_is_a_constant_close_to_it() -> None:
    X, Y = sample(1_000, seed=10)
    Y[:, 0] = np.where(X[:, STATE] == 1, 1.0, 0.0)
    model = fit(X, Y)
    P = model.predict_proba(X[X[:, STATE] == 0])
    assert np.ptp(P[:, 0]) == 0
    assert 0 < P[0, 0] < 0.001
    assert (model.contributions(X[X[:, STATE] == 0], "onset_1h") == 0).all()


def test_without_any_row_of_a_state_an_answer_is_even_odds() -> None:
    X, Y = sample(500, seed=11)
    up = X[:, STATE] == 0
    P = fit(X[up], Y[up]).predict_proba(X[~up])
    np.testing.assert_allclose(P[:, 3:], 0.5)


def test_a_baseline_may_use_few_features_or_none() -> None:
    X, Y = sample(2_000, seed=12)
    up = X[:, STATE] == 0
    state_alone = fit(X, Y, use=(), boosted=False).predict_proba(X[up])
    assert np.ptp(state_alone, axis=0).max() == 0
    known = up & ~np.isnan(Y[:, 2])
    assert state_alone[0, 2] == pytest.approx(Y[known, 2].mean(), abs=0.01)
    one = fit(X, Y, use=(FEATURES[STATE + 1],), boosted=False)
    moved = np.flatnonzero(np.abs(one.contributions(X[up], "onset_24h")).sum(axis=0))
    assert moved.tolist() == [STATE + 1]
    with pytest.raises(ValueError):
        fit(X, Y, use=("no such feature",))


def test_values_beyond_those_of_training_count_as_the_outermost_seen() -> None:
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, size=(500, 1))
    part = LogitMean(ridge=0.003, boosted=False).fit(X, (rng.random(500) < (X[:, 0] + 1) / 2).astype(float))
    np.testing.assert_allclose(part.logits(np.array([[1e9]])), part.logits(np.array([[X.max()]])))


def test_the_same_seed_makes_the_same_model() -> None:
    X, Y = sample(2_000, seed=13)
    np.testing.assert_array_equal(fit(X, Y, seed=3).predict_proba(X), fit(X, Y, seed=3).predict_proba(X))


def test_a_frame_must_have_the_columns_of_training(model: HealthForecaster) -> None:
    X, _ = sample(5, seed=14)
    frame = pd.DataFrame(X, columns=FEATURES)
    np.testing.assert_array_equal(model.predict_proba(frame), model.predict_proba(X))
    with pytest.raises(ModelMismatch, match="another order"):
        model.predict_proba(frame[FEATURES[::-1]])
    with pytest.raises(ModelMismatch, match=f"missing now: {FEATURES[3]}; new to it: oddity"):
        model.predict_proba(frame.rename(columns={FEATURES[3]: "oddity"}))
    with pytest.raises(ModelMismatch, match=f"rows of {K} features"):
        model.predict_proba(X[:, 1:])


def save(model: object, folder: Path, serialization: str = "skops", proposed: list[str] | None = None) -> Path:
    """A model folder as MLflow writes it, as far as loading reads it."""
    folder.mkdir()
    skops.io.dump(model, folder / "model.skops")
    flavor = {
        "pickled_model": "model.skops",
        "serialization_format": serialization,
        "skops_trusted_types": proposed or [],
    }
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": {"sklearn": flavor}}))
    return folder


def test_a_saved_model_holds_only_pinned_types_and_answers_alike(model: HealthForecaster, tmp_path: Path) -> None:
    folder = save(model, tmp_path / "model")
    assert set(skops.io.get_untrusted_types(file=folder / "model.skops")) <= set(TRUSTED_TYPES)
    X, _ = sample(300, seed=15)
    loaded = load_forecaster(folder)
    np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))
    np.testing.assert_array_equal(loaded.contributions(X, "onset_6h"), model.contributions(X, "onset_6h"))


def test_other_types_are_refused_even_where_the_folder_proposes_to_trust_them(tmp_path: Path) -> None:
    folder = save(shutil.rmtree, tmp_path / "model", proposed=["shutil.rmtree"])
    with pytest.raises(ModelMismatch, match=r"shutil\.rmtree"):
        load_forecaster(folder)


def test_what_is_no_forecaster_of_these_features_is_refused(model: HealthForecaster, tmp_path: Path) -> None:
    with pytest.raises(ModelMismatch, match="no MLflow folder"):
        load_forecaster(tmp_path / "nothing")
    with pytest.raises(ModelMismatch, match="only skops is loaded"):
        load_forecaster(save(model, tmp_path / "cloudpickle", serialization="cloudpickle"))
    with pytest.raises(ModelMismatch, match="holds a dict"):
        load_forecaster(save({}, tmp_path / "dict"))
    broken = save(model, tmp_path / "broken")
    (broken / "model.skops").write_bytes(b"no archive")
    with pytest.raises(ModelMismatch, match="cannot be loaded"):
        load_forecaster(broken)
    X, Y = sample(300, seed=16)
    older = HealthForecaster(state_feature="failing_now").fit(X[:, :-1], Y, feature_names=FEATURES[:-1])
    with pytest.raises(ModelMismatch, match=f"new to it: {FEATURES[-1]}.*urlhealth train"):
        load_forecaster(save(older, tmp_path / "older"))


def test_a_curved_feature_counts_as_it_is_and_exponentiated() -> None:
    rng = np.random.default_rng(4)
    X = np.log(rng.uniform(0.01, 1, size=(4_000, 2)))
    y = (rng.random(4_000) < np.exp(X[:, 0]) ** 2).astype(float)
    plain, curved = (LogitMean(ridge=1.0, curved=curved, boosted=False).fit(X, y) for curved in ((), (0,)))
    assert roc_auc_score(y, curved.logits(X)) >= roc_auc_score(y, plain.logits(X)) - 1e-3
    parts = curved.contributions(X)
    assert parts.shape == X.shape
    np.testing.assert_allclose(parts.sum(axis=1) + curved.reference, curved.logits(X), rtol=1e-9)
    assert np.abs(parts[:, 0]).mean() > 5 * np.abs(parts[:, 1]).mean()


def test_products_tell_what_features_do_together_and_are_shared_between_them() -> None:
    rng = np.random.default_rng(6)
    X = rng.normal(size=(6_000, 3))
    y = (rng.random(6_000) < 1 / (1 + np.exp(-2 * X[:, 0] * X[:, 1]))).astype(float)
    plain, both = (LogitMean(ridge=1.0, multiplied=some, boosted=False).fit(X, y) for some in ((), (0, 1)))
    assert roc_auc_score(y, plain.logits(X)) < 0.6 < 0.75 < roc_auc_score(y, both.logits(X))
    parts = both.contributions(X)
    np.testing.assert_allclose(parts.sum(axis=1) + both.reference, both.logits(X), rtol=1e-9, atol=1e-12)
    assert np.corrcoef(parts[:, 0], parts[:, 1])[0, 1] > 0.9
    assert np.abs(parts[:, 2]).mean() < 0.1


def test_a_row_of_weight_two_counts_as_two_rows() -> None:
    X, Y = sample(1_500, seed=21)
    weight = np.where(np.arange(len(X)) % 3 == 0, 2.0, 1.0)
    often = np.repeat(np.arange(len(X)), weight.astype(int))
    options = {"state_feature": "failing_now", "boosted": False, "use": FEATURES[STATE + 1 : STATE + 3]}
    weighted = HealthForecaster(**options).fit(X, Y, feature_names=FEATURES, weight=weight)
    repeated = HealthForecaster(**options).fit(X[often], Y[often], feature_names=FEATURES)
    # Only the scaling, which is by rows, differs.
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), atol=0.02)


def test_the_bundled_model_fits_this_version() -> None:
    forecaster = load_bundled()
    assert forecaster.feature_names_in_.tolist() == FEATURES
    assert BUNDLED_FILE.stat().st_size < 1_000_000

"""What the registered model is made of. Imported only where a model is fitted or loaded, for it imports scikit-learn.

scikit-learn does the fitting; what is kept of it is plain NumPy arrays. So a saved model holds no type but the classes
of this module (`model_files.py`); a crafted file can at worst give wrong numbers or an exception, where one with
scikit-learn's own trees can crash the process; and one row is scored in a sixth of the time that
`HistGradientBoostingClassifier.predict_proba` takes.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator

from urlhealth.errors import ModelMismatch
from urlhealth.vocabulary import HORIZONS_H, PROBABILITIES

Floats = npt.NDArray[np.float64]

#: `C` of the logistic regressions, in the order of `PROBABILITIES`: the less, the closer to the base rate. Rows an hour
#: apart tell little new, so it is far less than for independent ones, and the less the longer the horizon. See
#: docs/model-card.md.
RIDGE: Final = (0.003, 0.0003, 0.0001, 0.003, 0.0003, 0.0003)

#: Weight of the logistic regression beside the trees.
LINEAR_SHARE: Final = 0.85

#: Standard deviations from the mean beyond which a feature counts no more in products.
_FAR: Final = 3.0
#: Probabilities are kept this far from 0 and 1 where their log-odds are needed.
_TINY = 1e-6
#: Rows up to which one thread fits.
_FEW_ROWS = 50_000
#: Rows scored together: small enough for the cache.
_CHUNK = 64
#: Leaves of a tree up to which a byte can say which of them are left.
_BYTE: Final = 8


class Forest:
    """Boosted trees in flat arrays: node `i` sends a row to `child[2 i + 1]` if its value is at most the threshold.

    Leaves are their own children, so that all rows can take the same number of steps in all trees.
    """

    def __init__(
        self,
        *,
        root: npt.NDArray[np.int32],
        feature: npt.NDArray[np.int32],
        threshold: Floats,
        missing_left: npt.NDArray[np.bool_],
        child: npt.NDArray[np.int32],
        value: Floats,
        depth: int,
        base: float,
    ) -> None:
        """`value`: of a leaf, what it adds to the log-odds; of an inner node, the mean over its training rows."""
        self.root, self.feature, self.threshold, self.missing_left = root, feature, threshold, missing_left
        self.child, self.value, self.depth, self.base = child, value, depth, base

    @classmethod
    def of(cls, boosted: Any) -> "Forest":
        """The trees of a fitted, binary `HistGradientBoostingClassifier` without categorical features."""
        trees = [predictors[0].nodes for predictors in boosted._predictors]
        sizes = [len(tree) for tree in trees]
        root = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        nodes = np.concatenate(trees)
        start, own = np.repeat(root, sizes), np.arange(len(nodes))
        leaf = nodes["is_leaf"].astype(bool)
        left = np.where(leaf, own, nodes["left"] + start)
        right = np.where(leaf, own, nodes["right"] + start)
        value, count = nodes["value"].copy(), nodes["count"].astype(np.float64)
        for i in own[~leaf][::-1]:  # Children stand after their parents.
            both = [left[i], right[i]]
            value[i] = np.average(value[both], weights=count[both])
        return cls(
            root=root.astype(np.int32),
            feature=nodes["feature_idx"].astype(np.int32),
            threshold=nodes["num_threshold"].copy(),
            missing_left=nodes["missing_go_to_left"].astype(bool),
            child=np.stack([right, left], axis=1).reshape(-1).astype(np.int32),
            value=value,
            depth=int(nodes["depth"].max()),
            base=float(np.ravel(boosted._baseline_prediction)[0]),
        )

    @property
    def reference(self) -> float:
        """Mean log-odds over the training rows."""
        return self.base + float(self.value[self.root].sum())

    @classmethod
    def of_all(cls, forests: "Sequence[Forest]") -> "Forest":
        """The trees of several forests, one after the other, without what these start from."""
        first = np.cumsum([0, *(len(forest.value) for forest in forests)])
        return cls(
            root=np.concatenate([forest.root + start for forest, start in zip(forests, first, strict=False)]),
            feature=np.concatenate([forest.feature for forest in forests]),
            threshold=np.concatenate([forest.threshold for forest in forests]),
            missing_left=np.concatenate([forest.missing_left for forest in forests]),
            child=np.concatenate([forest.child + start for forest, start in zip(forests, first, strict=False)]),
            value=np.concatenate([forest.value for forest in forests]),
            depth=max(forest.depth for forest in forests),
            base=0.0,
        )

    def logits(self, X: Floats) -> Floats:
        """Log-odds, shape (n,)."""
        logits: Floats = self.sums(X, [0])[0] + self.base
        return logits

    def sums(self, X: Floats, starts: Sequence[int]) -> Floats:
        """Of each run of trees, which begin at `starts`, the sums of a row's leaves: shape (len(starts), n)."""
        chunks = [
            np.add.reduceat(self._leaf_values(X[start : start + _CHUNK]), starts, axis=0)
            for start in range(0, len(X), _CHUNK)
        ]
        return np.concatenate(chunks, axis=1) if chunks else np.zeros((len(starts), 0))

    def contributions(self, X: Floats) -> Floats:
        """What each feature's splits on a row's paths moved its log-odds from the reference, shape of X.

        Path attribution (A. Saabas, 2014): a split's feature gets the difference of the node means below and above it.
        """
        out = np.zeros(X.shape)
        for start in range(0, len(X), _CHUNK):
            part = X[start : start + _CHUNK]
            first = np.arange(len(part))[:, None] * X.shape[1]
            moved = np.zeros(part.size)
            node = self._roots(part)
            for _ in range(self.depth):
                below = self._step(part, node)
                change = self.value[below] - self.value[node]
                moved += np.bincount((first + self.feature[node]).ravel(), change.ravel(), minlength=part.size)
                node = below
            out[start : start + _CHUNK] = moved.reshape(part.shape)
        return out

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_splits"}

    @cached_property
    def _splits(self) -> tuple[npt.NDArray[Any], ...] | None:
        """The trees as tables for :meth:`_leaf_values`, or None where a tree has more than 8 leaves.

        Slot by slot (s slots, t trees): the row of the values that are looked at, the threshold, and the byte in which
        the leaves left of the split are 0; then, (t, 256), the value of the first leaf that is still there.
        """
        trees = []
        for root in self.root.tolist():
            splits: list[tuple[int, int]] = []
            leaves = self._leaves(root, 0, splits)
            trees.append((splits, leaves))
        if max((len(leaves) for _, leaves in trees), default=0) > _BYTE:
            return None
        slots, columns = max(len(splits) for splits, _ in trees), int(self.feature.max()) + 1
        row = np.zeros((slots, len(trees)), np.intp)
        threshold = np.full((slots, len(trees)), np.inf)  # Nothing lies to the right of a slot that is not used.
        mask = np.full((slots, len(trees)), 0xFF, np.uint8)
        first = np.zeros((len(trees), 256))
        lowest = [(byte & -byte).bit_length() - 1 for byte in range(256)]
        for t, (splits, leaves) in enumerate(trees):
            for slot, (node, left) in enumerate(splits):
                row[slot, t] = self.feature[node] + (0 if self.missing_left[node] else columns)
                # A split of what is there from what is missing has no finite threshold; missing is infinite here.
                threshold[slot, t] = min(self.threshold[node], np.finfo(np.float64).max)
                mask[slot, t] = 0xFF & ~left
            first[t, 1:] = [self.value[leaves[bit]] if bit < len(leaves) else 0.0 for bit in lowest[1:]]
        return np.array(columns), row.ravel(), threshold.reshape(-1, 1), mask.reshape(-1, 1), first

    def _leaves(self, node: int, before: int, splits: list[tuple[int, int]]) -> list[int]:
        """The leaves below a node from left to right; notes each split with a bit for each leaf on its left side."""
        left, right = self.child[2 * node + 1], self.child[2 * node]
        if left == node:
            return [node]
        on_left = self._leaves(int(left), before, splits)
        splits.append((node, ((1 << len(on_left)) - 1) << before))
        return on_left + self._leaves(int(right), before + len(on_left), splits)

    def _leaf_values(self, X: Floats) -> Floats:
        """Of some rows, what the leaf of each tree adds: (trees, n). It is the first left by all splits.

        QuickScorer (C. Lucchese et al., 2015): all splits are looked at, with neither branches nor steps that wait for
        each other, in a third of the time that walking takes.
        """
        if self._splits is None:
            return self._walked(X)
        columns, row, threshold, mask, first = self._splits
        used = X.T[: int(columns)]
        missing = np.isnan(used)
        values = np.concatenate([np.where(missing, -np.inf, used), np.where(missing, np.inf, used)])
        to_the_right = (values[row] > threshold).view(np.uint8)
        kept = (mask | (to_the_right - np.uint8(1))).reshape(-1, len(first), len(X))
        left = np.bitwise_and.reduce(kept, axis=0)
        found: Floats = first[np.arange(len(first))[:, None], left]
        return found

    def _walked(self, X: Floats) -> Floats:
        node = self._roots(X)
        for _ in range(self.depth):
            node = self._step(X, node)
        found: Floats = self.value[node].T
        return found

    def _roots(self, X: Floats) -> npt.NDArray[np.int32]:
        return np.broadcast_to(self.root, (len(X), len(self.root)))

    def _step(self, X: Floats, node: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        values = X.ravel()[np.arange(len(X))[:, None] * X.shape[1] + self.feature[node]]
        goes_left = (values <= self.threshold[node]) | (np.isnan(values) & self.missing_left[node])
        below: npt.NDArray[np.int32] = self.child[2 * node + goes_left]
        return below


class LogitMean(BaseEstimator):
    """One probability: weighted mean of the log-odds of a logistic regression and of boosted trees.

    The logistic regression takes values beyond those of training for the outermost seen, and missing ones for the mean.
    Some features it sees exponentiated as well (of a logarithm, what it is of), and some multiplied with each other.
    Without both classes in training it is a constant; with few rows of either there are no trees.
    """

    def __init__(
        self,
        *,
        ridge: float,
        curved: Sequence[int] = (),
        multiplied: Sequence[int] = (),
        boosted: bool = True,
        seed: int = 0,
    ) -> None:
        """
        Args:
            ridge: `C` of the logistic regression, for weights of mean 1.
            curved: columns that the logistic regression sees exponentiated as well.
            multiplied: columns of which it sees all products of two, and the squares.
        """
        self.ridge = ridge
        self.curved = curved
        self.multiplied = multiplied
        self.boosted = boosted
        self.seed = seed

    #: Rows of the rarer class below which trees only learn them by heart: rows of one outage are much alike.
    FEWEST_FOR_TREES: Final = 500

    def fit(self, X: Floats, y: Floats, weight: Floats | None = None) -> "LogitMean":
        """X: (n, k), NaN where missing; y: (n,) of 0 and 1; weight: (n,), None is 1 each. n and k may be 0."""
        from threadpoolctl import threadpool_limits

        weight = np.ones(len(y)) if weight is None else weight
        k = X.shape[1]
        self.curved_ = np.asarray(self.curved, dtype=np.int64)
        first, second = np.triu_indices(len(self.multiplied))
        multiplied = np.asarray(self.multiplied, dtype=np.int64)
        self.first_, self.second_ = multiplied[first], multiplied[second]
        wide = k + len(self.curved_) + len(first)
        self.low_, self.high_, self.center_, self.spread_ = np.zeros(k), np.zeros(k), np.zeros(k), np.ones(k)
        self.mean_, self.scale_, self.coef_ = np.zeros(wide), np.ones(wide), np.zeros(wide)
        self.forest_: Forest | None = None
        rate = (float(weight @ y) + 0.5) / (float(weight.sum()) + 1)
        self.intercept_ = float(np.log(rate / (1 - rate)))
        rarer = min(y.sum(), len(y) - y.sum())
        if rarer == 0 or k == 0:
            return self
        # Threads of OpenMP and BLAS wait for each other at every step: on few rows, and on a busy machine, one is far
        # quicker (8 times, for 3,000 rows at a load of 18 on 2 cores).
        with threadpool_limits(limits=1 if len(X) < _FEW_ROWS else None):
            self._fit_linear(X, y, weight)
            if self.boosted and rarer >= self.FEWEST_FOR_TREES:
                self._fit_trees(X, y, weight)
        return self

    def _fit_linear(self, X: Floats, y: Floats, weight: Floats) -> None:
        from sklearn.linear_model import LogisticRegression

        seen = ~np.isnan(X).all(axis=0)
        self.low_[seen], self.high_[seen] = np.nanmin(X[:, seen], axis=0), np.nanmax(X[:, seen], axis=0)
        self.center_[seen], self.spread_[seen] = _center_and_spread(X[:, seen])
        wide = self._widened(X)
        seen = ~np.isnan(wide).all(axis=0)
        self.mean_[seen], self.scale_[seen] = _center_and_spread(wide[:, seen])
        linear = LogisticRegression(C=self.ridge, solver="newton-cholesky", max_iter=1_000)
        linear.fit(self._standardised(X), y, sample_weight=weight)
        self.coef_, self.intercept_ = linear.coef_[0].copy(), float(linear.intercept_[0])

    def _fit_trees(self, X: Floats, y: Floats, weight: Floats) -> None:
        from sklearn.ensemble import HistGradientBoostingClassifier

        boosted = HistGradientBoostingClassifier(
            learning_rate=0.1,
            max_iter=80,
            max_leaf_nodes=6,
            max_features=0.3,
            min_samples_leaf=300,
            l2_regularization=20.0,
            early_stopping=False,
            random_state=self.seed,
        )
        # scikit-learn 1.9 cannot bin a column without any value; a constant one is never split on.
        X = np.where(np.isnan(X).all(axis=0), 0.0, X)
        boosted.fit(X, y, sample_weight=weight)
        self.forest_ = Forest.of(boosted)

    @property
    def reference(self) -> float:
        """Log-odds that contributions start from: at the training means (linear), the training mean (trees)."""
        return self.intercept_ if self.forest_ is None else float(_mixed(self.intercept_, self.forest_.reference))

    def logits(self, X: Floats) -> Floats:
        """Log-odds, shape (n,)."""
        linear: Floats = self._standardised(X) @ self.coef_ + self.intercept_
        return linear if self.forest_ is None else _mixed(linear, self.forest_.logits(X))

    def contributions(self, X: Floats) -> Floats:
        """Shape of X; a row's sum and `reference` are its log-odds. By terms in the linear part, by paths in trees.

        A product is put down to its two features in equal parts.
        """
        terms: Floats = self._standardised(X) * self.coef_
        curved, products = X.shape[1] + np.array([0, len(self.curved_)])
        linear = terms[:, :curved].copy()
        linear[:, self.curved_] += terms[:, curved:products]
        for columns in (self.first_, self.second_):
            np.add.at(linear.T, columns, terms[:, products:].T / 2)
        return linear if self.forest_ is None else _mixed(linear, self.forest_.contributions(X))

    def _widened(self, X: Floats) -> Floats:
        """The columns, within what training saw, the exponentials of the curved ones, and the products."""
        X = np.clip(X, self.low_, self.high_)
        z = np.clip((X - self.center_) / self.spread_, -_FAR, _FAR)
        return np.concatenate([X, np.exp(X[:, self.curved_]), z[:, self.first_] * z[:, self.second_]], axis=1)

    def _standardised(self, X: Floats) -> Floats:
        wide = self._widened(X)
        standardised: Floats = np.where(np.isnan(wide), 0.0, (wide - self.mean_) / self.scale_)
        return standardised


def _center_and_spread(X: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of the columns; 1 for one that is constant."""
    spread = np.nanstd(X, axis=0)
    return np.nanmean(X, axis=0), np.where(spread > 1e-12, spread, 1.0)


def _mixed(linear: Any, trees: Any) -> Any:
    return LINEAR_SHARE * linear + (1 - LINEAR_SHARE) * trees


class _Together:
    """Fitted `LogitMean`s of the same columns: their log-odds at once, which differ from each one's in rounding only.

    Of one row, the number of calls is what takes time. The exponential of a value within limits is one within theirs,
    so curved columns are columns like others; and the products make a quadratic form. What is missing counts
    as the mean, as it does in `LogitMean`.
    """

    def __init__(self, parts: Sequence[LogitMean]) -> None:
        columns = parts[0].low_.size + len(parts[0].curved_)
        self._curved = parts[0].curved_
        self._low, self._high = (
            np.array([np.append(limit, np.exp(limit[self._curved])) for limit in limits])[:, None]
            for limits in ([part.low_ for part in parts], [part.high_ for part in parts])
        )
        self._mean = np.array([part.mean_[:columns] for part in parts])[:, None]
        self._slope = np.array([part.coef_[:columns] / part.scale_[:columns] for part in parts])[..., None]
        self._intercept = np.array([[part.intercept_] for part in parts])
        #: Numbers of the parts with products, and with trees.
        self._products = [i for i, part in enumerate(parts) if len(part.first_)]
        self._boosted = [i for i, part in enumerate(parts) if part.forest_ is not None]
        if self._products:
            some = [parts[i] for i in self._products]
            self._multiplied = np.unique(some[0].first_)
            self._center, self._spread = (
                np.array([getattr(part, name)[self._multiplied] for part in some])[:, None]
                for name in ("center_", "spread_")
            )
            shape = (len(some), len(self._multiplied), len(self._multiplied))
            self._square, self._mean_square = np.zeros(shape), np.zeros(shape)
            first, second = (np.searchsorted(self._multiplied, each) for each in (some[0].first_, some[0].second_))
            for k, part in enumerate(some):
                slope = part.coef_[columns:] / part.scale_[columns:]
                self._square[k, first, second] = slope
                self._mean_square[k, first, second] = slope * part.mean_[columns:]
        forests = [part.forest_ for part in parts if part.forest_ is not None]
        if forests:
            self._forest = Forest.of_all(forests)
            self._starts = np.cumsum([0, *(len(forest.root) for forest in forests[:-1])]).tolist()
            self._base = np.array([[forest.base] for forest in forests])

    def logits(self, X: Floats) -> Floats:
        """Log-odds, shape (parts, n)."""
        wide = np.concatenate([X, np.exp(X[:, self._curved])], axis=1)
        within = np.minimum(np.maximum(wide, self._low), self._high)
        moved = np.where(np.isnan(wide), 0.0, within - self._mean)
        logits: Floats = (moved @ self._slope)[..., 0] + self._intercept
        if self._products:
            z = (within[self._products][..., self._multiplied] - self._center) / self._spread
            there = ~np.isnan(X[:, self._multiplied]) * 1.0
            z = np.where(there, np.clip(z, -_FAR, _FAR), 0.0)
            for each, matrix, sign in ((z, self._square, 1), (there, self._mean_square, -1)):
                logits[self._products] += sign * ((each @ matrix) * each).sum(axis=-1)
        if self._boosted:
            trees = self._forest.sums(X, self._starts) + self._base
            logits[self._boosted] = _mixed(logits[self._boosted], trees)
        return logits


class HealthForecaster(BaseEstimator):
    """All probabilities of :data:`urlhealth.vocabulary.PROBABILITIES` for each row, in one call.

    A target that is up and one that is failing have models of their own. Of one that is failing, every onset is 1, as
    labels have it. The answers are consistent: a longer horizon's onset is not less likely than a shorter one's, and
    failing at the end not likelier than being seen failing by then.
    """

    def __init__(
        self,
        *,
        state_feature: str,
        use: Sequence[str] | None = None,
        curved: Sequence[str] = (),
        multiplied: Sequence[str] = (),
        ridge: Sequence[float] = RIDGE,
        boosted: bool = True,
        seed: int = 0,
    ) -> None:
        """
        Args:
            state_feature: the feature that is 1 for a target that is failing now, and 0 for one that is up.
            use: the features to learn from beside the state; None is all.
            curved: those of them that the logistic regressions see exponentiated as well.
            multiplied: those of which the onsets' logistic regressions see all products of two.
            ridge: `C` of the logistic regressions by output; see :data:`RIDGE`.
            boosted: whether the onsets' models have trees (for the state at the end they have not helped).
            seed: of the trees.
        """
        self.state_feature = state_feature
        self.use = use
        self.curved = curved
        self.multiplied = multiplied
        self.ridge = ridge
        self.boosted = boosted
        self.seed = seed

    def fit(
        self, X: Any, Y: Floats, *, feature_names: Sequence[str] | None = None, weight: Floats | None = None
    ) -> "HealthForecaster":
        """Fit to the rows whose labels are known, output by output.

        Args:
            X: (n, k); NaN where a feature is not known. An array, or a DataFrame with the features' names.
            Y: (n, 6) in the order of `PROBABILITIES`: 0, 1, or NaN where not known.
            feature_names: of the columns of an array.
            weight: (n,), how many rows each stands for; None is 1 each.
        """
        columns = X.columns if hasattr(X, "columns") else feature_names
        if columns is None:
            raise ValueError("the columns of X have no names: pass feature_names")
        self.feature_names_in_ = np.array([str(name) for name in columns])
        self.n_features_in_ = len(self.feature_names_in_)
        self.output_names_ = np.array(PROBABILITIES)
        features = self.feature_names_in_.tolist()
        self.state_column_ = features.index(self.state_feature)
        used = features if self.use is None else self.use
        self.used_columns_ = np.array([features.index(name) for name in used], dtype=np.int64)
        curved, multiplied = (
            [j for j, name in enumerate(used) if name in wanted] for wanted in (set(self.curved), set(self.multiplied))
        )
        X, failing = self._rows(X)
        weight = np.ones(len(X)) if weight is None else weight
        self.if_up_: dict[str, LogitMean] = {}
        self.if_failing_: dict[str, LogitMean] = {}
        for j, output in enumerate(PROBABILITIES):
            known = ~np.isnan(Y[:, j])
            onset = output.startswith("onset")
            for parts, rows in ((self.if_up_, known & ~failing), (self.if_failing_, known & failing)):
                if onset and parts is self.if_failing_:
                    continue
                part = LogitMean(
                    ridge=self.ridge[j],
                    curved=curved,
                    multiplied=multiplied if onset else (),
                    boosted=self.boosted and onset,
                    seed=self.seed,
                )
                parts[output] = part.fit(X[rows], Y[rows, j], weight[rows])
        return self

    @property
    def learnt(self) -> frozenset[str]:
        """The features that it learnt from, beside the state now."""
        return frozenset(self.feature_names_in_[self.used_columns_].tolist())

    def predict_proba(self, X: Any) -> Floats:
        """Probabilities, float64 (n, 6) in the order of `PROBABILITIES`.

        Raises:
            ModelMismatch: the columns are not those of training.
        """
        X, failing = self._rows(X)
        P = np.ones((len(X), len(PROBABILITIES)))
        for (columns, together), wanted in zip(self._together, (~failing, failing), strict=True):
            rows = np.flatnonzero(wanted)
            for some in np.split(rows, range(_CHUNK, len(rows), _CHUNK)) if len(rows) else ():
                P[some[:, None], columns] = probability_of(together.logits(X[some])).T
        horizons = len(HORIZONS_H)
        P[:, :horizons] = np.maximum.accumulate(P[:, :horizons], axis=1)
        P[:, horizons:] = np.minimum(P[:, horizons:], P[:, :horizons])
        return P

    @cached_property
    def _together(self) -> list[tuple[list[int], _Together]]:
        """What scores a target that is up, and one that is failing: which outputs, and their models."""
        return [
            ([PROBABILITIES.index(output) for output in parts], _Together(list(parts.values())))
            for parts in (self.if_up_, self.if_failing_)
        ]

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_together"}

    def reference(self, output: str) -> float:
        """Log-odds that the contributions to an output start from: those of an average target that is up."""
        return float(self.if_up_[output].reference)

    def contributions(self, X: Any, output: str) -> Floats:
        """By how much each feature moved an output's log-odds, float64 (n, k).

        A row's sum and `reference(output)` are the log-odds of its probability, before answers are made consistent with
        each other. The logistic half is exact; the trees' half is by paths (see `Forest.contributions`). That a target
        is failing rather than up is put down to the state feature.
        """
        X, failing = self._rows(X)
        up = self.if_up_[output]
        out = np.zeros((len(X), self.n_features_in_))
        out[np.ix_(~failing, self.used_columns_)] = up.contributions(X[~failing])
        part = self.if_failing_.get(output)
        if part is not None:
            out[np.ix_(failing, self.used_columns_)] = part.contributions(X[failing])
        after = np.log((1 - _TINY) / _TINY) if part is None else part.reference
        out[failing, self.state_column_] += after - up.reference
        return out

    def _rows(self, X: Any) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """The used columns as float64, infinities as NaN; and which rows are failing."""
        if hasattr(X, "columns"):
            given = [str(name) for name in X.columns]
            if given != self.feature_names_in_.tolist():
                raise ModelMismatch(difference(self.feature_names_in_.tolist(), given))
        values = np.asarray(X, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != self.n_features_in_:
            raise ModelMismatch(f"the model takes rows of {self.n_features_in_} features, not shape {values.shape}")
        values = np.where(np.isfinite(values), values, np.nan)
        return values[:, self.used_columns_], values[:, self.state_column_] > 0.5


def probability_of(logits: Floats) -> Floats:
    """The probabilities with these log-odds."""
    return 0.5 * (1 + np.tanh(0.5 * logits))


def difference(trained: list[str], given: list[str]) -> str:
    """In words, how the features of a model differ from those that there are."""
    if sorted(trained) == sorted(given):
        return "the model was trained with the same features in another order"
    missing = ", ".join(name for name in trained if name not in given) or "none"
    unknown = ", ".join(name for name in given if name not in trained) or "none"
    return f"the model was trained with other features (missing now: {missing}; new to it: {unknown})"

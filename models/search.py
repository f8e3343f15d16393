"""Which of a few candidates to train: by how well each forecasts owners that it did not learn from.

All of it happens inside the part that is learnt from. The first candidate, the recipe, is kept unless another one is
better beyond noise: so a search on little history changes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from models.dataset import Dataset
from models.evaluation import Floats, counted, log_loss, loss_difference
from models.recipe import CANDIDATES, candidate, rows_to_fit
from urlhealth.features.catalog import VECTOR
from urlhealth.features.columns import names
from urlhealth.vocabulary import PROBABILITIES

#: Candidates tried unless it is said how many: the recipe alone, which was found on the histories of many owners. Each
#: further one costs several fits.
BUDGET: Final = 1
FOLDS: Final = 3
#: Rows that a search looks at: bounds its time.
ROWS: Final = 30_000


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search came to."""

    name: str
    #: Mean log loss out of fold by candidate tried; empty where there was no search.
    losses: dict[str, float] = field(default_factory=dict)


def search(learn: Dataset, *, budget: int, seed: int, report: Callable[[str], Any]) -> Found:
    """The best of the first `budget` of `recipe.CANDIDATES`, by cross-validation with whole groups left out.

    With fewer than three groups whole targets are left out; with fewer than three of these, nothing is searched.
    """
    tried = list(CANDIDATES)[:budget]
    owner = next((ids for ids in (learn.group, learn.target) if len(set(ids)) >= FOLDS), None)
    if len(tried) < 2 or owner is None:
        return Found(name=tried[0])
    rows, weight = rows_to_fit(learn, seed=seed)
    whole = len(rows)
    if whole > ROWS:
        some = np.sort(np.random.default_rng(seed).choice(whole, ROWS, replace=False))
        rows, weight = rows.take(some), None if weight is None else weight[some]
    P = {name: _out_of_fold(name, rows, weight, seed=seed, whole=whole) for name in tried}
    cluster = rows.group if owner is learn.group else rows.target
    best = tried[0]
    for name in tried[1:]:
        rng = np.random.default_rng(0)
        gain, low, _ = loss_difference(P[name], P[best], rows.Y, rows.failing, cluster, rng, weight=weight)
        report(f'candidate "{name}": mean log loss lower than of "{best}" by {gain:.6f} (5 %: {low:.6f})')
        if low > 0:
            best = name
    return Found(name=best, losses={name: _loss(p, rows, weight) for name, p in P.items()})


def _out_of_fold(name: str, rows: Dataset, weight: Floats | None, *, seed: int, whole: int) -> Floats:
    from sklearn.model_selection import GroupKFold

    P = np.full(rows.Y.shape, np.nan)
    owner = rows.group if len(set(rows.group)) >= FOLDS else rows.target
    for learn, test in GroupKFold(FOLDS).split(rows.X, groups=np.unique(owner.astype(str), return_inverse=True)[1]):
        # Regularised as the model will be that is fitted to all rows.
        model = candidate(name, seed=seed, ridge_times=whole / len(learn))
        known = None if weight is None else weight[learn]
        P[test] = model.fit(rows.X[learn], rows.Y[learn], feature_names=names(VECTOR), weight=known).predict_proba(
            rows.X[test]
        )
    return P


def _loss(P: Floats, rows: Dataset, weight: Floats | None) -> float:
    losses = []
    for j, output in enumerate(PROBABILITIES):
        known = counted(output, rows.Y, rows.failing)
        if known.any():
            w = None if weight is None else weight[known]
            losses.append(float(np.average(log_loss(P[known, j], rows.Y[known, j]), weights=w)))
    return float(np.mean(losses))

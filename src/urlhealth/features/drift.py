"""How far the distribution of each feature has moved from one set of vectors to another. Pure.

Two measures stand beside the shares of missing values. PSI, the population stability index, tells how much, in which
ratio, the share of each bin of the feature has changed; the bins are tenths of the reference, and one more for missing
values. By custom less than 0.1 is no change, and more than 0.25 a large one. KS is the largest distance between the two
cumulative distributions of what is not missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from urlhealth.features.catalog import VECTOR
from urlhealth.features.columns import names as names_of

Vectors = npt.NDArray[np.float32]
Values = npt.NDArray[np.float32] | npt.NDArray[np.float64]

#: PSI from which a change is large, by custom (Siddiqi, see :func:`psi`).
LARGE_PSI: Final = 0.25
_BINS: Final = 10
#: A share of nothing counts as this much, so that the logarithm is finite.
_LEAST_SHARE: Final = 1e-4


@dataclass(frozen=True, kw_only=True)
class FeatureDrift:
    """What became of one feature."""

    feature: str
    #: Population stability index, 0 or more.
    psi: float
    #: Kolmogorov-Smirnov distance, 0 to 1; NaN where all values of one side are missing.
    ks: float
    #: Shares of the vectors in which the feature is not known.
    missing_reference: float
    missing_current: float
    #: Upper edges of the bins, which are k; a last bin, the (k + 1)th, is beyond.
    bin_edges: tuple[float, ...]
    #: Shares of the vectors in these k + 1 bins.
    shares_reference: tuple[float, ...]
    shares_current: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Drift:
    """What became of all features, from the reference to the current vectors."""

    #: Vectors on either side.
    rows_reference: int
    rows_current: int
    #: By falling PSI.
    features: tuple[FeatureDrift, ...]

    @property
    def largest_psi(self) -> float:
        """PSI of the feature that has moved most."""
        return self.features[0].psi


def compare(reference: Vectors, current: Vectors, *, names: Sequence[str] | None = None) -> Drift:
    """Compare two sets of vectors, feature by feature.

    Args:
        reference, current: float32, shape (n, len(names)) and (m, len(names)), NaN where a feature is not known; each
            at least one row.
        names: of the features; by default those of `VECTOR`.
    """
    features = [_compared(*each) for each in zip(names or names_of(VECTOR), reference.T, current.T, strict=True)]
    features.sort(key=lambda feature: -feature.psi)
    return Drift(rows_reference=len(reference), rows_current=len(current), features=tuple(features))


def psi(reference: Values, current: Values) -> float:
    """Population stability index: the sum over bins of (q - p) ln(q / p), p and q being the shares of each side.

    Source: N. Siddiqi, Credit Risk Scorecards (Wiley 2006), "system stability report"; it is the Jeffreys divergence of
    the two histograms. A share below 0.0001 counts as 0.0001.

    Args:
        reference, current: shape (n,) and (m,), not empty; NaN is a bin of its own.
    """
    edges = bin_edges(reference)
    p, q = (np.maximum(_shares(values, edges), _LEAST_SHARE) for values in (reference, current))
    return float(np.sum((q - p) * np.log(q / p)))


def ks(reference: Values, current: Values) -> float:
    """Kolmogorov-Smirnov distance: the largest difference of the two cumulative distributions; NaN if one is empty.

    Source: N. Smirnov, Table for estimating the goodness of fit of empirical distributions (Ann. Math. Stat. 1948).
    """
    was, now = (np.sort(values[~np.isnan(values)]) for values in (reference, current))
    if not (len(was) and len(now)):
        return float("nan")
    both = np.concatenate((was, now))
    below = [np.searchsorted(values, both, side="right") / len(values) for values in (was, now)]
    return float(np.abs(below[0] - below[1]).max())


def bin_edges(reference: Values) -> npt.NDArray[np.float64]:
    """Upper edges of the bins: tenths of the reference. A value that fills a tenth and more has a bin of its own."""
    known = np.asarray(reference[~np.isnan(reference)], np.float64)
    if not len(known):
        return np.zeros(0)
    tenths = np.quantile(known, np.arange(1, _BINS) / _BINS, method="inverted_cdf")
    repeated = tenths[1:][np.diff(tenths) == 0]
    return np.unique(np.concatenate((tenths, np.nextafter(repeated, -np.inf))))


def _compared(name: str, reference: Vectors, current: Vectors) -> FeatureDrift:
    edges = bin_edges(reference)
    was, now = _shares(reference, edges).tolist(), _shares(current, edges).tolist()
    return FeatureDrift(
        feature=name,
        psi=psi(reference, current),
        ks=ks(reference, current),
        missing_reference=was[-1],
        missing_current=now[-1],
        bin_edges=tuple(edges.tolist()),
        shares_reference=tuple(was[:-1]),
        shares_current=tuple(now[:-1]),
    )


def _shares(values: Values, edges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Share of the values in each bin (from an edge, excluded, to the next, included), and of those missing."""
    missing = np.isnan(values)
    counts = np.bincount(np.searchsorted(edges, values[~missing].astype(np.float64)), minlength=len(edges) + 1)
    return np.append(counts, missing.sum()) / len(values)

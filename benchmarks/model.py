"""The model on owners that it never saw, beside the eight-feature logistic regression and plain rules.

    python -m benchmarks.model --data FILE

FILE has the columns `repo, url, ts, status, code, response_ms` (see docs/model-card.md for how to make one). Five folds
by `crc32(owner) % 5`, the owner being `repo` before `/`; every full hour of every series; figures are pooled out of
fold, and compared within the same folds with a bootstrap by owner. Once with the owner given as `group`, once withheld.
"""

import argparse
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from benchmarks.baselines import EIGHT, eight, logistic
from models import tables
from models.backtest import predict
from models.dataset import Dataset, History, Vectors, labelled, whole_grid
from models.evaluation import average_precision, counted, ranked, reliability
from models.recipe import fitted
from models.replay import replay
from urlhealth.settings import ROOT
from urlhealth.vocabulary import PROBABILITIES

Floats = npt.NDArray[np.float64]

KNOWN_FOR_S = 48 * 3600.0
FOLDS = 5
RESAMPLES = 100
CACHE = ROOT / "var" / "bench"
#: History known of a URL, in ms, in the test of those hardly known.
FIRST_DAY_MS = 24 * 3_600_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """All rows of one way of giving the groups, with what the folds and the baselines need."""

    rows: Dataset
    eight: Floats
    #: By row: the owner's number, and its fold.
    owner: npt.NDArray[np.int64]
    fold: npt.NDArray[np.int64]
    #: How long the URL was known at the instant.
    known_ms: npt.NDArray[np.int64]


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--groups", choices=("given", "withheld", "both"), default="both")
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    options = parser.parse_args(arguments)
    for group in ("given", "withheld") if options.groups == "both" else (options.groups,):
        print(f"\n== group {group}", flush=True)
        grid = load(options.data, group=group)
        began = monotonic()
        P, Q = out_of_fold(grid)
        print(f"{len(grid.rows):,} rows of {grid.owner.max() + 1} owners; five folds in {monotonic() - began:.0f} s")
        report(grid, P, Q, resamples=options.resamples)


def load(data: Path, *, group: str) -> Grid:
    """The rows, from the cache if this code made them from this data before."""
    from urlhealth.features.catalog import STATE_VIEWS, VECTOR

    stamp = zlib.crc32(data.read_bytes() + repr((group, STATE_VIEWS, VECTOR)).encode())
    cache = CACHE / f"grid-{stamp:08x}.npz"
    if not cache.exists():
        _build(data, group, cache)
    with np.load(cache, allow_pickle=True) as saved:
        arrays = {name: saved[name] for name in saved.files}
    rows = Dataset(**{name: arrays.pop(name) for name in ("X", "Y", "failing", "t_ms", "target", "group")})
    return Grid(rows=rows, **arrays)


def _build(data: Path, group: str, cache: Path) -> None:
    frame = pl.read_parquet(data).with_columns(
        url=pl.format("{}#{}", "url", "repo"), group=pl.col("repo").str.split("/").list.first()
    )
    owners = dict(frame.select("url", "group").unique().iter_rows())
    cache.parent.mkdir(parents=True, exist_ok=True)
    file = cache.with_suffix(".parquet")
    (frame if group == "given" else frame.drop("group")).write_parquet(file)
    verdicts = tables.read_history(file)
    file.unlink()
    history = History.of(verdicts)
    vectors: Vectors = lambda entities, t_ms: replay(verdicts, entities[:, 0], t_ms, known_for_s=KNOWN_FOR_S).X  # noqa: E731
    target, t_ms = whole_grid(history, known_for_s=KNOWN_FOR_S)
    rows = labelled(history, target, t_ms, vectors, known_for_s=KNOWN_FOR_S)
    rows = rows.take(np.flatnonzero(~np.isnan(rows.Y).all(axis=1)))
    number = {url: i for i, url in enumerate(history.url)}
    target = np.array([number[url] for url in rows.target])
    names, owner_of = np.unique([owners[url] for url in history.url], return_inverse=True)
    fold_of = np.array([zlib.crc32(name.encode()) % FOLDS for name in names])
    first_ms = np.full(len(number), np.iinfo(np.int64).max)
    np.minimum.at(first_ms, history.target, history.ts_ms)
    np.savez(
        cache,
        **vars(rows),
        eight=eight(history, target, rows.t_ms, known_for_s=KNOWN_FOR_S),
        owner=owner_of[target],
        fold=fold_of[owner_of[target]],
        known_ms=rows.t_ms - first_ms[target],
    )


def out_of_fold(grid: Grid) -> tuple[Floats, Floats]:
    """Probabilities of the model and of the logistic regression, each made by those that never saw the owner."""
    P, Q = np.full(grid.rows.Y.shape, np.nan), np.full(grid.rows.Y.shape, np.nan)
    for fold in range(FOLDS):
        test, learn = np.flatnonzero(grid.fold == fold), np.flatnonzero(grid.fold != fold)
        P[test] = predict(fitted(grid.rows.take(learn)), grid.rows.X[test])
        for j, output in enumerate(PROBABILITIES):
            counts = learn[counted(output, grid.rows.Y[learn], grid.rows.failing[learn])]
            fit = logistic(grid.eight[counts], grid.rows.Y[counts, j])
            Q[test, j] = fit.predict_proba(grid.eight[test])[:, 1]
    return P, Q


def report(grid: Grid, P: Floats, Q: Floats, *, resamples: int) -> None:
    """Print the figures of each output, the plain rules, the folds, the owners, and URLs hardly known."""
    rules = {name: grid.eight[:, EIGHT.index(name)] for name in ("flips_24h", "flips_7d")}
    print(f"{'':<12} {'rows':>9} {'base':>7}  {'AP':>6} {'logistic':>8} {'relative (5 % to 95 %)':>25} ", end="")
    print(f"{'Brier':>9} {'relative (5 % to 95 %)':>25} {'ECE':>8}  rules: flips in 24 h, 7 d; gain by fold")
    for j, output in enumerate(PROBABILITIES):
        rows = counted(output, grid.rows.Y, grid.rows.failing)
        y, p, q, owner, fold = grid.rows.Y[rows, j], P[rows, j], Q[rows, j], grid.owner[rows], grid.fold[rows]
        draws = resampled(owner, resamples)
        ap, ap_low, ap_high = compared(ranked(p, y), ranked(q, y), average_precision, owner, draws)
        brier, low, high = compared((p - y) ** 2, (q - y) ** 2, np.average, owner, draws)
        rule = "  ".join(f"{average_precision(ranked(x[rows], y)):.3f}" for x in rules.values())
        by_fold = " ".join(f"{_gain(p[fold == k], q[fold == k], y[fold == k]):+.0%}" for k in range(FOLDS))
        print(
            f"{output:<12} {len(y):>9,} {y.mean():>7.4f}  {average_precision(ranked(p, y)):>6.4f} "
            f"{average_precision(ranked(q, y)):>8.4f} {ap:>+9.1%} ({ap_low:+.1%} to {ap_high:+.1%}) "
            f"{np.mean((p - y) ** 2):>9.6f} {brier:>+9.2%} ({low:+.2%} to {high:+.2%}) {ece(p, y):>8.5f}  "
            f"{rule}; {by_fold}",
            flush=True,
        )
    for j, output in enumerate(PROBABILITIES[:3]):
        rows = counted(output, grid.rows.Y, grid.rows.failing)
        early = rows & (grid.known_ms <= FIRST_DAY_MS)
        y = grid.rows.Y[early, j]
        scores = (P[early, j], rules["flips_24h"][early])
        first_day = " against flips in 24 h ".join(f"{average_precision(ranked(x, y)):.3f}" for x in scores)
        gains = [
            _gain(P[own, j], Q[own, j], grid.rows.Y[own, j])
            for own in (rows & (grid.owner == k) for k in range(grid.owner.max() + 1))
            if 0 < grid.rows.Y[own, j].sum() < own.sum()
        ]
        low, middle, high = np.quantile(gains, (0.1, 0.5, 0.9))
        print(
            f"{output}: in a URL's first 24 h {first_day}; AP by owner: median {middle:+.1%}, "
            f"10 % to 90 % of owners {low:+.1%} to {high:+.1%}, "
            f"better for {np.mean(np.array(gains) > 0):.0%} of {len(gains)}"
        )


def resampled(owner: npt.NDArray[np.int64], resamples: int) -> npt.NDArray[np.int64]:
    """How often each owner is drawn, shape (resamples, owners)."""
    rng = np.random.default_rng(0)
    present = np.unique(owner)
    draws = np.zeros((resamples, int(owner.max()) + 1), np.int64)
    for draw in draws:
        np.add.at(draw, rng.choice(present, len(present)), 1)
    return draws


def compared(
    ours: Any, theirs: Any, figure: Callable[..., float], owner: npt.NDArray[np.int64], draws: npt.NDArray[np.int64]
) -> tuple[float, float, float]:
    """Relative difference of a figure, and the 5 % and 95 % points of its bootstrap by owner."""
    relative = [
        figure(ours, weights=weight) / figure(theirs, weights=weight) - 1
        for weight in (draw[owner].astype(np.float64) for draw in draws)
    ]
    low, high = np.quantile(relative, (0.05, 0.95))
    return figure(ours) / figure(theirs) - 1, float(low), float(high)


def ece(p: Floats, y: Floats) -> float:
    """Expected calibration error over ten quantile bins."""
    predicted, observed, share = reliability(p, y)
    return float(np.sum(share * np.abs(predicted - observed)))


def _gain(p: Floats, q: Floats, y: Floats) -> float:
    return average_precision(ranked(p, y)) / average_precision(ranked(q, y)) - 1


if __name__ == "__main__":
    main()

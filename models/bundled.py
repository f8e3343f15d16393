"""Make the model that ships with the package: `python -m models.bundled --history FILE`.

FILE is a history as `urlhealth backtest` takes it, with `group`. The model learns from every full hour of it.
"""

import argparse
from pathlib import Path

import numpy as np

from models import tables
from models.dataset import Dataset, History, labelled, whole_grid
from models.recipe import fitted
from models.replay import replay
from urlhealth.prediction.champion import BUNDLED_FILE
from urlhealth.settings import quiet_third_parties

KNOWN_FOR_S = 48 * 3600.0


def rows_of(path: Path, *, known_for_s: float) -> Dataset:
    """The labelled rows at every full hour of a history in a file."""
    verdicts = tables.read_history(path)
    history = History.of(verdicts)
    target, t_ms = whole_grid(history, known_for_s=known_for_s)
    return labelled(
        history,
        target,
        t_ms,
        lambda entities, at_ms: replay(verdicts, entities[:, 0], at_ms, known_for_s=known_for_s).X,
        known_for_s=known_for_s,
    )


def main(arguments: list[str] | None = None) -> None:
    """Train on a history and write the bundled model's file."""
    import skops.io

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--history", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=BUNDLED_FILE)
    options = parser.parse_args(arguments)
    quiet_third_parties()
    rows = rows_of(options.history, known_for_s=KNOWN_FOR_S)
    rows = rows.take(np.flatnonzero(~np.isnan(rows.Y).all(axis=1)))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    skops.io.dump(fitted(rows), options.out)
    print(f"{options.out}: trained on {len(rows):,} rows, fingerprint {rows.fingerprint()}")


if __name__ == "__main__":
    main()

"""The point-in-time join against looking at every row, for each way in which entities get their codes."""

from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from urlhealth.feast_stores.asof import AT, CREATED, _stable_order, values_at

KEYS = {
    "near whole numbers": lambda rng, n: {"k": rng.integers(-3, 9, n).astype(np.int32)},
    "far whole numbers": lambda rng, n: {"k": rng.integers(-3, 9, n) * 10**15},
    "unsigned beyond int64": lambda rng, n: {"k": rng.integers(2**63 - 4, 2**63 + 8, n, dtype=np.uint64)},
    "text": lambda rng, n: {
        "k": pl.Series([f"k{i}" if i < 11 else None for i in rng.integers(0, 12, n)], dtype=pl.String)
    },
    "two keys": lambda rng, n: {
        "k": rng.integers(0, 3, n),
        "l": pl.Series([f"l{i}" for i in rng.integers(0, 4, n)], dtype=pl.String),
    },
    "no key": lambda rng, n: {},  # noqa: ARG005
}


def frame(rng: np.random.Generator, kind: str, n: int) -> pl.DataFrame:
    """Few instants, so that many are equal and many are at the edge of a TTL; some are not known."""
    at = [None if rng.random() < 0.05 else 1_700_000_000_000_000 + int(s) * 1_000_000 for s in rng.integers(0, 40, n)]
    return pl.DataFrame({**KEYS[kind](rng, n), AT: pl.Series(at).cast(pl.Datetime("us", "UTC"))})


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("order", ["by time", "any", "created"])
@pytest.mark.parametrize("kind", KEYS)
def test_join_equals_looking_at_every_row(kind: str, order: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    left, right = frame(rng, kind, 60), frame(rng, kind, seed * 60)
    right = right.with_columns(value=pl.int_range(pl.len()), nothing=pl.when(pl.int_range(pl.len()) % 3 > 0).then(1.5))
    if order == "by time":
        right = right.sort(AT, nulls_last=True)
    if order == "created":
        right = right.with_columns(
            pl.Series(rng.integers(0, 3, right.height)).cast(pl.Datetime("us", "UTC")).alias(CREATED)
        )
    ttl = [None, timedelta(seconds=3)][seed % 2]
    keys = [name for name in left.columns if name != AT]
    found = values_at(left, right.lazy(), keys, ["value", "nothing"], ttl)
    history = right.with_row_index("row").to_dicts()
    expected = []
    for asked in left.iter_rows(named=True):
        past = [
            row
            for row in history
            if None not in (asked[AT], row[AT], *(asked[key] for key in keys))
            and all(row[key] == asked[key] for key in keys)
            and row[AT] <= asked[AT]
            and (ttl is None or asked[AT] - row[AT] <= ttl)
        ]
        newest = max(past, key=lambda row: (row[AT], row.get(CREATED, 0), row["row"]), default={})
        expected.append((newest.get("value"), newest.get("nothing")))
    assert found.rows() == expected
    assert seed == 0 or any(value is not None for value, _ in expected)


def test_codes_of_more_than_16_bits_are_sorted_and_keep_their_order() -> None:
    code = np.random.default_rng(0).integers(0, 1 << 34, 5_000) // 7 * 7 % (1 << 33)
    code = np.concatenate((code, code))
    np.testing.assert_array_equal(_stable_order(code), np.argsort(code, kind="stable"))

"""The log of what was served, over a store that fails when the test says so."""

from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from tests.support import forecasts_of
from urlhealth.crawl.served import ServedBatch, ServedBatches
from urlhealth.errors import StoreUnavailable
from urlhealth.prediction.log import PredictionLog
from urlhealth.prediction.served_batch import REQUEST_ID, pack, unpack
from urlhealth.vocabulary import Freshness, Health, Prediction, Served

PREDICTION = Prediction(
    sent_url="https://a.example",
    target="https://a.example/",
    horizon="24h",
    probability=None,
    probability_at_end=None,
    status=Freshness.MISSING,
    health=Health.UNKNOWN,
    age_s=None,
    observed_ms=None,
    model="url-health",
    model_version="1",
)


class Store:
    def __init__(self) -> None:
        self.transactions: list[list[str]] = []
        self.failure: Exception | None = None

    def add(self, batches: Iterable[ServedBatch]) -> None:
        if self.failure is not None:
            raise self.failure
        tables = [unpack(batch.data) for batch in batches]
        self.transactions.append([name for table in tables for name in dict.fromkeys(table[REQUEST_ID].to_pylist())])


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def log(store: Store) -> PredictionLog:
    return PredictionLog(cast(ServedBatches, store), max_waiting=5)


def served(request_id: str, n: int) -> Served:
    return Served(request_id=request_id, owner="local", ts_ms=0, forecasts=forecasts_of([PREDICTION] * n))


def test_what_waits_is_written_at_once_and_kept_while_the_database_fails(store: Store, log: PredictionLog) -> None:
    log.put(served("a", 2))
    store.failure = StoreUnavailable("the disk is full")
    with pytest.raises(StoreUnavailable):
        log.write()
    log.put(served("b", 1))
    store.failure = None
    log.write()
    assert store.transactions == [["a", "b"]]
    assert (log.waiting, log.dropped) == (0, 0)


def test_the_bound_counts_predictions_and_what_is_over_it_is_counted(store: Store, log: PredictionLog) -> None:
    for name, n in (("a", 3), ("b", 3), ("c", 2)):
        log.put(served(name, n))
    assert (log.waiting, log.dropped) == (5, 3)
    log.write()
    assert store.transactions == [["a", "c"]]


def test_what_the_database_will_not_have_does_not_block_the_rest(store: Store, log: PredictionLog) -> None:
    log.put(served("a", 4))
    store.failure = ValueError("no such text")
    with pytest.raises(ValueError, match="no such text"):
        log.write()
    assert (log.waiting, log.dropped) == (0, 4)
    store.failure = None
    log.put(served("b", 1))
    log.write()
    assert store.transactions == [["b"]]


def test_what_cannot_be_packed_does_not_block_the_rest(store: Store, log: PredictionLog) -> None:
    broken = replace(PREDICTION, sent_url="https://\ud800.example")
    log.put(Served(request_id="a", owner="local", ts_ms=0, forecasts=forecasts_of([broken])))
    with pytest.raises(UnicodeEncodeError):
        log.write()
    assert (log.waiting, log.dropped) == (0, 1)
    log.put(served("b", 1))
    log.write()
    assert store.transactions == [["b"]]


def test_columns_may_be_lists_or_arrays() -> None:
    sent = ("https://a.example", "https://b\xfccher.example")
    said = [replace(PREDICTION, sent_url=url, horizon=h, probability=0.5) for url in sent for h in ("1h", "6h")]
    made = forecasts_of(said)
    ages = [None, 2.0], np.array([np.nan, 2.0])
    tables = [
        unpack(pack([Served(request_id="a", owner="local", ts_ms=7, forecasts=replace(made, age_s=age))]).data)
        for age in ages
    ]
    assert tables[0].to_pylist() == tables[1].to_pylist()
    assert tables[0]["age_s"].to_pylist() == [None, None, 2.0, 2.0]
    assert tables[0]["sent_url"].to_pylist() == [url for url in sent for _ in range(2)]
    assert tables[0]["horizon"].to_pylist() == ["1h", "6h"] * 2

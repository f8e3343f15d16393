"""The log of what was served, over a store that fails when the test says so."""

from collections.abc import Iterable
from typing import cast

import pytest

from tests.support import forecasts_of
from urlhealth.crawl.store import CrawlStore
from urlhealth.errors import StoreUnavailable
from urlhealth.prediction.log import PredictionLog
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

    def log_predictions(self, served: Iterable[Served]) -> None:
        if self.failure is not None:
            raise self.failure
        self.transactions.append([each.request_id for each in served])


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def log(store: Store) -> PredictionLog:
    return PredictionLog(cast(CrawlStore, store), max_waiting=5)


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

"""Following the champion, in a registry that the test makes by hand."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2

from tests.support import free_port, noise_forecaster
from urlhealth.crawl.store import CrawlStore
from urlhealth.errors import ModelMismatch, NoModel, StoreUnavailable, UrlHealthError
from urlhealth.feast_stores.stores import FeatureStores
from urlhealth.prediction import champion
from urlhealth.prediction.champion import ChampionWatch, champion_version
from urlhealth.prediction.estimators import HealthForecaster
from urlhealth.prediction.predictor import Predictor
from urlhealth.settings import Settings


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """Where version 1 is the champion."""
    file = tmp_path / "mlflow" / "mlflow.db"
    file.parent.mkdir()
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE registered_model_aliases (name, alias, version)")
        connection.execute("INSERT INTO registered_model_aliases VALUES ('url-health', 'champion', 1)")
        yield connection


@pytest.fixture
def watch(tmp_path: Path) -> ChampionWatch:
    return ChampionWatch(Settings(home=tmp_path, mlflow_tracking_uri=""))


def said(watch: ChampionWatch) -> str:
    """What a caller is told who wants a forecast."""
    nothing = cast(CrawlStore, None), cast(FeatureStores, None)
    predictor = Predictor(crawl=nothing[0], features=nothing[1], champion=watch, clock=lambda: 0, known_for_s=1)
    with pytest.raises(NoModel) as raised:
        predictor.champion()
    return str(raised.value)


class Loads:
    """Stands for `load_version`: raises what the test puts in, then gives a model."""

    def __init__(self, *errors: UrlHealthError) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self, *_: str) -> HealthForecaster:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return noise_forecaster()


@pytest.mark.usefixtures("registry")
def test_a_model_whose_files_cannot_be_read_now_is_tried_again(
    watch: ChampionWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(champion, "load_version", Loads(StoreUnavailable("its files cannot be read: no route")))
    assert not watch.refresh()
    assert said(watch) == "url-health version 1 cannot serve: its files cannot be read: no route"
    assert watch.refresh()
    assert (watch.current and watch.current.version, watch.problem) == ("1", None)


def test_a_model_that_does_not_fit_is_refused_for_good_and_the_next_one_serves(
    watch: ChampionWatch, registry: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = Loads(ModelMismatch("other features"))
    monkeypatch.setattr(champion, "load_version", loads)
    for _ in range(3):
        assert not watch.refresh()
        assert said(watch) == "url-health version 1 cannot serve: other features"
    assert loads.calls == 1
    registry.execute("UPDATE registered_model_aliases SET version = 2")
    assert watch.refresh()
    assert (watch.current and watch.current.version, watch.problem) == ("2", None)


def test_where_no_model_is_registered_the_bundled_one_serves_until_one_is(
    watch: ChampionWatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch.check()
    assert watch.refresh()
    assert (watch.current and watch.current.version, watch.problem, watch.looked) == ("bundled", None, True)
    assert not watch.refresh()
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").touch()  # a training makes it now
    watch.check()
    assert not watch.refresh()
    monkeypatch.setattr(watch, "_registered_version", lambda: "1")
    monkeypatch.setattr(champion, "load_version", Loads())
    assert watch.refresh()
    assert watch.current
    assert watch.current.version == "1"


class Bad:
    """Stands for a forecaster of another make."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def predict_proba(self, rows: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return np.full((len(rows), 6), self.answer)[:, : 3 if self.answer == 0 else 6]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (ValueError("no trees\nin it"), "it cannot score rows of features: no trees"),
        (0, "it gives (3,) numbers a row, not 6 probabilities"),
        (np.nan, "what it gives are no probabilities"),
        (1.5, "what it gives are no probabilities"),
    ],
)
def test_a_model_that_cannot_score_leaves_the_old_one_serving(
    watch: ChampionWatch, registry: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, answer: Any, said: str
) -> None:
    monkeypatch.setattr(champion, "load_version", Loads())
    assert watch.refresh()
    registry.execute("UPDATE registered_model_aliases SET version = 2")
    monkeypatch.setattr(champion, "load_version", lambda *_: Bad(answer))
    assert not watch.refresh()
    assert watch.serving().version == "1"
    assert (watch.problem, watch.failures) == (f"url-health version 2 cannot serve: {said}", 1)


@pytest.mark.parametrize("content", [b"no database" * 100, None])
def test_a_registry_that_is_damaged_is_said(watch: ChampionWatch, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "mlflow" / "mlflow.db"
    file.mkdir(parents=True) if content is None else (file.parent.mkdir(), file.write_bytes(content))
    with pytest.raises(StoreUnavailable, match=r"MLflow store sqlite:.* cannot be used: .*MLFLOW_TRACKING_URI"):
        watch.check()
    assert not watch.refresh()
    assert said(watch).startswith("the MLflow store")


def test_a_tracking_server_that_does_not_answer_is_said() -> None:
    watch = ChampionWatch(Settings(mlflow_tracking_uri=f"http://127.0.0.1:{free_port()}"))
    with pytest.raises(StoreUnavailable, match=r"http://127.* cannot be used: .*refused"):
        watch.check()


def test_a_registry_that_cannot_say_is_not_taken_for_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        code = databricks_pb2.RESOURCE_DOES_NOT_EXIST

        def __init__(self, *, tracking_uri: str) -> None:
            pass

        def get_model_version_by_alias(self, *_: str) -> None:
            raise MlflowException("said so", error_code=self.code)

    for uri in ("foo://mlflow", "./mlruns"):
        with pytest.raises(StoreUnavailable, match=f"MLflow store {uri} cannot be used"):
            champion_version(uri)
    monkeypatch.setattr("mlflow.MlflowClient", Client)
    assert champion_version("http://mlflow") is None
    Client.code = databricks_pb2.INTERNAL_ERROR
    with pytest.raises(StoreUnavailable, match="said so"):
        champion_version("http://mlflow")

"""Models of your own on feature services: what they answer is what the classifier says to what Feast has stored."""

import asyncio
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import polars as pl
import pytest
import tritonclient.http as triton
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Float32
from sklearn.base import ClassifierMixin
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from starlette.testclient import TestClient

from models.registry import tracking
from serving.app import create_app
from tests.support import served_by
from urlhealth.errors import InvalidRequest, ModelMismatch, NotFound
from urlhealth.platform import Platform
from urlhealth.prediction.compiled import compiled
from urlhealth.prediction.estimators import Forest
from urlhealth.prediction.services import SERVICE_TAG
from urlhealth.settings import Settings

#: Feast's own way of reading has no other clock.
NOW = datetime.now(UTC)
NAMES = [f"f{i}" for i in range(6)]
SHOPS = 40
INFER = "/v2/models/churn/infer"


def fitted(classifier: Any, columns: list[str], *, target: str = "f0") -> Any:
    """A classifier that learnt something from rows of which some values are missing."""
    rng = np.random.default_rng(3)
    X = pd.DataFrame(rng.normal(size=(2_000, len(columns))).astype(np.float32), columns=columns)
    y = (X[target] + 0.5 * rng.normal(size=len(X)) > 0).astype(int)
    if isinstance(classifier, HistGradientBoostingClassifier):
        X = X.mask(rng.random(X.shape) < 0.1)
    return classifier.fit(X, y)


class World:
    """A platform with a feature service `shops`, and models that are registered in its MLflow."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.store: FeatureStore = platform.features.feast()
        shop = Entity(name="shop", join_keys=["shop"], value_type=ValueType.INT64)
        source = FileSource(path=str(platform.settings.home / "none.parquet"), timestamp_field="event_timestamp")
        views = [
            FeatureView(
                name=name,
                entities=[shop],
                ttl=timedelta(days=ttl_days),
                schema=[Field(name=feature, dtype=Float32) for feature in features],
                source=source,
                offline=False,
            )
            for name, features, ttl_days in (("sales", NAMES[:4], 2), ("visits", NAMES[4:], 0))
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.store.apply([shop, *views, FeatureService(name="shops", features=views)])
        rng = np.random.default_rng(0)
        values = {name: rng.normal(size=SHOPS).astype(np.float32) for name in NAMES}
        values["f1"][3] = np.nan
        at = [NOW - timedelta(days=4 if shop == 5 else 1) for shop in range(SHOPS)]
        rows = pd.DataFrame({"shop": np.arange(SHOPS), "event_timestamp": at, **values})
        for view in views:
            names = ["shop", "event_timestamp", *(field.name for field in view.features)]
            self.store.write_to_online_store(view.name, rows[names])

    def register(self, classifier: ClassifierMixin, *, service: str | None = "shops", how: str = "skops") -> str:
        """Log and register it as `churn`, and make it the champion; its version."""
        trees = "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"
        more: dict[str, Any] = {"skops_trusted_types": [trees, "sklearn.tree._tree.Tree"]} if how == "skops" else {}
        with tracking(self.platform.settings) as client, mlflow.start_run():
            info = mlflow.sklearn.log_model(
                classifier,
                name="model",
                serialization_format=how,
                registered_model_name="churn",
                pip_requirements=["scikit-learn"],
                **more,
            )
            version = str(info.registered_model_version)
            if service is not None:
                client.set_registered_model_tag("churn", SERVICE_TAG, service)
            client.set_registered_model_alias("churn", "champion", version)
        return version

    def stored(self, shops: list[int]) -> pd.DataFrame:
        """The features of shops as Feast's own way finds them."""
        found = self.store.get_online_features(
            self.store.get_feature_service("shops"), [{"shop": shop} for shop in shops]
        ).to_df()
        return found[NAMES].astype(np.float32)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    settings = Settings(home=tmp_path_factory.mktemp("services"), mlflow_tracking_uri="")
    with Platform(settings, clock=lambda: round(NOW.timestamp() * 1000)) as platform:
        yield World(platform)


@pytest.fixture
def http(world: World) -> Iterator[TestClient]:
    with TestClient(create_app(world.platform), raise_server_exceptions=False) as client:
        yield client


def asked(shops: list[Any], *, datatype: str = "INT64", name: str = "shop") -> dict[str, Any]:
    return {"inputs": [{"name": name, "shape": [len(shops)], "datatype": datatype, "data": shops}]}


def outputs(reply: Any) -> dict[str, list[Any]]:
    assert reply.status_code == 200, reply.text
    return {output["name"]: output["data"] for output in reply.json()["outputs"]}


def test_it_says_what_the_classifier_says_to_what_is_stored(world: World, http: TestClient) -> None:
    classifier = fitted(HistGradientBoostingClassifier(max_iter=30, random_state=0), NAMES)
    version = world.register(classifier)
    world.platform.service_models.refresh()
    shops = [7, 0, 3, 5, 999, 7]
    reply = http.post(INFER, json=asked(shops))
    assert reply.json()["model_name"] == "churn"
    assert reply.json()["model_version"] == version
    found = outputs(reply)
    expected = classifier.predict_proba(world.stored(shops))[:, 1]
    assert found["status"] == ["fresh", "fresh", "fresh", "stale", "missing", "fresh"]
    assert found["probability"][4] is None
    np.testing.assert_allclose(np.delete(found["probability"], 4).astype(float), np.delete(expected, 4), atol=1e-5)

    described = http.get("/v2/models/churn").json()
    assert described["inputs"] == [{"name": "shop", "datatype": "INT64", "shape": [-1]}]
    assert described["parameters"] == {"feature_service": "shops"}
    assert http.get("/v2/models/churn/ready").json() == {"name": "churn", "ready": True}
    by_row = http.post("/v1/models/churn:predict", json={"instances": [{"shop": shop} for shop in shops]}).json()
    assert [row["probability"] for row in by_row["predictions"]] == found["probability"]
    by_column = http.post("/v1/models/churn:predict", json={"inputs": {"shop": shops}}).json()
    assert by_column["outputs"] == found
    assert http.get("/v1/models/churn").json()["name"] == "churn"

    many = (list(range(SHOPS)) * 10)[:300]  # more than are scored in the event loop
    found = outputs(http.post(INFER, json=asked(many)))
    np.testing.assert_allclose(
        found["probability"], classifier.predict_proba(world.stored(many))[:, 1], atol=1e-5, err_msg="in a thread"
    )


def test_a_classifier_that_takes_nothing_missing_says_nothing_where_something_is(
    world: World, http: TestClient
) -> None:
    classifier = fitted(LogisticRegression(), NAMES)
    world.register(classifier)
    world.platform.service_models.refresh()
    found = outputs(http.post(INFER, json=asked([1, 3, 5, 999, 2])))
    assert [p is None for p in found["probability"]] == [False, True, True, True, False]
    expected = classifier.predict_proba(world.stored([1, 2]))[:, 1]
    np.testing.assert_allclose([found["probability"][0], found["probability"][4]], expected, atol=1e-5)


def test_clients_of_triton_ask_in_binary(world: World) -> None:
    world.register(fitted(HistGradientBoostingClassifier(max_iter=5, random_state=0), NAMES))
    shops = np.array([1, 2], np.int64)
    tensor = triton.InferInput("shop", [2], "INT64")
    tensor.set_data_from_numpy(shops)
    body, header_length = triton.InferenceServerClient.generate_request_body([tensor])
    headers = {} if header_length is None else {"Inference-Header-Content-Length": str(header_length)}
    with TestClient(create_app(world.platform)) as http:
        binary = http.post(INFER, content=body, headers=headers)
        as_json = outputs(http.post(INFER, json=asked(shops.tolist())))
    assert binary.status_code == 200
    result = triton.InferenceServerClient.parse_response_body(
        binary.content, header_length=binary.headers.get("Inference-Header-Content-Length")
    )
    assert result.as_numpy("probability").tolist() == as_json["probability"]


def test_a_new_champion_serves_at_the_next_look_and_one_that_cannot_leaves_the_old_one(
    world: World, http: TestClient
) -> None:
    first = world.register(fitted(LogisticRegression(), ["sales__f2", "f5"], target="f5"))
    world.platform.service_models.refresh()
    before = http.post(INFER, json=asked([1]))
    assert before.json()["model_version"] == first

    world.register(fitted(LogisticRegression(), ["f2", "unknown"], target="f2"))
    world.platform.service_models.refresh()
    assert http.post(INFER, json=asked([1])).json() == before.json()
    assert "unknown" in world.platform.service_models.problems["churn"]

    second = world.register(fitted(HistGradientBoostingClassifier(max_iter=5), NAMES))
    world.platform.service_models.refresh()
    assert not world.platform.service_models.problems
    after = http.post(INFER, json=asked([1]))
    assert after.json()["model_version"] == second
    assert http.post(f"/v2/models/churn/versions/{first}/infer", json=asked([1])).json() == before.json()


@pytest.mark.parametrize(
    ("classifier", "service", "how", "words"),
    [
        (fitted(LogisticRegression(), NAMES), "shops", "cloudpickle", "only skops is loaded"),
        (fitted(LogisticRegression(), NAMES), "no_such", "skops", "feast apply"),
        (fitted(LogisticRegression(), NAMES[:2]), "shops", "skops", None),
        (fitted(RandomForestClassifier(3), NAMES), "shops", "skops", "Tree"),
    ],
)
def test_what_cannot_be_served_is_said(
    world: World, classifier: Any, service: str, how: str, words: str | None
) -> None:
    version = world.register(classifier, service=service, how=how)
    try:
        if words is None:
            assert world.platform.service_models.named("churn", version).version == version
            return
        with pytest.raises(ModelMismatch, match=words):
            world.platform.service_models.named("churn", version)
    finally:
        world.register(fitted(LogisticRegression(), NAMES))


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v2/models/nobody/infer", asked([1]), 404, "nobody"),
        ("/v2/models/churn/versions/77/infer", asked([1]), 404, "77"),
        (INFER, asked([1], name="url"), 422, "shop"),
        (INFER, asked([1.5], datatype="FP64"), 422, "shop"),
        (INFER, asked(["a"], datatype="BYTES"), 422, "shop"),
        (INFER, asked([None], datatype="INT64"), 422, "shop"),
        (INFER, asked([2**70]), 422, "shop"),
        (INFER, asked([1] * 10_001), 422, "10001 entities"),
        (INFER, {"inputs": []}, 422, "0 entities"),
        ("/v1/models/churn:predict", {"instances": [1]}, 422, "instances"),
        ("/v1/models/churn:predict", {"instances": [{"shop": 1}, {"x": 1}]}, 422, "instance 1"),
        ("/v1/models/churn:predict", {"inputs": {"shop": 1}}, 422, "inputs"),
    ],
)
def test_bad_requests(world: World, http: TestClient, path: str, body: dict[str, Any], status: int, words: str) -> None:
    world.register(fitted(LogisticRegression(), NAMES))
    reply = http.post(path, json=body)
    assert reply.status_code == status, reply.text
    assert words in reply.json()["error"]


def test_models_without_a_service_are_not_served(world: World) -> None:
    with tracking(world.platform.settings) as client:
        client.create_registered_model("bare")
        client.create_model_version("bare", "file:///nowhere")
        client.set_registered_model_alias("bare", "champion", "1")
    with pytest.raises(ModelMismatch, match=SERVICE_TAG):
        world.platform.service_models.named("bare")
    with pytest.raises(NotFound, match="nobody"):
        world.platform.service_models.named("nobody")


def test_trees_that_are_none_are_not_compiled(tmp_path: Path) -> None:  # noqa: ARG001
    forest = Forest.of(fitted(HistGradientBoostingClassifier(max_iter=3), NAMES))
    inner = int(np.flatnonzero(forest.child[1::2] != np.arange(len(forest.value)))[1])
    for child, feature, words in ((0, 0, "before it"), (None, 6, "none of the 6")):
        broken = Forest(**{**{k: v for k, v in vars(forest).items() if k != "_splits"}})
        broken.child, broken.feature = forest.child.copy(), forest.feature.copy()
        broken.feature[inner] = feature
        if child is not None:
            broken.child[2 * inner] = child
        with pytest.raises(ModelMismatch, match=words):
            compiled(broken, columns=6)


def test_what_is_asked_at_once_is_answered_together_and_each_gets_its_own(world: World) -> None:
    world.register(fitted(HistGradientBoostingClassifier(max_iter=10, random_state=0), NAMES))
    world.platform.service_models.refresh()
    model = world.platform.service_models.named("churn")
    now_ms = round(NOW.timestamp() * 1000)
    asked: list[dict[str, list[Any]]] = [{"shop": [1, 2]}, {"shop": [999]}, {"shop": ["a"]}, {"x": [1]}, {"shop": [3]}]

    async def ask_all() -> list[Any]:
        return await asyncio.gather(*(model.answer(each, now_ms=now_ms) for each in asked), return_exceptions=True)

    found = asyncio.run(ask_all())
    for entities, scores in zip(asked, found, strict=True):
        if isinstance(scores, BaseException):
            with pytest.raises(InvalidRequest):
                model.score(entities, now_ms=now_ms)
            continue
        alone = model.score(entities, now_ms=now_ms)
        np.testing.assert_allclose(scores.probability, alone.probability, atol=1e-7)
        assert scores.status == alone.status
    assert [isinstance(scores, InvalidRequest) for scores in found] == [False, False, True, True, False]


def test_what_is_wrong_in_each_of_two_is_not_right_in_both(world: World) -> None:
    """Two questions with too few values of one key each: joined, they would have as many of both."""
    world.register(fitted(HistGradientBoostingClassifier(max_iter=3, random_state=0), NAMES))
    world.platform.service_models.refresh()
    model = world.platform.service_models.named("churn")
    asked: list[dict[str, list[Any]]] = [{"shop": [1, 2], "other": [1]}, {"shop": [3], "other": [4, 5]}]

    async def ask_all() -> list[Any]:
        return await asyncio.gather(*(model.answer(each, now_ms=0) for each in asked), return_exceptions=True)

    assert [type(each) for each in asyncio.run(ask_all())] == [InvalidRequest] * 2


def test_another_version_is_loaded_once(world: World) -> None:
    first = world.register(fitted(LogisticRegression(), NAMES))
    world.register(fitted(LogisticRegression(), NAMES))
    models = world.platform.service_models
    assert models.named("churn", first) is models.named("churn", first)


def test_what_was_served_is_logged(world: World, http: TestClient) -> None:
    version = world.register(fitted(HistGradientBoostingClassifier(max_iter=5, random_state=0), NAMES))
    world.platform.service_models.refresh()
    reply = http.post(INFER, json=asked([4, 999]), headers={"X-Request-ID": "logged"})
    world.platform.lease.acquire()
    rows = served_by(world.platform).filter(pl.col("__request_id") == "logged").sort("url")
    assert rows["url"].to_list() == ["shop=4", "shop=999"]
    assert rows["probability"].to_list() == outputs(reply)["probability"]
    assert rows["status"].to_list() == ["fresh", "missing"]
    assert set(rows.select("model", "model_version", "horizon", "owner").rows()) == {("churn", version, "", "local")}
    assert rows["probability_at_end"].null_count() == 2
    assert not world.platform.quality(owner="local").figures

"""`bentoml serve` as a user types it: the same application, with a scoring API beside it."""

import pickle
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bentoml
import mlflow
import numpy as np
import polars as pl
import pytest
import tritonclient.http as tritonclient
from tritonclient.utils import InferenceServerException

from models.registry import EXPERIMENT, promote, tracking
from serving.middleware import MAX_BODY_BYTES
from serving.schemas import Problem
from tests.support import BIN, Api, environment, free_port, noise_forecaster, program, wait_until
from urlhealth.crawl.keys import Scope
from urlhealth.feast_stores import segments
from urlhealth.features.catalog import VECTOR
from urlhealth.features.columns import names
from urlhealth.platform import Platform
from urlhealth.prediction.champion import BUNDLED
from urlhealth.prediction.estimators import HealthForecaster
from urlhealth.prediction.model_files import TRUSTED_TYPES
from urlhealth.prediction.served_files import DATASET
from urlhealth.settings import Settings
from urlhealth.vocabulary import MODEL_NAME, PROBABILITIES

FEATURES = names(VECTOR)
#: Nobody listens there: probed at once, and failing.
CLOSED = "http://127.0.0.1:9/"
#: The first one registered by hand: the bundled model is version 1 of a new registry.
VERSION = "2"


@pytest.fixture(scope="module")
def forecaster() -> HealthForecaster:
    return noise_forecaster()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def bento(home: Path) -> Iterator[Api]:
    """The service before anything was trained; started as the README says, from the root of the checkout."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    with program(
        str(BIN / "bentoml"), "serve", "--port", str(port),
        env=environment(home, URLHEALTH_CHAMPION_POLL_S="0.2"), ready_url=f"{url}/health/live", log=home / "bento.log",
    ):  # fmt: skip
        api = Api(url)
        yield api
        api.http.close()


@pytest.fixture(scope="module")
def with_model(bento: Api, home: Path, forecaster: HealthForecaster) -> Api:
    """The service when it has met the champion, which was registered while it ran."""
    with tracking(Settings(home=home, mlflow_tracking_uri="")) as client:
        mlflow.set_experiment(EXPERIMENT)
        info = mlflow.sklearn.log_model(
            forecaster,
            name="model",
            serialization_format="skops",
            skops_trusted_types=list(TRUSTED_TYPES),
            registered_model_name=MODEL_NAME,
            pip_requirements=["numpy"],
        )
        promote(client, VERSION)
        assert str(info.registered_model_version) == VERSION

    def loaded() -> bool:
        return bool(bento.predict([CLOSED])[0]["model_version"] == VERSION)

    wait_until(loaded, timeout_s=30, what="the service to load the champion")
    return bento


def rows(n: int, seed: int) -> list[dict[str, float | None]]:
    """Rows of features, some of them unknown."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, len(FEATURES))).astype(np.float32)
    return [{name: None if v > 1.5 else float(v) for name, v in zip(FEATURES, row, strict=True)} for row in values]


def expected(forecaster: HealthForecaster, sent: list[dict[str, float | None]]) -> list[dict[str, float]]:
    X = np.array([[np.nan if row[name] is None else row[name] for name in FEATURES] for row in sent], dtype=np.float32)
    return [dict(zip(PROBABILITIES, p, strict=True)) for p in forecaster.predict_proba(X).tolist()]


def test_before_anything_was_trained(bento: Api) -> None:
    assert bento.http.get("/health/live").json() == {"status": "live"}
    assert bento.http.get("/livez").status_code == 200
    # Both ways of asking whether it is ready say the same.
    for path in ("/health/ready", "/readyz"):
        wait_until(lambda path=path: bento.http.get(path).status_code == 200, timeout_s=30, what=f"{path} to be ready")
    (score,) = bento.http.post("/score", json={"rows": [{}]}).json()
    (prediction,) = bento.predict([CLOSED])
    assert score["model_version"] == prediction["model_version"] == BUNDLED


def test_it_is_the_same_application(bento: Api) -> None:
    task_id = bento.submit([CLOSED])
    assert bento.wait_done(task_id)["outcomes"] == {"connect": 1}
    assert bento.http.get(f"/tasks/{task_id}").json()["result"][CLOSED]["errors"] == {"http": "CONNECTION_ERROR"}
    assert "URLs by risk" in bento.http.get("/").text
    assert "/api/v1/tasks" in bento.http.get("/openapi.json").json()["paths"]
    for method, path, status in (("GET", "/nowhere", 404), ("PUT", "/submit", 405), ("GET", "/tasks/unknown", 404)):
        reply = bento.http.request(method, path)
        assert (reply.status_code, reply.headers["content-type"]) == (status, "application/problem+json")


def test_scores_are_the_models(with_model: Api, forecaster: HealthForecaster) -> None:
    sent = rows(7, seed=1)
    reply = with_model.http.post("/score", json={"rows": sent})
    assert reply.status_code == 200, reply.text
    assert [item["probabilities"] for item in reply.json()] == [pytest.approx(p) for p in expected(forecaster, sent)]
    assert {(item["model"], item["model_version"]) for item in reply.json()} == {(MODEL_NAME, VERSION)}


def test_requests_that_come_together_get_each_their_own_scores(with_model: Api, forecaster: HealthForecaster) -> None:
    many = [rows(1 + i % 5, seed=i) for i in range(80)]
    with ThreadPoolExecutor(16) as threads:
        replies = list(threads.map(lambda sent: with_model.http.post("/score", json={"rows": sent}), many))
    for sent, reply in zip(many, replies, strict=True):
        assert reply.status_code == 200, reply.text
        assert [item["probabilities"] for item in reply.json()] == [
            pytest.approx(p) for p in expected(forecaster, sent)
        ]


def test_bentomls_own_client(with_model: Api, forecaster: HealthForecaster) -> None:
    sent = rows(2, seed=3)
    with bentoml.SyncHTTPClient(with_model.url) as client:
        got = client.score(rows=sent)
    assert [item["probabilities"] for item in got] == [pytest.approx(p) for p in expected(forecaster, sent)]


def test_tritons_own_client(with_model: Api, forecaster: HealthForecaster) -> None:
    client = tritonclient.InferenceServerClient(with_model.url.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_model_ready(MODEL_NAME)
    assert client.is_model_ready(MODEL_NAME, VERSION)
    assert client.get_server_metadata()["name"] == "urlhealth"
    assert client.get_model_metadata(MODEL_NAME)["versions"] == [VERSION]
    matrix = np.random.default_rng(5).normal(size=(3, len(FEATURES))).astype(np.float32)
    for binary in (True, False):
        features = tritonclient.InferInput("features", matrix.shape, "FP32")
        features.set_data_from_numpy(matrix, binary_data=binary)
        outputs = [tritonclient.InferRequestedOutput(name, binary_data=binary) for name in PROBABILITIES]
        got = client.infer(MODEL_NAME, [features], outputs=outputs, request_id="7")
        assert got.get_response()["id"] == "7"
        columns = [got.as_numpy(name) for name in PROBABILITIES]
        assert pytest.approx(forecaster.predict_proba(matrix)) == np.array(columns).T
    url = tritonclient.InferInput("url", [1], "BYTES")
    url.set_data_from_numpy(np.array(["https://never.example"], dtype=object))
    got = client.infer(MODEL_NAME, [url])
    assert got.as_numpy("status").tolist() == [b"missing"]
    assert np.isnan(got.as_numpy("onset_24h")).all()
    with pytest.raises(InferenceServerException, match="no model 'other'"):
        client.infer("other", [url])


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/rows"),
        ({"rows": []}, "/rows"),
        ({"rows": [{}, {"no_such_feature": 1.0}]}, "/rows/1/no_such_feature"),
        ({"rows": [{"failing_now": "yes"}]}, "/rows/0/failing_now"),
        ({"rows": [[1.0]]}, "/rows/0"),
        ({"rows": [{}] * 1001}, "/rows"),
        ([], ""),
    ],
)
def test_bad_rows(with_model: Api, body: Any, pointer: str) -> None:
    reply = with_model.http.post("/score", json=body)
    assert (reply.status_code, reply.headers["content-type"]) == (422, "application/problem+json")
    problem = Problem.model_validate(reply.json())
    assert problem.errors[0].pointer == pointer


def test_a_body_beyond_the_limit(with_model: Api) -> None:
    reply = with_model.http.post("/score", content=b" " * (MAX_BODY_BYTES + 1))
    assert (reply.status_code, reply.headers["content-type"]) == (413, "application/problem+json")
    assert reply.json()["type"].endswith(":too-long")


@pytest.mark.parametrize("content", [b"{", b"", b"\xff", b"[" * 100_000])
def test_what_is_not_json(with_model: Api, content: bytes) -> None:
    reply = with_model.http.post("/score", content=content, headers={"content-type": "application/json"})
    assert (reply.status_code, reply.headers["content-type"]) == (422, "application/problem+json"), reply.text
    Problem.model_validate(reply.json())


def test_a_prediction_by_url_is_the_score_of_its_features_and_is_logged(with_model: Api, home: Path) -> None:
    with_model.wait_done(with_model.submit([CLOSED]))
    wait_until(lambda: with_model.features([CLOSED])[0]["status"] == "fresh", timeout_s=20, what="features")
    (vector,) = with_model.features([CLOSED])
    (score,) = with_model.http.post("/score", json={"rows": [vector["features"]]}).json()
    reply = with_model.http.post(
        "/api/v1/predictions",
        json={"urls": [CLOSED], "horizons": ["1h", "24h"], "explain": True},
        headers={"x-request-id": "from-the-test"},
    ).json()
    assert reply["request_id"] == "from-the-test"
    for item in reply["items"]:
        # Features move with time, and between the two calls there was a little.
        assert item["probability"] == pytest.approx(score["probabilities"][f"onset_{item['horizon']}"], abs=0.02)
        at_end = score["probabilities"][f"failing_{item['horizon']}"]
        assert item["probability_at_end"] == pytest.approx(at_end, abs=0.02)
        assert (item["status"], item["health"]) == ("fresh", "down")
        assert item["reasons"][0]["text"]

    def logged() -> list[tuple[str, float]]:
        if not (found := segments.files(home / "feast" / "offline" / DATASET)):
            return []
        rows = pl.read_parquet(found, hive_partitioning=False).filter(pl.col("__request_id") == "from-the-test")
        return rows.select("horizon", "probability").rows()

    assert wait_until(logged, timeout_s=20, what="the log") == [
        (item["horizon"], item["probability"]) for item in reply["items"]
    ]
    assert 'route="/score"' in with_model.http.get("/metrics").text


def test_pickles_and_forms_are_not_read(with_model: Api, tmp_path: Path) -> None:
    trace = tmp_path / "it was loaded"

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (trace,)

    for kind in ("application/vnd.bentoml+pickle", "Application/Vnd.Bentoml+Pickle", "multipart/form-data; boundary=a"):
        for extra in ({}, {"buffer-lengths": "100"}):
            reply = with_model.http.post("/score", content=pickle.dumps(Evil()), headers={"content-type": kind} | extra)
            assert (reply.status_code, reply.headers["content-type"]) == (415, "application/problem+json"), reply.text
    assert not trace.exists()


def test_its_server_has_the_same_limits(bento: Api) -> None:
    """The time for a head is not tried: it is half a minute. It is of the same class."""
    address = ("127.0.0.1", int(bento.url.rpartition(":")[2]))
    endless = b"x: " + b"a" * 20_000_000
    chunked = b"POST /score HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    for head in (b"GET / HTTP/1.1\r\n", chunked):
        with socket.create_connection(address, timeout=20) as connection, pytest.raises(ConnectionError):
            connection.sendall(head + endless)
    assert bento.http.get("/livez").status_code == 200


def test_with_a_key_it_is_closed_too(with_model: Api, home: Path) -> None:
    """The last one: nothing opens it again."""
    with Platform(Settings(home=home, mlflow_tracking_uri="")) as platform:
        secrets = {scope: platform.keys.create(str(scope), scopes=[scope], owner=str(scope))[1] for scope in Scope}
    body = {"rows": [{}]}

    def status(method: str, path: str, scope: Scope | None, content: Any = None) -> int:
        headers = {} if scope is None else {"Authorization": f"Bearer {secrets[scope]}"}
        return with_model.http.request(method, path, json=content, headers=headers).status_code

    # Another process sees the first key a moment later.
    wait_until(lambda: status("POST", "/score", None, body) == 401, timeout_s=10, what="the server to be closed")
    calls: list[tuple[str, str, Scope, Any]] = [
        ("POST", "/score", Scope.PREDICT, body),
        ("GET", "/schema.json", Scope.READ, None),
        ("GET", "/docs.json", Scope.ADMIN, None),
        ("GET", "/static_content/index.css", Scope.ADMIN, None),
        ("GET", "/metrics", Scope.READ, None),
        ("GET", "/", Scope.READ, None),
        ("GET", "/api/v1/tasks", Scope.READ, None),
        ("POST", "/api/v1/predictions", Scope.PREDICT, {"urls": [CLOSED], "horizons": ["24h"]}),
        ("POST", "/nowhere", Scope.ADMIN, None),
    ]
    for method, path, needed, content in calls:
        assert status(method, path, None, content) == 401, path
        for scope in Scope:
            refused = scope not in (needed, Scope.ADMIN)
            assert (status(method, path, scope, content) == 403) is refused, (path, scope)
    assert status("GET", "/livez", None) == 200
    assert status("GET", "/readyz", None) == 200

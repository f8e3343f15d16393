"""The inference protocols over one model: all say the same, and each says what is wrong in its own form."""

import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from serving.app import create_app
from serving.inference import FEATURES, MAX_ROWS
from serving.tensors import HEADER_LENGTH
from tests.support import noise_forecaster
from urlhealth.platform import Platform
from urlhealth.prediction.champion import Champion
from urlhealth.prediction.estimators import HealthForecaster
from urlhealth.settings import Settings
from urlhealth.vocabulary import PROBABILITIES

INFER = "/v2/models/url-health/infer"
PREDICT = "/v1/models/url-health:predict"
NEVER = "https://never.example"
N = len(FEATURES)


@pytest.fixture(scope="module")
def forecaster() -> HealthForecaster:
    return noise_forecaster()


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory, forecaster: HealthForecaster) -> Iterator[TestClient]:
    with Platform(Settings(home=tmp_path_factory.mktemp("home"), mlflow_tracking_uri="")) as platform:
        platform.champion.current = Champion(name="url-health", version="7", forecaster=forecaster)
        with TestClient(create_app(platform), raise_server_exceptions=False) as client:
            yield client


@pytest.fixture(scope="module")
def matrix() -> Any:
    """Rows of features, some of them unknown, float32 (5, N)."""
    values = np.random.default_rng(1).normal(size=(5, N)).astype(np.float32)
    values[values > 1.5] = np.nan
    return values


def rows_of(matrix: Any) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in matrix]


def records_of(matrix: Any) -> list[dict[str, float | None]]:
    return [dict(zip(FEATURES, row, strict=True)) for row in rows_of(matrix)]


def tensor(name: str, data: Any, datatype: str = "FP32") -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(np.shape(data)), "data": data}


def outputs_of(reply: Any) -> Any:
    """The probabilities in a V2 reply, (n, 6)."""
    assert reply.status_code == 200, reply.text
    outputs = {output["name"]: output["data"] for output in reply.json()["outputs"]}
    return np.array([outputs[name] for name in PROBABILITIES], dtype=float).T


def test_all_protocols_say_the_same_to_features(http: TestClient, forecaster: HealthForecaster, matrix: Any) -> None:
    rows, records = rows_of(matrix), records_of(matrix)
    columns = {name: [row[j] for row in rows] for j, name in enumerate(FEATURES)}
    lines = [",".join(FEATURES), *(",".join("" if v is None else repr(v) for v in row) for row in rows)]
    split = {"dataframe_split": {"columns": list(FEATURES), "data": rows}}

    def scores(rows: Any) -> list[list[float]]:
        items = http.post("/api/v1/score", json={"rows": rows}).json()["items"]
        return [list(item.values()) for item in items]

    v1 = http.post(PREDICT, json={"instances": records}).json()["predictions"]
    said = {
        "score": scores(records),
        "score, lists": scores(rows),
        "V2, matrix": outputs_of(http.post(INFER, json={"inputs": [tensor("features", rows)]})),
        "V2, by name": outputs_of(
            http.post(INFER, json={"inputs": [tensor(name, values) for name, values in columns.items()]})
        ),
        "V1, records": [list(prediction.values()) for prediction in v1],
        "V1, columns": np.array(list(http.post(PREDICT, json={"inputs": columns}).json()["outputs"].values())).T,
        **{
            f"MLflow, {next(iter(body))}": http.post("/invocations", json=body).json()["predictions"]
            for body in (split, {"dataframe_records": records}, {"instances": rows}, {"inputs": columns})
        },
        "MLflow, CSV": http.post("/invocations", content="\n".join(lines), headers={"content-type": "text/csv"}).json()[
            "predictions"
        ],
    }
    expected = forecaster.predict_proba(matrix)
    for protocol, got in said.items():
        assert np.array(got) == pytest.approx(expected, abs=1e-9), protocol


def test_all_protocols_say_the_same_to_urls(http: TestClient) -> None:
    reply = http.post(INFER, json={"id": "42", "inputs": [tensor("url", [NEVER], "BYTES")]}).json()
    assert (reply["id"], reply["model_name"], reply["model_version"]) == ("42", "url-health", "7")
    assert {output["name"]: output["data"] for output in reply["outputs"]} == {
        **{name: [None] for name in PROBABILITIES},
        "age_s": [None],
        "status": ["missing"],
    }
    expected = {**dict.fromkeys(PROBABILITIES), "age_s": None, "status": "missing"}
    for instances in ([NEVER], [{"url": NEVER}]):
        assert http.post(PREDICT, json={"instances": instances}).json() == {"predictions": [expected]}
    for body in ({"dataframe_split": {"columns": ["url"], "data": [[NEVER]]}}, {"inputs": {"url": [NEVER]}}):
        assert http.post("/invocations", json=body).json() == {"predictions": [[None] * 6]}
    csv = http.post("/invocations", content=f"url\r\n{NEVER}\r\n", headers={"content-type": "text/csv"})
    assert csv.json() == {"predictions": [[None] * 6]}


def test_binary_tensors(http: TestClient, forecaster: HealthForecaster, matrix: Any) -> None:
    data = matrix.astype("<f4").tobytes()
    spec = {"name": "features", "datatype": "FP32", "shape": [5, N], "parameters": {"binary_data_size": len(data)}}
    wanted = [{"name": "onset_24h", "parameters": {"binary_data": True}}, {"name": "failing_24h"}]
    head = json.dumps({"inputs": [spec], "outputs": wanted}).encode()
    reply = http.post(INFER, content=head + data, headers={HEADER_LENGTH: str(len(head))})
    size = int(reply.headers[HEADER_LENGTH])
    binary, plain = json.loads(reply.content[:size])["outputs"]
    expected = forecaster.predict_proba(matrix)
    assert binary["parameters"] == {"binary_data_size": 40}
    assert np.frombuffer(reply.content[size:], "<f8") == pytest.approx(expected[:, PROBABILITIES.index("onset_24h")])
    assert plain["data"] == pytest.approx(expected[:, PROBABILITIES.index("failing_24h")])


def test_what_the_model_is(http: TestClient) -> None:
    said = http.get("/v2/models/url-health").json()
    assert http.get("/v2/models/url-health/versions/7").json() == said
    assert [spec["name"] for spec in said["inputs"]] == ["url", "features", *FEATURES]
    assert {spec["name"] for spec in said["outputs"]} == {*PROBABILITIES, "age_s", "status"}
    assert http.get("/v2/models/url-health/ready").status_code == 200
    assert http.get("/v2/models/url-health/versions/7/ready").status_code == 200
    assert http.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert http.get("/v2/health/live").status_code == http.get("/v2/health/ready").status_code == 200
    states = http.get("/v1/models/url-health").json()["model_version_status"]
    assert [(state["version"], state["state"]) for state in states] == [("7", "AVAILABLE")]


BAD_V2: list[Any] = [
    [],
    {},
    {"inputs": []},
    {"inputs": [5]},
    {"inputs": [tensor("features", [[1.0]])]},
    {"inputs": [tensor("features", [0.0] * N)]},
    {"inputs": [tensor("features", [[0.0] * N]) | {"shape": [2, N]}]},
    {"inputs": [tensor("features", [[0.0] * N]) | {"shape": [-1, -N]}]},
    {"inputs": [tensor("features", [[0.0] * N]) | {"shape": [1, N, 1]}]},
    {"inputs": [tensor("features", [[0.0] * N], "BYTES")]},
    {"inputs": [tensor("features", [[0.0] * N], "FP8")]},
    {"inputs": [tensor("features", [["0"] * N])]},
    {"inputs": [tensor("features", [[True] * N])]},
    {"inputs": [tensor("features", [[1e300] * N])]},
    {"inputs": [tensor("features", [[10**400] * N])]},
    {"inputs": [tensor("features", [[0.0] * N] * 2), tensor("url", [NEVER], "BYTES")]},
    {"inputs": [tensor("no_such_feature", [1.0])]},
    {"inputs": [tensor(FEATURES[0], [1.0]), tensor(FEATURES[1], [1.0, 2.0])]},
    {"inputs": [tensor(FEATURES[0], [1.0]), tensor(FEATURES[0], [1.0])]},
    {"inputs": [tensor("url", ["nonsense"], "BYTES")]},
    {"inputs": [tensor("url", [5], "BYTES")]},
    {"inputs": [tensor("url", [], "BYTES")]},
    {"inputs": [tensor("url", [NEVER] * 1001, "BYTES")]},
    {"inputs": [{"name": "url", "datatype": "BYTES", "shape": [1]}]},
    {"inputs": [tensor("url", [NEVER], "BYTES")], "outputs": [{"name": "nope"}]},
    {"inputs": [tensor("url", [NEVER], "BYTES")], "outputs": ["onset_1h"]},
    {"inputs": [tensor("url", [NEVER], "BYTES")], "parameters": []},
]


@pytest.mark.parametrize("body", BAD_V2)
def test_bad_v2(http: TestClient, body: Any) -> None:
    reply = http.post(INFER, content=json.dumps(body))
    assert reply.status_code == 422, reply.text
    assert set(reply.json()) == {"error"}
    assert 0 < len(reply.json()["error"]) < 400


@pytest.mark.parametrize(
    ("spec", "data", "length"),
    [
        ({"shape": [1, N]}, np.full(N, np.inf, "<f4").tobytes(), None),
        ({"shape": [2, N]}, np.zeros(N, "<f4").tobytes(), None),
        ({"shape": [1, N], "parameters": {"binary_data_size": 1 << 40}}, b"", None),
        ({"shape": [1, N], "parameters": {"binary_data_size": "8"}}, b"", None),
        ({"name": "url", "datatype": "BYTES", "shape": [1]}, struct.pack("<I", 9) + b"short", None),
        ({"name": "url", "datatype": "BYTES", "shape": [1]}, struct.pack("<I", 1) + b"\xff", None),
        ({"name": "url", "datatype": "BYTES", "shape": [2]}, struct.pack("<I", 1) + b"a", None),
        ({"shape": [1, N]}, b"", "-1"),
        ({"shape": [1, N]}, b"", "99999"),
        ({"shape": [1, N]}, b"", "9" * 40),
    ],
)
def test_bad_binary(http: TestClient, spec: dict[str, Any], data: bytes, length: str | None) -> None:
    spec = {"name": "features", "datatype": "FP32", "parameters": {"binary_data_size": len(data)}} | spec
    head = json.dumps({"inputs": [spec]}).encode()
    reply = http.post(INFER, content=head + data, headers={HEADER_LENGTH: length or str(len(head))})
    assert reply.status_code == 422, reply.text
    assert set(reply.json()) == {"error"}


@pytest.mark.parametrize("path", [INFER, PREDICT, "/invocations", "/api/v1/score"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"[NaN]", b"5", b"null", b'{"rows": 5}'])
def test_what_is_not_a_request(http: TestClient, path: str, content: bytes) -> None:
    assert http.post(path, content=content).status_code == 422


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [5],
        [{}, {"nope": 1}],
        [{FEATURES[0]: "1"}],
        [{FEATURES[0]: 1e300}],
        [[1.0]],
        [{}, [0.0] * N],
        [{}] * (MAX_ROWS + 1),
    ],
)
def test_bad_rows(http: TestClient, rows: list[Any]) -> None:
    score = http.post("/api/v1/score", json={"rows": rows})
    assert (score.status_code, score.headers["content-type"]) == (422, "application/problem+json")
    v1 = http.post(PREDICT, json={"instances": rows})
    assert (v1.status_code, list(v1.json())) == (422, ["error"])
    mlflow = http.post("/invocations", json={"dataframe_records": rows})
    assert (mlflow.status_code, mlflow.json()["error_code"]) == (422, "BAD_REQUEST")
    assert mlflow.json()["message"] == v1.json()["error"] == score.json()["detail"]


@pytest.mark.parametrize("text", ["", "a\n1", f"{FEATURES[0]}\nx", f"{FEATURES[0]}\n1,2", f"{FEATURES[0]}\ninf", '"'])
def test_bad_csv(http: TestClient, text: str) -> None:
    reply = http.post("/invocations", content=text, headers={"content-type": "text/csv"})
    assert (reply.status_code, set(reply.json())) == (422, {"error_code", "message"})


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/models/other"),
        ("GET", "/v2/models/url-health/versions/8/ready"),
        ("POST", "/v2/models/other/infer"),
        ("POST", "/v2/models/url-health/versions/8/infer"),
        ("GET", "/v1/models/other"),
        ("POST", "/v1/models/url-health/versions/8:predict"),
        ("GET", "/v2/nope"),
    ],
)
def test_what_does_not_serve(http: TestClient, method: str, path: str) -> None:
    reply = http.request(method, path, json={})
    assert (reply.status_code, list(reply.json())) == (404, ["error"])

"""One running server, and BentoML beside it, asked by every kind of client: all get the same numbers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bentoml
import httpx
import numpy as np
import pandas as pd
import pytest
import tritonclient.http as tritonclient
from mlflow.pyfunc.scoring_server.client import ScoringServerClient

from tests.support import BIN, Api, environment, free_port, platform_process, program, wait_until
from urlhealth.features.catalog import VECTOR
from urlhealth.features.columns import names
from urlhealth.prediction.champion import load_bundled
from urlhealth.vocabulary import HORIZONS, MODEL_NAME, PROBABILITIES

FEATURES = names(VECTOR)
#: Nobody listens there: probed at once, and failing.
CLOSED = "http://127.0.0.1:9/"
#: Writes down which of these modules each process imports, in a file of its own.
WITNESS = """
import os, sys
def witness(event, arguments, folder={folder!r}):
    if event == "import" and arguments[0] in ("feast", "mlflow", "urlhealth.platform"):
        with open(os.path.join(folder, str(os.getpid())), "a") as file:
            file.write(arguments[0] + "\\n")
sys.addaudithook(witness)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Ready, and ready without what takes seconds to import."""
    folder = tmp_path_factory.mktemp("imported")
    (folder / "sitecustomize.py").write_text(WITNESS.format(folder=str(folder)))
    with platform_process(home, PYTHONPATH=str(folder)) as (api, process):
        wait_until(lambda: api.http.get("/health/ready").is_success, timeout_s=60, what="it to be ready")
        imported = (folder / str(process.pid)).read_text().split()
        assert imported == ["urlhealth.platform"]
        api.wait_done(api.submit([CLOSED]))
        wait_until(lambda: api.features([CLOSED])[0]["status"] == "fresh", timeout_s=30, what="features")
        yield api


@pytest.fixture(scope="module")
def bento(home: Path, server: Api) -> Iterator[Api]:  # noqa: ARG001 (its database)
    """`bentoml serve` on the same database."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    with program(
        str(BIN / "bentoml"), "serve", "--port", str(port),
        env=environment(home), ready_url=f"{url}/health/ready", log=home / "bento.log",
    ), Api(url) as api:  # fmt: skip
        wait_until(lambda: api.http.get("/health/ready").is_success, timeout_s=60, what="it to be ready")
        yield api


@pytest.fixture(scope="module", params=["uvicorn", "bentoml"])
def api(request: pytest.FixtureRequest, server: Api, bento: Api) -> Api:
    return server if request.param == "uvicorn" else bento


def triton(api: Api, tensor: tritonclient.InferInput) -> Any:
    """What the model gives, float64 (n, 6), by Triton's client."""
    with tritonclient.InferenceServerClient(api.url.removeprefix("http://")) as client:
        found = client.infer(MODEL_NAME, [tensor])
    return np.array([found.as_numpy(name) for name in PROBABILITIES]).T


def mlflows_client(api: Api, frame: pd.DataFrame) -> Any:
    """The same by MLflow's."""
    address = httpx.URL(api.url)
    assert address.port is not None
    client = ScoringServerClient(address.host, address.port)
    return client.invoke(frame).get_predictions().to_numpy()


def test_scores_of_features(api: Api, bento: Api) -> None:
    matrix = np.random.default_rng(2).normal(size=(5, len(FEATURES))).astype(np.float32)
    matrix[:, FEATURES.index("failing_now")] = [0, 1, 0, 0, 1]
    records = [dict(zip(FEATURES, row, strict=True)) for row in matrix.tolist()]
    tensor = tritonclient.InferInput("features", matrix.shape, "FP32")
    tensor.set_data_from_numpy(matrix)
    with bentoml.SyncHTTPClient(bento.url) as client:
        by_bento = client.score(rows=records)
    plain = api.http.post("/api/v1/score", json={"rows": records}).raise_for_status().json()["items"]
    v1 = api.http.post(f"/v1/models/{MODEL_NAME}:predict", json={"instances": records}).raise_for_status().json()
    said = {
        "plain HTTP": [[item[name] for name in PROBABILITIES] for item in plain],
        "Triton": triton(api, tensor),
        "KServe V1": [[item[name] for name in PROBABILITIES] for item in v1["predictions"]],
        "MLflow": mlflows_client(api, pd.DataFrame(matrix, columns=list(FEATURES))),
        "BentoML": [[item["probabilities"][name] for name in PROBABILITIES] for item in by_bento],
    }
    expected = load_bundled().predict_proba(matrix)
    for client, got in said.items():
        assert np.asarray(got, float) == pytest.approx(expected, abs=1e-9), client


def test_forecasts_by_url(api: Api) -> None:
    """Time goes on between the calls, and features with it; a little."""
    tensor = tritonclient.InferInput("url", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([CLOSED], dtype=object))
    v1 = api.http.post(f"/v1/models/{MODEL_NAME}:predict", json={"instances": [CLOSED]}).raise_for_status().json()
    items = {item["horizon"]: item for item in api.predict([CLOSED], horizons=list(HORIZONS))}
    plain = [items[h]["probability"] for h in HORIZONS] + [items[h]["probability_at_end"] for h in HORIZONS]
    for client, got in {
        "Triton": triton(api, tensor)[0],
        "KServe V1": [v1["predictions"][0][name] for name in PROBABILITIES],
        "MLflow": mlflows_client(api, pd.DataFrame({"url": [CLOSED]}))[0],
    }.items():
        assert np.asarray(got, float) == pytest.approx(np.array(plain), abs=0.02), client
    assert {item["health"] for item in items.values()} == {"down"}

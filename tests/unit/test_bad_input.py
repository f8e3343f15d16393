"""What nobody should send, in every protocol: a caller's error in that protocol's own form, and the server goes on."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from serving.app import create_app
from serving.errors import MEDIA_TYPE
from serving.inference import FEATURES
from tests.support import noise_forecaster
from urlhealth.platform import Platform
from urlhealth.prediction.champion import Champion
from urlhealth.settings import Settings

#: By path: the member of its errors that says what is wrong; how it wants URLs, and how rows of features.
PROTOCOLS: dict[str, tuple[str, Callable[[list[Any]], Any] | None, Callable[[list[Any]], Any] | None]] = {
    "/api/v1/predictions": ("detail", lambda urls: {"urls": urls}, None),
    "/api/v1/score": ("detail", None, lambda rows: {"rows": rows}),
    "/v2/models/url-health/infer": (
        "error",
        lambda urls: {"inputs": [{"name": "url", "datatype": "BYTES", "shape": [len(urls)], "data": urls}]},
        lambda rows: {
            "inputs": [{"name": "features", "datatype": "FP32", "shape": [len(rows), len(FEATURES)], "data": rows}]
        },
    ),
    "/v1/models/url-health:predict": ("error", lambda urls: {"instances": urls}, lambda rows: {"instances": rows}),
    "/invocations": (
        "message",
        lambda urls: {"dataframe_split": {"columns": ["url"], "data": [[url] for url in urls]}},
        lambda rows: {"dataframe_split": {"columns": list(FEATURES), "data": rows}},
    ),
}
ROW = [0.0] * len(FEATURES)
BODIES = {
    "nothing": b"",
    "no JSON": b"{",
    "not UTF-8": b"\xff\xfe",
    "deep": b"[" * 200_000,
    "deep and closed": b'{"urls": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    "10 MB of spaces": b" " * 10_000_000,
    "10 MB of text": b'"' + b"x" * 10_000_000 + b'"',
    "a list": b"[]",
    "null": b"null",
    "a number": b"1e400",
    "an empty object": b"{}",
    "another member": b'{"nobody": ["knows this"]}',
}
URLS: dict[str, list[Any]] = {
    "none": [],
    "a number": [7],
    "null": [None],
    "nested": [["https://a.example"]],
    "empty": [""],
    "no URL": ["what is this"],
    "another scheme": ["ftp://a.example/"],
    "100 kB": ["https://a.example/" + "x" * 100_000],
    "half a surrogate pair": ["https://a.example/\ud800"],
    "too many": ["https://a.example"] * 1_001,
}
ROWS: dict[str, list[Any]] = {
    "none": [],
    "a text": [["0.5", *ROW[1:]]],
    "too short": [ROW[1:]],
    "too long": [[0.0, *ROW]],
    "infinite": [[float("inf"), *ROW[1:]]],
    "NaN as a word": [[float("nan"), *ROW[1:]]],
    "too large for 32 bits": [[1e39, *ROW[1:]]],
    "a huge whole number": [[10**400, *ROW[1:]]],
    "an unknown feature": [{"nobody knows this": 1.0}],
    "nested": [[[0.0], *ROW[1:]]],
    "a truth value": [[True, *ROW[1:]]],
}


def cases() -> Iterator[tuple[str, str, bytes]]:
    for path, (_, of_urls, of_rows) in PROTOCOLS.items():
        for what, content in BODIES.items():
            yield path, what, content
        for kind, of, table in (("URLs", of_urls, URLS), ("rows", of_rows, ROWS)):
            for what, items in table.items() if of else ():
                if (path, what) == ("/invocations", "NaN as a word"):
                    continue  # MLflow's own client sends it: unknown
                yield path, f"{kind}: {what}", json.dumps(of(items)).encode()


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = Settings(home=tmp_path_factory.mktemp("home"), mlflow_tracking_uri="")
    with Platform(settings) as platform:
        platform.champion.current = Champion(name="url-health", version="1", forecaster=noise_forecaster())
        with TestClient(create_app(platform), raise_server_exceptions=False) as client:
            yield client


@pytest.mark.parametrize(("path", "what", "content"), [pytest.param(*c, id=f"{c[0]} {c[1]}") for c in cases()])
def test_it_is_the_callers_error_in_the_protocols_form(http: TestClient, path: str, what: str, content: bytes) -> None:
    reply = http.post(path, content=content, headers={"content-type": "application/json"})
    assert 400 <= reply.status_code < 500, what
    form = PROTOCOLS[path][0]
    assert reply.json()[form]
    assert reply.headers["content-type"] == (MEDIA_TYPE if form == "detail" else "application/json")
    assert len(reply.content) < 100_000


def test_the_server_goes_on(http: TestClient) -> None:
    for path, (_, of_urls, of_rows) in PROTOCOLS.items():
        for of, items in ((of_urls, ["https://a.example"] * 2), (of_rows, [ROW])):
            if of is not None:
                assert http.post(path, json=of(items)).status_code == 200


def test_nan_as_mlflows_client_sends_it_is_unknown(http: TestClient) -> None:
    def scores(value: float | None) -> Any:
        body = PROTOCOLS["/invocations"][2]
        assert body is not None
        content = json.dumps(body([[value, *ROW[1:]]])).encode()
        return http.post("/invocations", content=content).raise_for_status().json()

    assert scores(float("nan")) == scores(None)


@pytest.mark.parametrize(
    ("method", "path", "form"),
    [
        ("POST", "/api/v1/predictions?model=nobody", "detail"),
        ("POST", "/v2/models/other/infer", "error"),
        ("POST", "/v2/models/url-health/versions/99/infer", "error"),
        ("POST", "/v1/models/other:predict", "error"),
        ("POST", "/v1/models/url-health/versions/x:predict", "error"),
        ("GET", "/v2/models/other", "error"),
        ("GET", "/v1/models/other", "error"),
    ],
)
def test_unknown_models_and_versions(http: TestClient, method: str, path: str, form: str) -> None:
    content = {} if method == "GET" else {"json": {"urls": ["https://a.example"]}}
    reply = http.request(method, path, **content)
    assert reply.status_code == 404
    assert reply.json()[form]


def test_an_unknown_horizon(http: TestClient) -> None:
    body = {"urls": ["https://a.example"], "horizons": ["2h"]}
    assert http.post("/api/v1/predictions", json=body).status_code == 422

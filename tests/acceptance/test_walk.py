"""The way of a datum, walked on real servers and the real `feast`, `mlflow` and `bentoml` commands.

In the order of `docs/walkthrough.md`: a task, its probes, their features in Feast, a model in MLflow, predictions.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest

from demo.past import past
from demo.sample_web import Kind, SampleWeb
from tests.support import BIN, Api, environment, free_port, platform_process, program, run, wait_until
from urlhealth.features.catalog import GROUP_STATE, HOST_STATE, STATE_VIEWS, URL_STATE
from urlhealth.platform import Platform
from urlhealth.prediction.champion import BUNDLED
from urlhealth.settings import ROOT, Settings
from urlhealth.vocabulary import FEATURE_SERVICE, Freshness, ProbeSource, system_clock

FEAST = (str(BIN / "feast"), "-c", str(ROOT / "feature_repo"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("walk")


@pytest.fixture(scope="module")
def platform(home: Path, sample_web: SampleWeb) -> Iterator[Platform]:
    """The same stores as the server has, opened in this process, with ten days of past in them."""
    with Platform(Settings(home=home)) as opened:
        history = past(sample_web.sites, until_ms=system_clock(), days=10, every_s=1_800)
        opened.crawl.import_probes(history, source=ProbeSource.SIMULATED)
        yield opened


@pytest.fixture(scope="module")
def api(platform: Platform, sample_web: SampleWeb) -> Iterator[Api]:
    home = platform.settings.home
    with platform_process(home, URLHEALTH_CA_FILE=str(sample_web.ca_file)) as (api, _):
        yield api


@pytest.fixture(scope="module")
def urls(sample_web: SampleWeb) -> list[str]:
    return [site.url for site in sample_web.sites]


def test_1_a_task_is_probed_and_its_results_are_stored(api: Api, urls: list[str]) -> None:
    task_id = api.submit(urls)
    task = api.wait_done(task_id)
    results = api.results(task_id)

    assert [item["url"] for item in results] == urls
    assert task["done"] == task["total"] == len(urls)
    assert sum(task["outcomes"].values()) == len(urls)
    assert {"ok", "http_error", "timeout", "tls", "too_many_redirects", "too_large"} <= set(task["outcomes"])
    answered = [item for item in results if item["outcome"] == "ok"]
    assert all(item["total_ms"] > 0 and item["first_byte_ms"] is not None for item in answered)


def test_2_the_probes_become_features_in_feast(api: Api, platform: Platform, home: Path, urls: list[str]) -> None:
    wait_until(lambda: platform.pipeline_lag() == 0, timeout_s=90, what="the features to catch up")
    items = api.features(urls)
    assert {item["status"] for item in items} == {"fresh"}
    assert all(item["age_s"] < 300 for item in items)

    listed = run(*FEAST, "feature-services", "list", env=environment(home), cwd=Path("/"))
    assert FEATURE_SERVICE in listed.stdout


def test_3_online_features_equal_offline_features_at_the_same_instant(platform: Platform, urls: list[str]) -> None:
    targets = [platform.crawl.find_targets([url])[url] for url in urls]
    now = pd.Timestamp.now("UTC").as_unit("us")
    entities = pd.DataFrame(
        {
            "url": [t.key for t in targets],
            "host": [t.host for t in targets],
            "group": [t.group for t in targets],
            "event_timestamp": now,
        }
    )
    store = platform.features.feast()
    frame = store.get_historical_features(
        entities, features=store.get_feature_service(FEATURE_SERVICE), full_feature_names=True
    ).to_arrow()
    for view in STATE_VIEWS:
        offline = view.from_arrow(frame, prefix=f"{view.name}__")
        online = platform.features.read(view, entities[view.entity].tolist())
        for column in view.columns:
            np.testing.assert_array_equal(online.states[column.name], offline[column.name], err_msg=column.name)


def test_4_the_online_store_can_be_deleted_and_materialized_again(
    api: Api, platform: Platform, home: Path, urls: list[str]
) -> None:
    keys = {
        URL_STATE: [t.key for t in platform.crawl.find_targets(urls).values()],
        HOST_STATE: sorted({t.host for t in platform.crawl.find_targets(urls).values()}),
        GROUP_STATE: sorted({t.group for t in platform.crawl.find_targets(urls).values()}),
    }
    before = {view.name: platform.features.read(view, keys[view]) for view in STATE_VIEWS}
    online = [path for path in (home / "feast").iterdir() if path.is_file() and path.name.startswith("online")]
    assert online
    for path in online:
        path.unlink()
    assert {item["status"] for item in api.features(urls)} == {Freshness.MISSING}

    run(*FEAST, "materialize", "2020-01-01T00:00:00", "2100-01-01T00:00:00", env=environment(home), cwd=Path("/"))
    for view in STATE_VIEWS:
        after = platform.features.read(view, keys[view])
        assert after.states.tobytes() == before[view.name].states.tobytes()
        assert after.ts_ms.tolist() == before[view.name].ts_ms.tolist()
    assert {item["status"] for item in api.features(urls)} == {Freshness.FRESH}


def test_5_before_any_training_the_bundled_model_predicts(api: Api, urls: list[str]) -> None:
    items = api.predict(urls[:1])
    assert [item["model_version"] for item in items] == [BUNDLED]
    assert 0 < items[0]["probability"] <= 1


def test_6_training_registers_a_champion_that_mlflow_shows(home: Path) -> None:
    env = environment(home)
    run(str(BIN / "urlhealth"), "train", env=env, cwd=Path("/"))

    port = free_port()
    tracking_uri = f"sqlite:///{home / 'mlflow' / 'mlflow.db'}"
    with program(
        str(BIN / "mlflow"), "ui", "--backend-store-uri", tracking_uri, "--port", str(port), "--workers", "1",
        env=env, ready_url=f"http://127.0.0.1:{port}/health", log=home / "mlflow.log", cwd=home,
    ), httpx.Client(base_url=f"http://127.0.0.1:{port}/api/2.0/mlflow", timeout=30) as mlflow:  # fmt: skip
        model = mlflow.get("/registered-models/get", params={"name": "url-health"}).json()["registered_model"]
        assert {alias["alias"]: alias["version"] for alias in model["aliases"]}["champion"] in ("1", "2")
        run_id = next(each["run_id"] for each in model["latest_versions"] if each["version"] == "2")
        logged = mlflow.get("/runs/get", params={"run_id": run_id}).json()["run"]["data"]
        assert logged["params"]
        assert all(math.isfinite(metric["value"]) for metric in logged["metrics"])


def test_7_the_running_server_predicts_with_it(api: Api, sample_web: SampleWeb, urls: list[str]) -> None:
    def predicted() -> bool:
        return api.predict(urls[:1])[0]["model_version"] != BUNDLED

    wait_until(predicted, timeout_s=60, what="the server to load the champion")
    items = api.predict(urls, horizons=["1h", "24h"], explain=True)
    assert [(item["url"], item["horizon"]) for item in items] == [(u, h) for u in urls for h in ("1h", "24h")]
    assert {item["model"] for item in items} == {"url-health"}
    day = {item["url"]: item for item in items if item["horizon"] == "24h"}
    flapping = [day[s.url]["probability"] for s in sample_web.sites if s.kind is Kind.FLAPPING]
    steady = [day[s.url]["probability"] for s in sample_web.sites if s.kind is Kind.STEADY]
    assert min(flapping) > max(steady)
    assert all(day[url]["reasons"][0]["text"] for url in urls)

    (unknown,) = api.predict(["https://never.seen.example/"])
    assert unknown["status"] == "missing"
    assert unknown["probability"] is None
    page = api.http.get("/")
    assert page.status_code == 200
    assert "simulated" in page.text


def test_8_the_command_line_and_bentoml_predict_the_same(api: Api, home: Path, urls: list[str]) -> None:
    served = {item["url"]: item["probability"] for item in api.predict(urls[:5])}
    env = environment(home)
    printed = run(str(BIN / "urlhealth"), "predict", "--json", *urls[:5], env=env, cwd=Path("/")).stdout
    told = {row["url"]: row["probability"] for row in map(json.loads, printed.splitlines())}
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with program(
        str(BIN / "bentoml"), "serve", "--host", "127.0.0.1", "--port", str(port),
        env=env, ready_url=f"{url}/health/live", log=home / "bento.log",
    ), Api(url) as bento:  # fmt: skip
        wait_until(lambda: bento.http.get("/health/ready").status_code == 200, timeout_s=60, what="bento to be ready")
        mounted = {item["url"]: item["probability"] for item in bento.predict(urls[:5])}
    for url in urls[:5]:
        # The clock moves on between the three: the ages in the vectors are not the same to the last digit.
        assert told[url] == pytest.approx(served[url], abs=0.02)
        assert mounted[url] == pytest.approx(served[url], abs=0.02)


def test_9_feast_serves_what_the_platform_wrote(home: Path, urls: list[str], platform: Platform) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with program(
        *FEAST, "serve", "--host", "127.0.0.1", "--port", str(port),
        env=environment(home), ready_url=f"{url}/health", log=home / "feast.log", cwd=Path("/"),
    ):  # fmt: skip
        reply = httpx.post(
            f"{url}/get-online-features",
            json={"features": ["url_state:checks", "url_state:failing"], "entities": {"url": urls[:3]}},
            timeout=60,
        ).json()
    states = platform.features.read(URL_STATE, urls[:3]).states
    values = dict(zip(reply["metadata"]["feature_names"], (r["values"] for r in reply["results"]), strict=True))
    assert [int(v) for v in values["failing"]] == states["failing"].tolist()
    assert [int(v) for v in values["checks"]] == states["checks"].tolist()

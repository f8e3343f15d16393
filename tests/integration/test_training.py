"""Training on a history that was imported, through the platform's own stores, into an MLflow of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from starlette.testclient import TestClient
from typer.testing import CliRunner

from models import dataset, registry
from models.recipe import CANDIDATES, LEARNT
from models.runs import log_model, log_run
from models.search import Found, search
from models.training import TrainingReport, compare, split, train
from serving.app import create_app
from urlhealth.cli import app
from urlhealth.crawl.monitors import ALL
from urlhealth.errors import InvalidRequest, NotEnoughHistory, NotFound, StoreUnavailable
from urlhealth.features.catalog import VECTOR
from urlhealth.features.columns import names
from urlhealth.platform import Platform
from urlhealth.prediction.estimators import HealthForecaster
from urlhealth.prediction.listing import registered
from urlhealth.probing.urls import parse_target
from urlhealth.settings import Settings, quiet_third_parties
from urlhealth.vocabulary import (
    LOCAL_OWNER,
    PROBABILITIES,
    Maintenance,
    Outcome,
    ProbeResult,
    ProbeSource,
    Target,
)

HOUR_MS = 3_600_000
NOW_MS = 1_750_000_000_000
DAYS = 12
STEADY = [f"https://steady-{i}.example/" for i in range(5)]
#: Flapping in the first days, steady since: their past failure rate says the wrong thing.
MENDED = [f"https://mended-{i}.example/" for i in range(5)]
FLAPPING = [f"https://flapping-{i}.example/" for i in range(5)]


def past(
    url: str, *, days: float, seed: int, up_h: float, down_h: float = 2, mended_h: float = 1e9
) -> list[tuple[Target, ProbeResult]]:
    """Half-hourly probes of a target that is up and down for exponential times of these means, until it is mended."""
    rng = np.random.default_rng(seed)
    target = parse_target(url)
    ends_h = np.cumsum(rng.exponential([up_h, down_h], size=(400, 2)).ravel())
    probes = []
    for hour in np.arange(0, days * 24, 0.5):
        up = hour > mended_h or np.searchsorted(ends_h, hour, side="right") % 2 == 0
        ts_ms = NOW_MS - round((days * 24 - hour) * HOUR_MS) + int(rng.integers(60_000))
        outcome, status = (Outcome.OK, 200) if up else (Outcome.HTTP_ERROR, 503)
        probes.append(
            (target, ProbeResult(target=target.key, ts_ms=ts_ms, outcome=outcome, status_code=status, total_ms=40.0))
        )
    return probes


def platform_with(home: Path, probes: list[tuple[Target, ProbeResult]]) -> Platform:
    """An open platform whose features are up to date with the probes."""
    platform = Platform(Settings(home=home, mlflow_tracking_uri=""), clock=lambda: NOW_MS)
    platform.open()
    if probes:
        in_order = sorted(probes, key=lambda probe: probe[1].ts_ms)
        platform.crawl.import_probes(in_order, source=ProbeSource.IMPORT, owner=LOCAL_OWNER)
    platform.build_features()
    return platform


@dataclass(frozen=True, kw_only=True)
class Trained:
    platform: Platform
    first: TrainingReport
    lines: list[str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    probes = [probe for i, url in enumerate(STEADY) for probe in past(url, days=DAYS, seed=i, up_h=1e6)]
    probes += [probe for i, url in enumerate(MENDED) for probe in past(url, days=DAYS, seed=i, up_h=6, mended_h=100)]
    probes += [probe for i, url in enumerate(FLAPPING) for probe in past(url, days=DAYS, seed=i, up_h=12)]
    with platform_with(tmp_path_factory.mktemp("trained"), probes) as platform:
        lines: list[str] = []
        yield Trained(platform=platform, first=train(platform, budget=1, report=lines.append), lines=lines)


def client(platform: Platform) -> MlflowClient:

    return MlflowClient(tracking_uri=platform.settings.resolved_tracking_uri)


def test_the_bundled_model_is_the_first_champion_and_a_new_one_beats_both_baselines(trained: Trained) -> None:
    report = trained.first
    assert (report.version, report.promoted) == ("2", False)
    assert "against version 1: no difference beyond noise" in report.reason
    first = client(trained.platform).get_model_version_by_alias("url-health", "champion")
    assert (str(first.version), first.tags["origin"]) == ("1", "bundled")
    model = report.metrics["model"]["onset_24h"]
    for baseline in ("as it is now", "its past failure rate"):
        other = report.metrics[baseline]["onset_24h"]
        assert other.rows == model.rows > 100
        assert model.average_precision > other.average_precision + 0.05
        assert model.log_loss < other.log_loss
    assert any(line.startswith("onset_24h") and "AP" in line for line in trained.lines)
    assert "version 2 is a challenger" in trained.lines[-1]


def test_flapping_targets_rank_above_steady_ones(trained: Trained) -> None:
    assert trained.platform.champion.refresh()
    champion = trained.platform.champion.current
    assert champion is not None
    found = client(trained.platform).get_model_version("url-health", champion.version)
    assert champion.trained_ms == (None if champion.version == "1" else found.creation_timestamp)
    predictions = trained.platform.predictor.predict([*STEADY, *MENDED, *FLAPPING], horizons=["24h"], explain=True)
    risk = {p.sent_url: p.probability for p in predictions}
    assert min(risk[url] for url in FLAPPING) > max(risk[url] for url in [*STEADY, *MENDED])
    assert all(p.reasons for p in predictions)


def test_mlflow_has_the_whole_run(trained: Trained) -> None:
    mlflow_client = client(trained.platform)
    version = mlflow_client.get_model_version("url-health", trained.first.version)
    assert version.description == trained.first.reason
    run = mlflow_client.get_run(version.run_id)
    assert run.data.params["rows_train"].isdigit()
    for output in PROBABILITIES:
        for prefix in ("", "as_it_is_now/", "its_past_failure_rate/", "its_flips/", "eight_features/"):
            assert f"{prefix}{output}/brier" in run.data.metrics
        low, middle, high = (run.data.metrics[f"{output}/brier{part}"] for part in ("_low_5", "", "_high_95"))
        assert low <= middle <= high
    assert (run.data.params["candidate"], run.data.params["budget"]) == ("recipe", "1")
    note = run.data.tags["mlflow.note.content"]
    assert "because: it was asked for" in note
    assert trained.first.reason in note
    assert run.data.metrics["onset_24h/average_precision"] == pytest.approx(
        trained.first.metrics["model"]["onset_24h"].average_precision
    )
    plots = {Path(file.path).name for file in mlflow_client.list_artifacts(run.info.run_id, "plots")}
    assert plots == {"precision_recall.png", "roc.png", "reliability.png", "importance.png"}
    files = {file.path for file in mlflow_client.list_artifacts(run.info.run_id)}
    assert {"requirements.lock", "model-card.md", "importance.json"} <= files
    card = Path(mlflow_client.download_artifacts(run.info.run_id, "model-card.md")).read_text()
    assert "| onset_24h |" in card
    assert "average precision: eight features" in card
    assert {"code_version", "data_fingerprint", "test_from_ms"} <= version.tags.keys()
    assert {entry.tags[0].value for entry in run.inputs.dataset_inputs} == {"training", "testing"}


def test_the_registered_model_is_signed_and_answers_through_mlflow(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas as pd

    uri = trained.platform.settings.resolved_tracking_uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    model = mlflow.pyfunc.load_model(f"models:/url-health/{trained.first.version}")
    assert tuple(model.metadata.signature.inputs.input_names()) == names(VECTOR)
    assert tuple(model.metadata.signature.outputs.input_names()) == PROBABILITIES
    example = model.input_example if model.input_example is not None else pd.DataFrame()
    assert model.predict(example).shape == (3, len(PROBABILITIES))


def test_the_model_loads_where_only_urlhealth_can_be_imported(trained: Trained, tmp_path: Path) -> None:
    """As in a bento or an image of the serving side alone."""
    program = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"models", "serving", "demo", "benchmarks", "tests"}:
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Nothing())
import numpy as np
from urlhealth.prediction.champion import ChampionWatch
from urlhealth.settings import load_settings
watch = ChampionWatch(load_settings())
assert watch.refresh(), "no champion was loaded"
forecaster = watch.current.forecaster
print(forecaster.predict_proba(np.zeros((2, forecaster.n_features_in_))).shape)
assert not {"models", "serving"} & set(sys.modules)
"""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment | {"URLHEALTH_HOME": str(trained.platform.settings.home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(2, 6)"


def test_a_model_that_is_not_better_stays_a_challenger(trained: Trained, capfd: pytest.CaptureFixture[str]) -> None:
    quiet_third_parties()
    before = os.environ.get("MLFLOW_TRACKING_URI")
    again = train(trained.platform, budget=1, report=lambda _: None)
    assert not again.promoted
    assert "no difference beyond noise" in again.reason
    aliases = client(trained.platform).get_registered_model("url-health").aliases
    assert {alias: str(version) for alias, version in aliases.items()} == {"champion": "1", "challenger": again.version}
    assert capfd.readouterr() == ("", "")
    assert os.environ.get("MLFLOW_TRACKING_URI") == before


def rows_of(platform: Platform) -> dataset.Dataset:
    history = dataset.read_history(platform.crawl)
    known_for_s = platform.settings.known_for_s
    rng = np.random.default_rng(1)
    return dataset.build(platform.features.feast(), history, known_for_s=known_for_s, max_rows=1_000, rng=rng)


def test_failures_in_a_window_of_a_monitor_are_no_labels(tmp_path: Path) -> None:
    url = "https://one.example/"
    probes = past(url, days=4, seed=1, up_h=6)
    down_ms = next(result.ts_ms for _, result in probes if result.outcome != Outcome.OK)
    window = Maintenance(start_ms=down_ms - HOUR_MS, end_ms=down_ms + HOUR_MS)
    with platform_with(tmp_path, probes) as platform:
        rows = np.zeros(1, np.int64), np.array([down_ms - 2 * HOUR_MS])
        labels = []
        for windows in ((), (window,)):
            platform.crawl.create_monitor(url, interval_s=600, maintenance=windows)
            history = dataset.read_history(platform.crawl)
            made = dataset.labelled(
                history, *rows, lambda entities, _: np.zeros((len(entities), 1), np.float32), known_for_s=172_800
            )
            labels.append(made.Y[0, PROBABILITIES.index("onset_6h")])
            platform.crawl.delete_monitors(ALL)
    assert labels[0] == 1
    assert history.maintenance == {0: (window,)}
    after = [
        result.outcome == Outcome.OK for _, result in probes if window.end_ms <= result.ts_ms <= down_ms + 4 * HOUR_MS
    ]
    assert labels[1] == (0 if all(after) else 1)


def test_vectors_from_feast_are_of_the_instants_that_labels_are_of(trained: Trained) -> None:
    rows = rows_of(trained.platform)
    assert 900 < len(rows) <= 1_000
    state = rows.X[:, names(VECTOR).index("failing_now")]
    np.testing.assert_array_equal(state, rows.failing)
    assert 0 < state.mean() < 1


def test_a_search_tries_so_many_candidates_and_keeps_the_recipe_unless_one_is_better(trained: Trained) -> None:
    rows = rows_of(trained.platform)
    lines: list[str] = []
    found = search(rows, budget=2, seed=0, report=lines.append)
    assert list(found.losses) == list(CANDIDATES)[:2]
    better = found.losses[list(CANDIDATES)[1]] < found.losses["recipe"]
    assert found.name == "recipe" or better
    assert len(lines) == 1
    assert search(rows, budget=2, seed=0, report=lines.append) == found
    assert search(rows, budget=1, seed=0, report=lines.append) == Found(name="recipe")


def test_a_better_model_would_replace_the_champion_but_not_unasked(trained: Trained) -> None:
    platform = trained.platform
    learn, test, test_from_ms = split(rows_of(platform))
    weak = HealthForecaster(state_feature="failing_now", use=(), boosted=False)
    weak.fit(learn.X, learn.Y, feature_names=names(VECTOR))
    with registry.tracking(platform.settings) as mlflow_client:
        predictions = {"model": weak.predict_proba(test.X)}
        tags = {"test_from_ms": str(test_from_ms)}
        version = log_run(weak, predictions, learn, test, cluster=test.group, params={}, tags=tags)
        registry.promote(mlflow_client, version)
    report = train(platform, promote=False, budget=1, report=lambda _: None)
    assert not report.promoted
    assert "would be promoted" in report.reason
    assert f"against version {version}: better beyond noise" in report.reason
    aliases = client(platform).get_registered_model("url-health").aliases
    assert {alias: str(each) for alias, each in aliases.items()} == {"champion": version, "challenger": report.version}


def test_a_promotion_by_hand_can_be_taken_back(trained: Trained) -> None:
    settings = trained.platform.settings
    with registry.tracking(settings) as mlflow_client:
        before = registry.find(mlflow_client, "champion")
        registry.promote(mlflow_client, "2" if before != "2" else "1")
        assert registry.find(mlflow_client, "champion") != before
        assert registry.rollback(mlflow_client) == before
        assert registry.find(mlflow_client, "champion") == before
        assert before in [each.version for each in registry.versions(mlflow_client) if "champion" in each.aliases]
        with pytest.raises(NotFound, match="no version 77"):
            registry.promote(mlflow_client, "77")
        with pytest.raises(NotFound, match="is called nobody"):
            registry.find(mlflow_client, "nobody")


def test_on_its_page_a_version_is_promoted_and_taken_back_after_a_question(trained: Trained) -> None:
    platform = trained.platform
    platform.champion.refresh()
    before = platform.champion.serving().version
    other = "2" if before != "2" else "1"
    http = TestClient(create_app(platform), follow_redirects=True)
    page = http.get("/ui/models").text
    assert f"Version {before} serves." in page
    assert "its past failure rate" in page.partition("On what was held out")[2]

    question = http.get("/ui/models/change", params={"to": other})
    assert f"Promote version {other}</button>" in question.text
    assert platform.champion.serving().version == before
    assert http.post("/ui/models/change", content=f"to=77&now={before}").status_code == 404
    assert http.post("/ui/models/change", content=f"to={other}&now={other}").status_code == 409
    assert f"Version {other} serves." in http.post("/ui/models/change", content=f"to={other}&now={before}").text
    assert f'<a href="/ui/models/change">Roll back</a> to version {before}.' in http.get("/ui/models").text
    assert f"Version {before} serves." in http.post("/ui/models/change", content=f"to=&now={other}").text


def test_a_version_leads_to_its_run_where_mlflow_has_pages(trained: Trained) -> None:
    settings = trained.platform.settings
    assert [each.run_page for each in registered(settings, limit=1)] == [None]
    told = settings.model_copy(update={"mlflow_ui": "https://mlflow.example/"})
    for each in registered(told, limit=9):
        run = client(trained.platform).get_run(str(each.version.run_id))
        page = f"https://mlflow.example/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        assert each.run_page == page


def test_a_model_of_ones_own_is_served_by_name_and_the_server_follows_its_promotion(trained: Trained) -> None:
    platform = trained.platform
    learn, _, _ = split(rows_of(platform))
    own = HealthForecaster(state_feature="failing_now", use=("log_flips_7d",), boosted=False)
    own.fit(learn.X, learn.Y, feature_names=names(VECTOR))
    with registry.tracking(platform.settings) as mlflow_client:
        before = registry.find(mlflow_client, "champion")
        mlflow.set_experiment("mine")
        with mlflow.start_run():
            version = log_model(own, learn.X[:3], {"origin": "mine"})
        mlflow_client.set_registered_model_alias("url-health", "mine", version)
    platform.champion.refresh()
    with TestClient(create_app(platform)) as http:

        def forecasts(**params: str) -> tuple[set[str], list[float]]:
            reply = http.post("/api/v1/predictions", json={"urls": [STEADY[0], FLAPPING[0]]}, params=params)
            items = reply.raise_for_status().json()["items"]
            return {item["model_version"] for item in items}, [item["probability"] for item in items]

        vectors = http.post("/api/v1/features", json={"urls": [STEADY[0], FLAPPING[0]]}).json()["items"]
        X = np.array([[item["features"][name] for name in names(VECTOR)] for item in vectors], np.float64)
        mine = {version}, pytest.approx(own.predict_proba(X)[:, PROBABILITIES.index("onset_24h")].tolist())
        first = forecasts()
        assert first[0] == {before}
        assert forecasts(model="url-health@mine") == forecasts(model=version) == mine != first
        with registry.tracking(platform.settings) as mlflow_client:
            registry.promote(mlflow_client, version)
            assert platform.champion.refresh()
            assert forecasts() == mine
            assert registry.rollback(mlflow_client) == before
            assert platform.champion.refresh()
        assert forecasts() == first


def test_features_that_the_champion_learnt_from_are_watched_for_drift(trained: Trained) -> None:
    platform = trained.platform
    with registry.tracking(platform.settings) as mlflow_client:
        before = registry.find(mlflow_client, "champion")
        registry.promote(mlflow_client, "1")
        platform.champion.refresh()
        assert platform.drift_of_learnt() is None  # the bundled one was not trained here
        registry.promote(mlflow_client, trained.first.version)
        platform.champion.refresh()
        moved = platform.drift_of_learnt()
        assert moved is not None
        assert moved.feature in LEARNT
        assert 0 < moved.psi <= platform.drift().largest_psi
        registry.promote(mlflow_client, before)


def test_two_versions_are_compared_on_the_newest_part_of_the_history(trained: Trained) -> None:
    lines = list(compare(trained.platform, ("url-health/1", "url-health/2")))
    assert "url-health version 1" in lines[0]
    assert "difference beyond noise" in lines[-1] or "better beyond noise" in lines[-1]
    with pytest.raises(InvalidRequest, match="url-health@ALIAS"):
        list(compare(trained.platform, ("other", "url-health/1")))


def test_the_commands_list_promote_take_back_and_explain(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("URLHEALTH_HOME", str(trained.platform.settings.home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def said(*arguments: str) -> str:
        done = CliRunner().invoke(app, [*arguments], env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.output
        return done.output

    assert "ships with urlhealth" in said("models", "list")
    listed = [json.loads(line) for line in said("models", "list", "--json").splitlines()]
    found = client(trained.platform).search_model_versions("name = 'url-health'")
    assert [each["version"] for each in listed] == sorted((str(each.version) for each in found), key=int, reverse=True)
    assert {"1", "2"} <= {each["version"] for each in listed}
    assert ["champion"] in [each["aliases"] for each in listed]
    with registry.tracking(trained.platform.settings) as mlflow_client:
        before = registry.find(mlflow_client, "champion")
    other = "2" if before == "1" else "1"
    assert f"version {other} is the champion" in said("models", "promote", other)
    lines = said("explain", FLAPPING[0]).splitlines()
    assert FLAPPING[0] in lines[0]
    assert "may fail within 24h" in lines[0]
    assert len(lines) > 1
    assert all("█" in line for line in lines[1:])
    explained = json.loads(said("explain", "--json", FLAPPING[0]))
    assert len(explained["reasons"]) == len(lines) - 1
    assert f"version {before} is the champion again" in said("models", "rollback")


@pytest.mark.parametrize(
    ("days", "up_h", "message"),
    [
        (0, 1, "no probe is stored yet"),
        (3, 10, "too short.*3.0 days, and 5.0 days are needed"),
        (7, 1e6, "nothing ever failed"),
    ],
)
def test_what_cannot_be_learnt_from_is_said(tmp_path: Path, days: float, up_h: float, message: str) -> None:
    probes = past("https://one.example/", days=days, seed=1, up_h=up_h)
    with platform_with(tmp_path, probes) as platform, pytest.raises(NotEnoughHistory, match=message):
        train(platform, report=lambda _: None)


@pytest.mark.parametrize("obstacle", ["mlflow", "mlflow/mlflow.db"])
def test_an_mlflow_store_that_cannot_be_opened_is_said(tmp_path: Path, obstacle: str) -> None:
    (tmp_path / obstacle).parent.mkdir(exist_ok=True)
    (tmp_path / obstacle).write_bytes(b"no database" * 100)
    before = os.environ.get("MLFLOW_TRACKING_URI")
    with (
        pytest.raises(StoreUnavailable, match=r"MLflow store sqlite:.* cannot be used: .*MLFLOW_TRACKING_URI"),
        registry.tracking(Settings(home=tmp_path, mlflow_tracking_uri="")),
    ):
        pass
    assert os.environ.get("MLFLOW_TRACKING_URI") == before

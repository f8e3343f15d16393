"""`urlhealth migrate-store`: after it, the platform on PostgreSQL and Redis answers as it did before."""

import json
import shutil
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from models import registry
from tests.support import BIN, environment, run, served_by
from urlhealth.crawl.schema import leases, metadata
from urlhealth.errors import ConfigurationError, InvalidRequest
from urlhealth.features.catalog import STATE_VIEWS
from urlhealth.migration import Moved, embedded, migrate
from urlhealth.platform import Platform
from urlhealth.probing.options import parse_options
from urlhealth.probing.urls import parse_target
from urlhealth.settings import Settings
from urlhealth.vocabulary import LOCAL_OWNER, Outcome, ProbeResult

HOUR_MS = 3_600_000
NOW_MS = 1_767_225_600_000
#: The last one is longer than a key of LMDB can be.
URLS = [*(f"https://h{i}.example.com/" for i in range(7)), f"https://long.example.org/{'x' * 700}"]
HORIZONS = ["1h", "6h", "24h"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home folder of an embedded platform that has seen something of everything."""
    home = tmp_path_factory.mktemp("made") / "home"
    with Platform(Settings(home=home, mlflow_tracking_uri=""), clock=lambda: NOW_MS) as platform:
        crawl = platform.crawl
        for i, url in enumerate(URLS):
            target = parse_target(url)
            crawl.import_probes(
                (target, ProbeResult(target=target.key, ts_ms=NOW_MS - hour * HOUR_MS, outcome=outcome, error="it's"))
                for hour in range(60, 0, -1)
                for outcome in [Outcome.TIMEOUT if hour % (i + 5) < 2 else Outcome.OK]
            )
        crawl.create_monitor(URLS[0], interval_s=60, options=parse_options({"headers": {"Authorization": "secret"}}))
        crawl.create_monitor(URLS[1], interval_s=30, tags=("a", "b"))
        crawl.create_task(URLS)
        crawl.delete_task(crawl.create_task(URLS[:2]).task_id)
        platform.keys.create("me", scopes=["read"])
        platform.roll_up()
        platform.build_features()
        with registry.tracking(platform.settings):
            pass  # the bundled model is its champion
        for request in ("in the files", "in the database"):
            platform.log_predictions(request, predict(platform), owner=LOCAL_OWNER)
            if request == "in the files":
                served_by(platform)
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    """A test's own copy of it."""
    return Path(shutil.copytree(made, tmp_path / "home"))


@pytest.fixture
def scaled(tmp_path: Path, postgres_database: sa.URL, redis_server: str) -> Settings:
    """Settings of a platform on new stores: two schemas of PostgreSQL, a prefix of Redis, another home folder."""
    urls = []
    for what in ("store", "models"):
        schema = f"{what}_{uuid.uuid4().hex[:12]}"
        server = sa.create_engine(postgres_database)
        with server.begin() as connection:
            connection.execute(sa.text(f"CREATE SCHEMA {schema}"))
        server.dispose()
        own = postgres_database.update_query_dict({"options": f"-csearch_path={schema}"})
        urls.append(own.render_as_string(hide_password=False))
    (tmp_path / "new").mkdir()
    return Settings(
        home=tmp_path / "new",
        database_url=urls[0],
        mlflow_tracking_uri=urls[1],
        online_store=f"{redis_server}-{uuid.uuid4().hex[:8]}",
    )


def predict(platform: Platform) -> Any:
    platform.champion.refresh()
    return platform.predictor.predict(URLS, horizons=HORIZONS, explain=True)


def answers(settings: Settings) -> dict[str, Any]:
    """What a platform says of all that is in it."""
    keys = {"url": URLS, "host": ["h1.example.com", "long.example.org"], "group": ["example.com", "example.org"]}
    with Platform(settings, clock=lambda: NOW_MS) as platform:
        crawl = platform.crawl
        forecasts = predict(platform)
        assert len(forecasts.sent_urls) == len(URLS)
        return {
            "predictions": list(forecasts),
            "online": [
                (found.states.tobytes(), found.ts_ms.tolist())
                for view in STATE_VIEWS
                for found in [platform.features.read(view, keys[view.entity])]
            ],
            "stores agree": platform.check_features().ok,
            "monitors": list(crawl.iter_monitors()),
            "tasks": [(task, list(crawl.iter_results(task.task_id))) for task in crawl.tasks(limit=10).items],
            "history": [crawl.url_history(url, from_ms=NOW_MS - 60 * HOUR_MS, to_ms=NOW_MS) for url in URLS],
            "states": [crawl.url_state(url, known_for_s=settings.known_for_s) for url in URLS],
            "incidents": [crawl.url_incidents(url, limit=500).items for url in URLS],
            "position": platform.carried.position(),
            "waiting": platform.pipeline_lag(),
            "keys": platform.keys.keys(),
            "served": platform.quality(from_ms=0, to_ms=NOW_MS + 1, owner=LOCAL_OWNER),
        }


def test_the_platform_answers_the_same_on_the_new_stores(home: Path, scaled: Settings) -> None:
    old = Settings(home=home, mlflow_tracking_uri="")
    before = answers(old)
    assert before["waiting"] == 0
    assert before["stores agree"]
    (scaled.home / "secret.key").write_bytes((home / "secret.key").read_bytes())
    env = environment(
        scaled.home,
        URLHEALTH_DATABASE_URL=scaled.database_url,
        URLHEALTH_ONLINE_STORE=scaled.online_store,
        MLFLOW_TRACKING_URI=scaled.mlflow_tracking_uri,
    )
    command = (str(BIN / "urlhealth"), "migrate-store", "--from", str(home))
    moved = [Moved(**json.loads(line)) for line in run(*command, "--json", env=env).stdout.splitlines()]
    rows = {(each.part, each.name): each.target_rows for each in moved}
    assert all(each.source_rows == each.target_rows for each in moved)
    assert rows["database", "probes"] == 60 * len(URLS)
    assert rows["database", "task_urls"] == rows["online features", "url_state"] == len(URLS)
    assert rows["offline features", "url_state"] == 60 * len(URLS)
    assert rows["offline features", "served_predictions"] == len(URLS) * len(HORIZONS)
    assert rows["models", "registered_models"] == 1
    assert {name for part, name in rows if part == "database"} == set(metadata.tables) - {"leases"}

    assert answers(scaled) == before
    assert answers(old) == before, "the source was changed"

    again = run(*command, env=env, check=False)
    assert again.returncode == 1
    assert "is not empty" in again.stderr

    # Numbers go on, also those of rows that were deleted; so does the pipeline, and without a rebuild.
    with Platform(scaled, clock=lambda: NOW_MS) as platform:
        with closing(sqlite3.connect(home / "urlhealth.db")) as file:
            given = dict(file.execute("SELECT name, seq FROM sqlite_sequence"))
        task = platform.crawl.create_task(URLS[:1])
        (number,) = (each.number for each in platform.crawl.open_tasks(limit=9) if each.task_id == task.task_id)
        assert number == given["tasks"] + 1 == 3
        target = parse_target(URLS[0])
        platform.crawl.import_probes([(target, ProbeResult(target=target.key, ts_ms=NOW_MS, outcome=Outcome.TIMEOUT))])
        assert platform.crawl.last_verdict() == given["probes"] + 1
        assert platform.pipeline_lag() == 1
        platform.build_features()
        assert platform.check_features().ok
        assert platform.features.read(STATE_VIEWS[0], URLS[:1]).states["failing"].tolist() == [1]
        platform.champion.refresh()
        assert platform.champion.current is not None


def test_what_breaks_off_is_done_again(home: Path, scaled: Settings) -> None:
    (scaled.home / "secret.key").write_bytes((home / "secret.key").read_bytes())
    source = embedded(home, scaled)
    parts = []
    for part in ("models", "online features", "offline features", "database"):
        moving = migrate(source, scaled)
        while next(moving).part != part:
            pass
        moving.close()  # as far as this part, and no further
        parts.append(part)
        with Platform(scaled).open(check=False) as platform:
            assert platform.crawl.counts()["targets"] == 0
    assert {each.part for each in migrate(source, scaled)} == set(parts)
    assert answers(scaled) == answers(Settings(home=home, mlflow_tracking_uri=""))


def test_other_features_are_replaced_only_if_that_is_said(home: Path, scaled: Settings) -> None:
    scaled = scaled.model_copy(update={"mlflow_tracking_uri": f"sqlite:///{home / 'mlflow' / 'mlflow.db'}"})
    (scaled.home / "secret.key").write_bytes((home / "secret.key").read_bytes())
    source = embedded(home, scaled)
    with Platform(scaled.model_copy(update={"database_url": ""}), clock=lambda: NOW_MS) as other:
        target = parse_target("https://other.example.com/")
        other.crawl.import_probes([(target, ProbeResult(target=target.key, ts_ms=NOW_MS, outcome=Outcome.OK))])
        other.build_features()
    with pytest.raises(InvalidRequest, match=r"url_state already.*--replace-features"):
        list(migrate(source, scaled))
    assert {each.part for each in migrate(source, scaled, replace_features=True)} == {
        "online features", "offline features", "database"
    }  # fmt: skip
    assert answers(scaled) == answers(Settings(home=home, mlflow_tracking_uri=""))


def test_what_cannot_be_moved_is_refused_before_anything_is(home: Path, scaled: Settings, tmp_path: Path) -> None:
    source = embedded(home, scaled)
    with pytest.raises(ConfigurationError, match=r"key in .*secret\.key.*copy the file to"):
        list(migrate(source, scaled))
    (scaled.home / "secret.key").write_bytes((home / "secret.key").read_bytes())
    with pytest.raises(InvalidRequest, match=r"has no urlhealth\.db.*--from"):
        list(migrate(embedded(tmp_path / "none", scaled), scaled))
    with pytest.raises(InvalidRequest, match=r"the settings name the stores in .* already"):
        list(migrate(source, source))
    with pytest.raises(ConfigurationError, match=r"sqlite:////.* cannot be moved to: set URLHEALTH_DATABASE_URL"):
        list(migrate(source, scaled.model_copy(update={"database_url": f"sqlite:///{tmp_path / 'x.db'}"})))
    with pytest.raises(ConfigurationError, match=r"http://mlflow:5000: set MLFLOW_TRACKING_URI to the database"):
        list(migrate(source, scaled.model_copy(update={"mlflow_tracking_uri": "http://mlflow:5000"})))
    with closing(sqlite3.connect(home / "urlhealth.db")) as file, file:
        file.execute(f"INSERT OR REPLACE INTO {leases.name} VALUES ('writer', 'somebody', {NOW_MS + 1})")
    with pytest.raises(InvalidRequest, match="somebody is at work on sqlite:"):
        list(migrate(source, scaled, clock=lambda: NOW_MS))
    with Platform(scaled) as platform:
        assert platform.crawl.counts()["targets"] == 0
        assert platform.features.read(STATE_VIEWS[0], URLS).ts_ms.tolist() == [0] * len(URLS)

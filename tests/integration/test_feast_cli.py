"""Feast's own command line on the platform's stores, from `/`, and on a repo that `feast init` made."""

from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support import BIN, ROOT, environment, free_port, program, run
from urlhealth.feast_stores.stores import FeatureStores
from urlhealth.features.catalog import STATE_VIEWS, URL_STATE
from urlhealth.features.columns import StateRows, States
from urlhealth.settings import Settings

FEAST = (str(BIN / "feast"), "-c", str(ROOT / "feature_repo"))
NOW_MS = int(datetime(2026, 1, 5, tzinfo=UTC).timestamp() * 1000)
KEYS = [f"https://host{i}.test/" for i in range(5)]


@pytest.fixture
def stores(tmp_path: Path) -> FeatureStores:
    return FeatureStores(Settings(home=tmp_path))


def write(stores: FeatureStores) -> None:
    """Two rows a key and view; checks and the like are 1, then 2."""
    for view in STATE_VIEWS:
        for step in (1, 2):
            states = view.initial(len(KEYS))
            for column in view.columns:
                states[column.name] = step
            ts_ms = np.full(len(KEYS), NOW_MS + step * 60_000)
            rows = StateRows(view=view, keys=np.array(KEYS, object), ts_ms=ts_ms, states=states)
            with stores.staged([rows], segment=f"{step}", created_ms=NOW_MS) as publish:
                publish()


def read(stores: FeatureStores) -> list[States]:
    return [stores.read(view, KEYS).states for view in STATE_VIEWS]


def test_the_shell_works_on_what_the_platform_wrote(stores: FeatureStores, tmp_path: Path) -> None:
    env, root = environment(tmp_path), Path("/")
    env.pop("FEAST_FS_YAML_FILE_PATH", None)
    write(stores)
    before = read(stores)
    assert before[0]["checks"].tolist() == [2] * len(KEYS)
    run(*FEAST, "apply", env=env, cwd=root)
    assert "url_health_v1" in run(*FEAST, "feature-services", "list", env=env, cwd=root).stdout

    online = tmp_path / "feast" / "online.db"
    online.unlink()
    assert not read(stores)[0]["checks"].any()
    run(*FEAST, "materialize", "2026-01-01T00:00:00", "2026-01-05T00:01:30", env=env, cwd=root)
    assert read(stores)[0]["checks"].tolist() == [1] * len(KEYS)
    run(*FEAST, "materialize-incremental", "2026-01-06T00:00:00", env=env, cwd=root)
    assert [states.tobytes() for states in read(stores)] == [states.tobytes() for states in before]

    port, log = free_port(), tmp_path / "feast.log"
    url = f"http://127.0.0.1:{port}"
    serve = (*FEAST, "serve", "--host", "127.0.0.1", "--port", str(port))
    with program(*serve, env=env, cwd=root, ready_url=f"{url}/health", log=log):
        body = {
            "feature_service": "url_health_v1",
            "entities": {"url": [KEYS[0], "never seen"], "host": [KEYS[1]] * 2, "group": [KEYS[2]] * 2},
            "full_feature_names": True,
        }
        reply = httpx.post(f"{url}/get-online-features", json=body, timeout=30).raise_for_status().json()
        values = dict(zip(reply["metadata"]["feature_names"], reply["results"], strict=True))
        assert values["url_state__checks"]["values"] == [2, None]
        assert values["url_state__checks"]["statuses"] == ["PRESENT", "NOT_FOUND"]
        assert values["url_state__onsets"]["values"][0] == [2.0] * URL_STATE.dtype["onsets"].shape[0]
        assert len(values) == 3 + sum(len(view.columns) for view in STATE_VIEWS)

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with program(*FEAST, "ui", "--host", "127.0.0.1", "--port", str(port), env=env, cwd=root, ready_url=url, log=log):
        assert "html" in httpx.get(url, timeout=30).raise_for_status().headers["content-type"]
        listed = httpx.get(f"{url}/api/v1/feature_views", params={"project": "urlhealth"}, timeout=30)
        assert "url_state" in listed.raise_for_status().text


WORKFLOW = """
from datetime import datetime, timedelta
import pandas as pd
from feast import FeatureStore
store = FeatureStore(".")
refs = ["driver_hourly_stats:conv_rate", "driver_hourly_stats:avg_daily_trips", "driver_hourly_stats:driver_config"]
online = store.get_online_features(refs, [{"driver_id": i} for i in range(1001, 1007)]).to_dict()
assert online["conv_rate"][5] is None and "max_distance_km" in online["driver_config"][0], online
known = pd.DataFrame(
    {
        "driver_id": range(1001, 1006),
        "event_timestamp": [datetime.now()] * 5,
        "val_to_add": range(5),
        "val_to_add_2": range(10, 15),
    }
)
services = store.get_feature_service("driver_activity_v2")
offline = store.get_historical_features(known, services).to_df()
pd.testing.assert_series_equal(
    offline["conv_rate"], pd.Series(online["conv_rate"][:5], dtype="float32"), check_names=False
)
assert (offline["conv_rate_plus_val1"] - offline["conv_rate"] - known["val_to_add"]).abs().max() < 1e-6
later = datetime.now() + timedelta(hours=1)
stats = offline.drop(columns=[name for name in offline.columns if "val" in name or name == "event_timestamp"])
stats = stats.assign(event_timestamp=later, created=later, conv_rate=0.125)
store.push("driver_stats_push_source", stats)
fresh = store.get_online_features(["driver_hourly_stats_fresh:conv_rate"], [{"driver_id": 1001}]).to_dict()
assert fresh["conv_rate"] == [0.125], fresh
print("workflow done")
"""


def test_a_repo_made_by_feast_init_runs_on_our_stores(tmp_path: Path) -> None:
    env = environment(tmp_path / "home")
    env.pop("FEAST_FS_YAML_FILE_PATH", None)
    run(str(BIN / "feast"), "init", "drivers", env=env, cwd=tmp_path)
    repo = tmp_path / "drivers" / "feature_repo"
    (repo / "test_workflow.py").unlink()  # it runs the whole workflow once more
    (repo / "feature_store.yaml").write_text(
        "project: drivers\n"
        "provider: local\n"
        "registry:\n"
        "  registry_store_type: urlhealth.feast_stores.registry.AtomicFileRegistryStore\n"
        "  path: data/registry.db\n"
        "  pickled_functions: true\n"  # of its on-demand views
        "offline_store:\n  type: urlhealth.feast_stores.offline.UrlHealthOfflineStore\n"
        "online_store:\n  type: urlhealth.feast_stores.online.PackedOnlineStore\n  path: data/online.db\n"
        "batch_engine:\n  type: urlhealth.feast_stores.engine.ArrowBatchEngine\n"
        "entity_key_serialization_version: 3\n"
    )
    run(str(BIN / "feast"), "apply", env=env, cwd=repo)
    run(str(BIN / "feast"), "materialize-incremental", datetime.now(UTC).isoformat(), env=env, cwd=repo)
    assert (repo / "data" / "online.db").exists()
    assert (repo / "data" / "registry.db").exists()
    (repo / "workflow.txt").write_text(WORKFLOW)
    assert "workflow done" in run(str(BIN / "python"), "workflow.txt", env=env, cwd=repo).stdout

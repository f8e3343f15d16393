"""MLflow's artifacts in object storage: on a real server of S3 (moto's)."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from models import registry
from tests.contract.conftest import postgres_database
from tests.support import BIN, environment, free_port, program
from urlhealth.features.catalog import VECTOR
from urlhealth.migration import embedded, migrate
from urlhealth.platform import Platform
from urlhealth.prediction.champion import ChampionWatch
from urlhealth.settings import Settings

__all__ = ["postgres_database"]

#: The server takes whatever is signed.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret"}


@dataclass(frozen=True)
class Bucket:
    """A bucket called `models`."""

    #: How programs find its server.
    environment: dict[str, str]
    client: Any

    def names(self) -> list[str]:
        """Of all objects."""
        return [item["Key"] for item in self.client.list_objects_v2(Bucket="models").get("Contents", [])]


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Bucket]:
    import boto3

    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = (str(BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(port))
    with program(*command, env=dict(os.environ), ready_url=f"{address}/moto-api/", log=tmp_path / "s3.log"):
        client = boto3.Session(*CREDENTIALS.values()).client("s3", endpoint_url=address)
        client.create_bucket(Bucket="models")
        yield Bucket({**CREDENTIALS, "MLFLOW_S3_ENDPOINT_URL": address}, client)
        client.close()


@pytest.mark.timeout(180)
def test_models_behind_a_server_that_keeps_them_in_a_bucket(tmp_path: Path, bucket: Bucket) -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [
        str(BIN / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{tmp_path / 'mlflow.db'}", "--artifacts-destination", "s3://models/here",
    ]  # fmt: skip
    settings = Settings(home=tmp_path / "home", mlflow_tracking_uri=address)
    env = environment(tmp_path, **bucket.environment)
    with program(*command, env=env, ready_url=f"{address}/health", log=tmp_path / "mlflow.log"):
        with registry.tracking(settings):
            pass  # registers the bundled model
        watch = ChampionWatch(settings)  # without credentials: the server has them
        watch.refresh()
        assert watch.current is not None, watch.problem
    assert any(name.startswith("here/") and name.endswith(".skops") for name in bucket.names())


def test_models_are_moved_into_a_bucket(
    tmp_path: Path, bucket: Bucket, postgres_database: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    old = Settings(home=tmp_path, mlflow_tracking_uri="")
    with Platform(old) as platform, registry.tracking(old):
        platform.champion.refresh()
        X = np.zeros((3, len(VECTOR)))
        before = platform.champion.current.forecaster.predict_proba(X)
    new = Settings(home=tmp_path, mlflow_tracking_uri=postgres_database.render_as_string(hide_password=False))
    moved = {each.name: each for each in migrate(embedded(tmp_path, new), new, artifacts="s3://models/moved/")}
    assert moved["files"].target_rows == len(bucket.names()) >= 5
    shutil.rmtree(old.mlflow_artifacts)
    watch = ChampionWatch(new)
    watch.refresh()
    assert watch.current is not None, watch.problem
    assert np.array_equal(watch.current.forecaster.predict_proba(X), before)

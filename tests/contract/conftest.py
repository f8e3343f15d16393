"""The backends that the contract tests of the crawl's database and of the online store run on."""

import importlib.util
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.support import unavailable
from urlhealth.crawl.database import open_database
from urlhealth.crawl.lease import Lease

POSTGRES = os.environ.get("URLHEALTH_TEST_POSTGRES", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres")
REDIS = os.environ.get("URLHEALTH_TEST_REDIS", "redis://127.0.0.1:6379/0")


@pytest.fixture(scope="session")
def postgres_database() -> Iterator[sa.URL]:
    """A database of this session's own on the PostgreSQL server, dropped at the end."""
    if importlib.util.find_spec("psycopg") is None:
        unavailable("PostgreSQL: psycopg is not installed")
    url = sa.make_url(POSTGRES)
    server = sa.create_engine(url, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 2})
    name = f"urlhealth_test_{uuid.uuid4().hex[:12]}"
    try:
        with server.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
    except sa.exc.OperationalError as error:
        unavailable(f"PostgreSQL: no server answers: {str(error.orig).splitlines()[0]}")
    yield url.set(database=name)
    with server.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database: a file of the test's own, a schema of its own."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'urlhealth.db'}"
    url: sa.URL = request.getfixturevalue("postgres_database")
    schema = f"test_{uuid.uuid4().hex[:12]}"
    server = sa.create_engine(url)
    with server.begin() as connection:
        connection.execute(sa.text(f"CREATE SCHEMA {schema}"))
    server.dispose()
    own = url.update_query_dict({"options": f"-csearch_path={schema}"})
    return own.render_as_string(hide_password=False)


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    """The database, opened and migrated."""
    engine = open_database(database_url)
    yield engine
    engine.dispose()


class HandClock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_ms = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> HandClock:
    """2027-01-15 08:00 UTC, until the test moves it."""
    return HandClock()


@pytest.fixture
def lease(engine: sa.Engine, clock: HandClock) -> Lease:
    """The writer's lease, held for 10 s."""
    lease = Lease(engine, holder="me", ttl_s=10, clock=clock)
    assert lease.acquire()
    return lease


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """The URL of a Redis server; what this session's tests have put there is deleted at the end."""
    if importlib.util.find_spec("redis") is None:
        unavailable("Redis: redis is not installed")
    from redis import Redis, RedisError

    client = Redis.from_url(REDIS, socket_connect_timeout=2)
    try:
        client.ping()
    except RedisError as error:
        unavailable(f"Redis: no server answers: {error}")
    session = f"urlhealth-test-{uuid.uuid4().hex[:12]}"
    yield f"{REDIS}?prefix={session}"
    for key in client.scan_iter(f"{{{session}*", count=1000):
        client.unlink(key)
    client.close()


@pytest.fixture(params=["file", "redis"], scope="module")
def online_store(request: pytest.FixtureRequest) -> str:
    """The setting of an online store that no other test module uses: none for the file, a URL for Redis."""
    if request.param == "file":
        return ""
    server: str = request.getfixturevalue("redis_server")
    return f"{server}-{uuid.uuid4().hex[:8]}"

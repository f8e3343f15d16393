"""Where the Feast stores are: where the YAML says, relative to the repo, or else where the settings say."""

from pathlib import Path
from typing import Final

from urlhealth.feast_stores.lmdb_rows import LmdbRows
from urlhealth.feast_stores.redis_rows import RedisRows
from urlhealth.feast_stores.rows import OnlineRows
from urlhealth.settings import Settings, load_settings

REGISTRY_FILE: Final = "registry.db"
ONLINE_FILE: Final = "online.db"
OFFLINE_FOLDER: Final = "offline"


def store_path(path: str | None, repo: Path | None, default: str, settings: Settings | None = None) -> Path:
    """`path` of a store's configuration, or `default` in Feast's folder of the home folder; absolute."""
    if path:
        return (repo or Path()).absolute() / path
    return (settings or load_settings()).feast_home / default


def online_rows(path: str | None, redis: str | None, repo: Path | None, settings: Settings | None = None) -> OnlineRows:
    """The rows at `path` or on the server `redis` of the online store's configuration, or else of the settings.

    Raises:
        ConfigurationError: `redis` is no URL of a Redis server.
    """
    if not (path or redis):
        redis = (settings or load_settings()).online_store
    return RedisRows(redis) if redis else LmdbRows(store_path(path, repo, ONLINE_FILE, settings))

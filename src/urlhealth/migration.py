"""From the embedded stores of a home folder to those that the settings name: each concern that is elsewhere is moved.

While it goes on, nobody else writes to either database: it is one transaction of both. The features are copied within
it, each view whole or not at all, and the database is committed at the end, so that what is carried never stands
without the features that it belongs to. What breaks off is done again from its beginning; the source stays as it was.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from urlhealth.crawl import moving as tables
from urlhealth.crawl.database import open_database, writing
from urlhealth.errors import ConfigurationError, InvalidRequest, StoreUnavailable
from urlhealth.feast_stores import moving as features
from urlhealth.feast_stores.stores import FeatureStores
from urlhealth.features.catalog import STATE_VIEWS
from urlhealth.prediction import moving as models
from urlhealth.settings import Settings, redacted, variable
from urlhealth.vocabulary import Clock, system_clock


@dataclass(frozen=True, kw_only=True)
class Moved:
    """One table, view or dataset that was copied."""

    #: `database`, `online features`, `offline features` or `models`.
    part: str
    name: str
    #: Rows where it came from, and where it is now; a move in which they differ is refused.
    source_rows: int
    target_rows: int


def embedded(home: Path, settings: Settings) -> Settings:
    """The settings of the embedded stores in a home folder; what is no place of a store is as in `settings`."""
    stores = ("database_url", "online_store", "mlflow_tracking_uri", "feast_yaml")
    fields = Settings.model_fields
    values = {name: fields[name].default if name in stores else getattr(settings, name) for name in fields}
    return Settings(**{**values, "home": home})  # no copy, which would keep what was resolved before


def migrate(
    source: Settings,
    target: Settings,
    *,
    replace_features: bool = False,
    artifacts: str | None = None,
    clock: Clock = system_clock,
) -> Iterator[Moved]:
    """Move what the settings have at two places. All is done when the iterator is at its end.

    Args:
        source: of :func:`embedded`.
        target: the settings that the platform will have.
        replace_features: features that the target has already, and that are others, are replaced.
        artifacts: where models and plots are copied to, as MLflow spells it; None leaves them where they are.

    Raises:
        ConfigurationError: a target cannot be moved to.
        InvalidRequest: a server is at work, there is nothing to move, or a target is not empty.
        StoreUnavailable: a store failed, or counts differ. The databases are as they were.
    """
    file = Path(source.resolved_database_url.removeprefix("sqlite:///"))
    if not file.exists():
        raise InvalidRequest(f"{source.home} has no {file.name}: name the home folder to move from, by --from")
    _require_key(source, target)
    before, after = FeatureStores(source), FeatureStores(target)
    uris = source.resolved_tracking_uri, target.resolved_tracking_uri
    elsewhere = {
        "database": source.resolved_database_url != target.resolved_database_url,
        "online": len({stores.online(STATE_VIEWS[0])[0].place for stores in (before, after)}) > 1,
        "offline": before.offline_folder != after.offline_folder,
        "models": models.are_to_move(*uris),
    }
    if not any(elsewhere.values()):
        raise InvalidRequest(f"the settings name the stores in {source.home} already: set {_SWITCHES}")
    if artifacts is not None and not elsewhere["models"]:
        raise InvalidRequest(f"models do not move, so their files cannot: see {variable('mlflow_tracking_uri')}")
    with ExitStack() as stack:
        there = stack.enter_context(_opened(source))
        tables.require_no_writer(there, now_ms=clock())
        if elsewhere["database"]:
            if not target.resolved_database_url.startswith("postgresql"):
                raise ConfigurationError(
                    f"{redacted(target.resolved_database_url)} cannot be moved to: set {variable('database_url')} to "
                    "postgresql+psycopg://user:password@host/name"
                )
            with _opened(target) as here:
                _require_unused(here, clock)
        if elsewhere["models"]:  # before the long transaction, for which the indexes that MLflow makes would wait
            yield from _equal("models", models.move(*uris, source.mlflow_artifacts, artifacts))
        if elsewhere["database"]:
            here = stack.enter_context(_opened(target))
            _require_unused(here, clock)
        if elsewhere["online"]:
            keys = partial(tables.carried_keys, there)
            yield from _equal("online features", features.move_online(before, after, keys, replace=replace_features))
        if elsewhere["offline"]:
            folders = before.offline_folder, after.offline_folder
            yield from _equal("offline features", features.move_offline(*folders, replace=replace_features))
        after.apply_apart()
        if elsewhere["database"]:
            yield from _equal("database", tables.copy_tables(there, here))


_SWITCHES: Final = ", ".join(map(variable, ("database_url", "online_store", "mlflow_tracking_uri", "home")))


@contextmanager
def _opened(settings: Settings) -> Iterator[sa.Connection]:
    engine = open_database(settings.resolved_database_url)
    try:
        with writing(engine) as connection:
            yield connection
    finally:
        engine.dispose()


def _require_unused(connection: sa.Connection, clock: Clock) -> None:
    tables.require_no_writer(connection, now_ms=clock())
    tables.require_empty(connection)


def _equal(part: str, counted: Iterable[tuple[str, int, int]]) -> Iterator[Moved]:
    for name, there, here in counted:
        if there != here:
            raise StoreUnavailable(f"{part}: of {name}, {there:,} rows, {here:,} came: the database was not moved")
        yield Moved(part=part, name=name, source_rows=there, target_rows=here)


def _require_key(source: Settings, target: Settings) -> None:
    """Raises `ConfigurationError` if what the source has encrypted could not be read any more."""
    file = source.secret_key_file
    if not file.exists():
        return
    keys = target.secret_key or [path.read_text().strip() for path in [target.secret_key_file] if path.exists()]
    if file.read_text().strip() not in keys:
        raise ConfigurationError(
            f"credentials are encrypted with the key in {file}, which the new settings lack: copy the file to "
            f"{target.home}, or add the key to {variable('secret_key')}"
        )

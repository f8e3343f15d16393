"""MLflow's tables from the embedded SQLite file into PostgreSQL: runs, models, versions and aliases, numbers and all.

Models and plots are files: they stay where they are, and the tables name them as before.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from urlhealth.crawl.moving import copy_tables, counts
from urlhealth.errors import ConfigurationError, InvalidRequest, StoreUnavailable, one_line
from urlhealth.settings import redacted, variable

_SQLITE: Final = "sqlite:///"


def are_to_move(source: str, target: str) -> bool:
    """Whether there are models at one tracking URI that another one would not find.

    Raises:
        ConfigurationError: there are, and they cannot be moved to the other one.
    """
    if source == target or not Path(source.removeprefix(_SQLITE)).exists():
        return False
    if not target.startswith("postgresql"):
        raise ConfigurationError(
            f"models cannot be moved to {redacted(target)}: set {variable('mlflow_tracking_uri')} to the database "
            f"(postgresql+psycopg://...) behind MLflow's server, or to {source} to leave them there"
        )
    return True


def move(source: str, target: str) -> list[tuple[str, int, int]]:
    """Copy MLflow's tables, all or none; of each that has rows: its name, and how many are there, and here.

    Raises:
        InvalidRequest: the target has other runs or models.
        StoreUnavailable: a database cannot be used.
    """
    from mlflow.store.db.base_sql_model import Base
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Tracking

    artifacts = Path(source.removeprefix(_SQLITE)).with_name("artifacts").as_uri()
    tables: Sequence[sa.Table] = Base.metadata.sorted_tables
    engines: list[sa.Engine] = []
    try:
        for uri in (source, target):
            engines.append(Tracking(uri, artifacts).engine)  # makes the tables, and refuses those of another version
            Registry(uri)
        with engines[0].connect() as there, engines[1].begin() as here:
            found = counts(here, tables)
            if found != counts(there, tables):
                if any(found[name] for name in ("runs", "logged_models", "registered_models")):
                    raise InvalidRequest(
                        f"{redacted(target)} has runs or models already: set {variable('mlflow_tracking_uri')} to an "
                        "empty database"
                    )
                for table in reversed(tables):
                    here.execute(sa.delete(table))  # what MLflow puts into a new one, such as an experiment
                moved = copy_tables(there, here, tables)
            else:
                moved = [(name, rows, rows) for name, rows in found.items()]
    except InvalidRequest:
        raise
    except Exception as error:  # MLflow lets through whatever its back ends raise
        raise StoreUnavailable(f"models cannot be moved to {redacted(target)}: {one_line(error)}") from error
    finally:
        for engine in engines:
            engine.dispose()
    return [each for each in moved if each[1]]

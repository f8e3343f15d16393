"""MLflow's tables from the embedded SQLite file into PostgreSQL: runs, models, versions and aliases, numbers and all.

Models and plots are files: they stay where they are, and the tables name them as before, unless another place is given.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from urlhealth.crawl.moving import copy_tables, counts
from urlhealth.errors import ConfigurationError, InvalidRequest, StoreUnavailable, UrlHealthError, one_line
from urlhealth.settings import redacted, variable

_SQLITE: Final = "sqlite:///"
#: Where the tables name places of files.
_PLACES: Final = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)


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


def move(source: str, target: str, files: Path, artifacts: str | None = None) -> list[tuple[str, int, int]]:
    """Copy MLflow's tables, all or none; of each that has rows: its name, and how many are there, and here.

    Args:
        files: the folder of models and plots.
        artifacts: where they are copied to, as MLflow spells it (`s3://BUCKET/PATH`); None leaves them.

    Raises:
        InvalidRequest: the target has other runs or models.
        StoreUnavailable: a database, or the place of the files, cannot be used.
    """
    from mlflow.store.db.base_sql_model import Base
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Tracking

    tables: Sequence[sa.Table] = Base.metadata.sorted_tables
    engines: list[sa.Engine] = []
    try:
        for uri in (source, target):
            engines.append(Tracking(uri, files.as_uri()).engine)  # makes the tables, and refuses another version's
            Registry(uri)
        with engines[0].connect() as there, engines[1].begin() as here:
            found = counts(here, tables)
            if found == counts(there, tables):  # by a move that was broken off later
                moved = [(name, rows, rows) for name, rows in found.items()]
            elif any(found[name] for name in ("runs", "logged_models", "registered_models")):
                raise InvalidRequest(
                    f"{redacted(target)} has runs or models already: set {variable('mlflow_tracking_uri')} to an empty "
                    "database"
                )
            else:
                for table in reversed(tables):
                    here.execute(sa.delete(table))  # what MLflow puts into a new one, such as an experiment
                moved = copy_tables(there, here, tables)
            if artifacts is not None:
                ours, theirs = _copy_files(files, artifacts)
                if ours != theirs:
                    raise StoreUnavailable(f"of {ours:,} files in {files}, {theirs:,} are in {redacted(artifacts)}")
                moved.append(("files", ours, theirs))
                _rename_places(here, tables, files.as_uri(), artifacts.rstrip("/"))
    except UrlHealthError:
        raise
    except Exception as error:  # MLflow lets through whatever its back ends raise
        raise StoreUnavailable(f"models cannot be moved to {redacted(target)}: {one_line(error)}") from error
    finally:
        for engine in engines:
            engine.dispose()
    return [each for each in moved if each[1]]


def _copy_files(folder: Path, artifacts: str) -> tuple[int, int]:
    """How many files are in the folder, and how many of their names and sizes in the other place too."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    place = get_artifact_repository(artifacts)
    ours = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    if ours:
        place.log_artifacts(str(folder))
    theirs, folders = {}, [""]
    while folders:
        for item in place.list_artifacts(folders.pop() or None):
            if item.is_dir:
                folders.append(item.path)
            else:
                theirs[item.path] = item.file_size
    return len(ours), len(ours.items() & theirs.items())


def _rename_places(connection: sa.Connection, tables: Sequence[sa.Table], before: str, now: str) -> None:
    for table in tables:
        for column in (table.columns[name] for of, name in _PLACES if of == table.name):
            within = sa.func.substr(column, 1, len(before)) == before
            renamed = sa.func.concat(now, sa.func.substr(column, len(before) + 1))
            connection.execute(sa.update(table).where(within).values({column.name: renamed}))

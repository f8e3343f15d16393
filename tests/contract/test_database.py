"""Opening the database: from empty, by several at once, and what is said when it cannot be."""

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from urlhealth.crawl import migrations
from urlhealth.crawl.database import REVISIONS, VERSION_TABLE, open_database, writing
from urlhealth.crawl.schema import metadata
from urlhealth.errors import StoreUnavailable


def said_of(url: str) -> str:
    """What is said when the database cannot be opened."""
    with pytest.raises(StoreUnavailable) as caught:
        open_database(url)
    (line,) = str(caught.value).splitlines()
    return line


def columns(engine: sa.Engine) -> dict[str, list[tuple[str, str, bool]]]:
    inspector = sa.inspect(engine)
    return {
        table: [(c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(table)]
        for table in inspector.get_table_names()
    }


def test_migrations_make_the_tables_of_the_schema(engine: sa.Engine) -> None:
    made = columns(engine)
    del made[VERSION_TABLE]
    declared = {
        name: [(c.name, c.type.compile(engine.dialect), bool(c.nullable)) for c in table.columns]
        for name, table in metadata.tables.items()
    }
    assert made == declared


def test_migrating_makes_what_an_empty_database_gets_at_once(database_url: str) -> None:
    made = open_database(database_url)
    at_once = schema_of(made)
    metadata.drop_all(made)
    with writing(made) as connection:
        connection.execute(sa.text(f"DROP TABLE {VERSION_TABLE}"))
        command.upgrade(alembic(connection), "0001")
    made.dispose()
    migrated = open_database(database_url)
    assert schema_of(migrated) == at_once
    migrated.dispose()


def schema_of(engine: sa.Engine) -> dict[str, object]:
    """Columns by table; the words of each table's and index's definition, in any order (a new column comes last)."""
    definitions = (
        "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'"
        if engine.dialect.name == "sqlite"
        else "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = current_schema()"
    )
    with engine.connect() as connection:
        words = {name: sorted(re.findall(r"[\w.]+", sql)) for name, sql in connection.execute(sa.text(definitions))}
    return {name: sorted(found) for name, found in columns(engine).items()} | words


def alembic(connection: sa.Connection | None = None) -> Config:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.set_main_option("path_separator", "os")
    return config


def test_the_revisions_known_are_those_there_are() -> None:
    revisions = [script.revision for script in ScriptDirectory.from_config(alembic()).walk_revisions()]
    assert tuple(reversed(revisions)) == REVISIONS


def test_only_migrating_needs_alembic_and_what_is_there_is_kept(database_url: str) -> None:
    program = "import sys; from urlhealth.crawl.database import open_database; open_database(sys.argv[1]);"
    program += "print('alembic' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", program, database_url], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False"]
    first = open_database(database_url)
    with writing(first) as connection:
        connection.execute(sa.insert(metadata.tables["leases"]).values(name="kept", holder="", expires_ms=0))
    program = (
        "import sys; from urlhealth.crawl.database import open_database; engine = open_database(sys.argv[1]);"
        "print(engine.connect().exec_driver_sql('SELECT name FROM leases').scalar(), 'alembic' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", program, database_url], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["kept", "False"]
    first.dispose()


def test_those_who_open_an_empty_database_at_once_all_succeed(database_url: str) -> None:
    found: list[int] = []
    barrier = threading.Barrier(4)

    def start() -> None:
        barrier.wait()
        engine = open_database(database_url)
        found.append(len(columns(engine)))
        engine.dispose()

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [len(metadata.tables) + 1] * 4


def test_a_newer_database_is_refused_and_left_alone(database_url: str) -> None:
    engine = open_database(database_url)
    with writing(engine) as connection:
        connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    before = columns(engine)
    assert "newer version of urlhealth (schema 9999" in said_of(database_url)
    assert columns(engine) == before
    engine.dispose()


def test_a_folder_that_is_not_there_is_made(tmp_path: Path) -> None:
    open_database(f"sqlite:///{tmp_path / 'some' / 'where' / 'urlhealth.db'}").dispose()
    assert (tmp_path / "some" / "where" / "urlhealth.db").exists()


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    path.write_text("not a database, but long enough to look at " * 100)
    said = said_of(f"sqlite:///{path}")
    assert str(path) in said
    assert "move it away" in said
    assert path.read_text().startswith("not a database")


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = said_of(f"sqlite:///{tmp_path / 'file' / 'urlhealth.db'}")
    assert str(tmp_path) in said
    assert "URLHEALTH_HOME" in said


@pytest.mark.parametrize(
    "url",
    [
        "nonsense with secret",
        "mysql://ann:secret@127.0.0.1/x",
        "postgresql+psycopg://ann:secret@127.0.0.1:1/x",
        "sqlite://",
    ],
)
def test_what_is_said_of_a_url_holds_no_password(url: str) -> None:
    said = said_of(url)
    assert "secret" not in said
    assert "URLHEALTH_DATABASE_URL" in said or "install the driver" in said


def test_a_database_that_fails_later_is_said_to_be_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "urlhealth.db"
    engine = open_database(f"sqlite:///{path}")
    engine.dispose()
    path.write_bytes(b"overwritten by another program " * 1000)
    with pytest.raises(StoreUnavailable, match="not a database"), engine.connect():
        pass


def test_what_is_written_is_synced(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'urlhealth.db'}")
    with writing(engine) as connection:
        pragmas = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]
        assert pragmas == ["wal", 2]
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 10_000

"""The database's versions: from nothing to today's, one by one, with what was stored; and never from the future."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Engine

import service
from curator.errors import SpecError
from service.database import open_database, reading, writing
from service.settings import Settings
from service.tables import metadata

pytestmark = pytest.mark.slow

MIGRATIONS = Path(service.__file__).parent / "migrations"

# One row of each table as its first version stored it. A migration that changes a table must keep what they say: then
# say here, in AFTER, what they are at the head, and leave BEFORE as it is.
BEFORE: dict[str, dict[str, Any]] = {
    "jobs": {
        "id": "job_0000000000000000000000000a", "tenant": "t", "kind": "curate", "name": "näme", "status": "completed",
        "epoch": 3, "attempt": 2, "spec": '{"policy": {"keep": 0.5}}', "output": "/data/out", "created_at": 1.5,
        "updated_at": 2.5, "totals": '{"tokens": 9007199254740993}', "event_offset": 5_000_000_000,
    },
    "idempotency": {
        "tenant": "t", "key": "k", "body_sha256": "ab" * 32, "job_id": "job_0000000000000000000000000a",
        "reserved_at": 1.25,
    },
    "keys": {"id": "k1", "tenant": "t", "name": "first", "sha256": "cd" * 32, "scopes": '["read"]', "created_at": 1.0},
    "sessions": {"sha256": "ef" * 32, "key_id": "k1", "expires_at": 4e9},
}  # fmt: skip
AFTER: dict[str, dict[str, Any]] = {
    **BEFORE,
    "jobs": {
        **BEFORE["jobs"], "spec": {"policy": {"keep": 0.5}}, "totals": {"tokens": 9007199254740993},
        "version": 1, "relaunches": 0, "error": None, "queued_at": 2.5,  # of a second attempt
    },
    "keys": {**BEFORE["keys"], "scopes": ["read"]},
}  # fmt: skip


@pytest.fixture
def settings(database: dict[str, str], tmp_path: Path) -> Settings:
    """A new database of each kind."""
    url = database.get("CURATOR_DATABASE_URL")
    return Settings(data_dir=tmp_path, **({} if url is None else {"database_url": url}))


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    """Migrated to the head."""
    engine = open_database(settings)
    yield engine
    engine.dispose()


def scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return ScriptDirectory.from_config(config)


def migrate(engine: Engine, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with writing(engine) as connection:
        config.attributes["connection"] = connection
        (command.upgrade if revision != "base" else command.downgrade)(config, revision)


def revisions() -> list[str]:
    return [script.revision for script in reversed(list(scripts().walk_revisions()))]


def version_of(engine: Engine) -> str | None:
    with reading(engine) as connection:
        return MigrationContext.configure(connection).get_current_revision()


def insert(engine: Engine) -> None:
    with writing(engine) as connection:
        for table in ("jobs", "idempotency", "keys", "sessions"):
            names = ", ".join(BEFORE[table])
            places = ", ".join(f":{name}" for name in BEFORE[table])
            connection.execute(sa.text(f"INSERT INTO {table} ({names}) VALUES ({places})"), BEFORE[table])


def test_an_empty_database_gets_the_tables_of_the_models(engine: Engine) -> None:
    assert version_of(engine) == scripts().get_current_head()
    with reading(engine) as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True, "target_metadata": metadata}
        )
        assert compare_metadata(context, metadata) == []


def test_a_table_that_the_migrations_do_not_make_would_be_noticed(engine: Engine) -> None:
    """The comparison above sees a missing table, column, index and type."""
    changed = sa.MetaData()
    for table in metadata.tables.values():
        table.to_metadata(changed)
    changed.tables["jobs"].append_column(sa.Column("priority", sa.Integer))
    sa.Table("forgotten", changed, sa.Column("id", sa.Integer, primary_key=True))
    sa.Index("keys_of_tenant", changed.tables["keys"].c.tenant)
    changed.tables["keys"].c.name.type = sa.Integer()
    with reading(engine) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "target_metadata": changed})
        found = [
            change[0] if isinstance(change, tuple) else change[0][0] for change in compare_metadata(context, changed)
        ]
    assert sorted(found) == ["add_column", "add_index", "add_table", "modify_type"]


def test_every_version_up_keeps_what_was_stored(settings: Settings) -> None:
    engine = open_database(settings)
    migrate(engine, "base")
    with reading(engine) as connection:
        assert not set(sa.inspect(connection).get_table_names()) & metadata.tables.keys()
    first, *later = revisions()
    migrate(engine, first)
    insert(engine)
    for revision in later:
        migrate(engine, revision)
        assert version_of(engine) == revision
    engine.dispose()
    engine = open_database(settings)  # once more, as a service starts: nothing is left to do
    with reading(engine) as connection:
        for name, expected in AFTER.items():
            (row,) = connection.execute(metadata.tables[name].select()).mappings()
            assert {column: row[column] for column in expected} == expected
    engine.dispose()


def test_versions_form_one_line_and_are_numbered() -> None:
    assert revisions() == [f"{number:04d}" for number in range(1, len(revisions()) + 1)]
    assert [Path(script.path).name[:4] for script in reversed(list(scripts().walk_revisions()))] == revisions()


def test_a_database_of_a_newer_service_is_refused_and_left_as_it_is(settings: Settings) -> None:
    engine = open_database(settings)
    insert(engine)
    with writing(engine) as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0777'"))
    engine.dispose()
    head = scripts().get_current_head()
    with pytest.raises(SpecError, match=rf"version '0777', and .* knows versions up to '{head}'.*install .* restore"):
        open_database(settings)
    if settings.database_url is None:
        plain = sa.create_engine(f"sqlite:///{settings.data_dir}/service.db")
    else:
        plain = sa.create_engine(settings.database_url.get_secret_value().replace("postgresql:", "postgresql+psycopg:"))
    with plain.connect() as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one() == "0777"
        assert connection.execute(sa.text("SELECT name FROM jobs")).scalar_one() == "näme"
    plain.dispose()


def test_a_service_says_so_and_does_not_start(tmp_path: Path) -> None:
    engine = open_database(Settings(data_dir=tmp_path))
    with writing(engine) as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0777'"))
    engine.dispose()
    command = [str(Path(sys.executable).with_name("curator")), "serve", "--port", "0", "--data-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    said = " ".join(done.stderr.split())
    assert done.returncode == 2 and "API key" not in done.stdout and "Listening" not in done.stdout
    assert said.startswith("error: the database is of version '0777'") and said.endswith("the backup from before it")


def test_a_refused_postgresql_has_no_connection_left(postgres_url: str, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, database_url=postgres_url)  # type: ignore[arg-type]
    engine = open_database(settings)
    with writing(engine) as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0777'"))
    with psycopg.connect(postgres_url, autocommit=True) as watching:
        assert others(watching) > 0  # the pool of a service that runs
        engine.dispose()
        for _ in range(3):
            with pytest.raises(SpecError, match="0777"):
                open_database(settings)
        deadline = time.monotonic() + 10  # a closed connection's process takes a moment to leave
        while others(watching) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert others(watching) == 0


def others(watching: psycopg.Connection) -> int:
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    row = watching.execute(query).fetchone()
    assert row is not None
    return int(row[0])

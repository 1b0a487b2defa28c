"""Migrations, what the log refuses, and what is refused before anything is written."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import psycopg
import pytest
from psycopg import Connection
from psycopg.errors import GeneratedAlways, RaiseException

from coupon_clock.infrastructure.event_store import migrations
from coupon_clock.infrastructure.event_store.cluster_identity import failover_detected, remember_cluster
from coupon_clock.infrastructure.event_store.migrations import SchemaMissing, SchemaTooNew
from coupon_clock.infrastructure.event_store.safety import UnsafeLog
from coupon_clock.infrastructure.postgres.connection import connect, execute_script
from coupon_clock.infrastructure.postgres.database import Schema, fetch_one
from coupon_clock.infrastructure.settings import Settings
from coupon_clock.local_servers.postgres import LocalPostgres
from coupon_clock.testing import in_database

SCHEMA = Schema("coupon_clock")
SEQUENCE = "coupon_clock.event_notification_id_seq"


@pytest.fixture
def connection(settings: Settings) -> Iterator[Connection]:
    with connect(settings) as connection:
        yield connection


@pytest.fixture
def no_tables(postgres: LocalPostgres) -> Iterator[Settings]:
    name = f"no_tables_{uuid4().hex}"
    with psycopg.connect(postgres.url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        yield Settings.load(database_url=in_database(postgres.url, name))
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def own_server(tmp_path) -> Iterator[LocalPostgres]:
    server = LocalPostgres(tmp_path / "postgres")
    server.start()
    yield server
    server.kill()


def insert(connection: Connection, events: int = 1) -> None:
    connection.execute(
        """
        INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state)
        SELECT gen_random_uuid(), 1, 'topic', 'state' FROM generate_series(1, %s)
        """,
        (events,),
    )


def setting(connection: Connection, name: str) -> str:
    return fetch_one(connection, "SELECT current_setting(%s)", name)[0]


def then_refused(connection: Connection, *words: str) -> None:
    with pytest.raises(UnsafeLog) as refused:
        migrations.check(connection, SCHEMA)
    for word in words:
        assert word in str(refused.value)


# ── migrations ───────────────────────────────────────────────────────────────────────────────────


def test_several_processes_migrate_at_once_and_each_number_is_applied_by_one(no_tables):
    def migrated(_: int) -> list[int]:
        with connect(no_tables) as connection:
            return migrations.migrate(connection, SCHEMA)

    with ThreadPoolExecutor(8) as processes:
        applied = [number for numbers in processes.map(migrated, range(8)) for number in numbers]
    assert applied == list(range(1, len(migrations.MIGRATIONS) + 1))
    with connect(no_tables) as connection:
        migrations.check(connection, SCHEMA)


def test_all_tables_go_into_the_schema_that_is_set(no_tables):
    elsewhere = Schema("order")
    with connect(no_tables) as connection:
        migrations.migrate(connection, elsewhere)
        migrations.check(connection, elsewhere)
        assert fetch_one(connection, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == (0,)


def test_code_newer_than_the_schema_says_so_and_stops(no_tables):
    with connect(no_tables) as connection, pytest.raises(SchemaMissing, match="coupon-clock migrate"):
        migrations.check(connection, SCHEMA)


def test_code_older_than_the_schema_says_so_and_stops(connection):
    connection.execute("INSERT INTO coupon_clock.schema_migration VALUES (99, clock_timestamp())")
    with pytest.raises(SchemaTooNew, match="newer coupon-clock"):
        migrations.check(connection, SCHEMA)
    with pytest.raises(SchemaTooNew):
        migrations.migrate(connection, SCHEMA)


def test_a_role_that_only_owns_its_database_can_do_all(no_tables):
    with connect(no_tables) as connection:
        role = f"role_{uuid4().hex}"
        database = fetch_one(connection, "SELECT current_database()")[0]
        execute_script(connection, f"CREATE ROLE {role}; ALTER DATABASE {database} OWNER TO {role}; SET ROLE {role}")
        migrations.migrate(connection, SCHEMA)
        migrations.check(connection, SCHEMA)
        remember_cluster(connection, SCHEMA)
        assert not failover_detected(connection, SCHEMA)


# ── what the log refuses, from anybody ───────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE coupon_clock.event SET topic = 'other'",
        "DELETE FROM coupon_clock.event",
        "TRUNCATE coupon_clock.event",
    ],
)
def test_the_log_is_append_only(connection, change):
    insert(connection)
    with pytest.raises(RaiseException, match="append only"):
        connection.execute(change)


def test_nobody_brings_a_position_drawn_earlier(connection):
    with pytest.raises(GeneratedAlways):
        connection.execute(
            f"INSERT INTO coupon_clock.event VALUES (gen_random_uuid(), 1, 't', 's', nextval('{SEQUENCE}'))"
        )


def test_a_role_with_synchronous_commit_off_writes_the_log_with_it_on(connection):
    connection.execute("SET synchronous_commit = off")
    with connection.transaction():
        insert(connection)
        assert setting(connection, "synchronous_commit") == "on"
    assert setting(connection, "synchronous_commit") == "off"


def test_a_writers_transaction_is_bounded(connection):
    with connection.transaction():
        insert(connection)
        assert setting(connection, "idle_in_transaction_session_timeout") == "30s"
        assert setting(connection, "transaction_timeout") == "1min"
    assert setting(connection, "idle_in_transaction_session_timeout") == "0"


def test_a_writer_that_set_itself_a_shorter_bound_keeps_it(connection):
    execute_script(connection, "SET idle_in_transaction_session_timeout = '900ms'; SET transaction_timeout = '5s'")
    with connection.transaction():
        insert(connection)
        assert setting(connection, "idle_in_transaction_session_timeout") == "900ms"
        assert setting(connection, "transaction_timeout") == "5s"


# ── what is refused before anything is written ───────────────────────────────────────────────────


def test_a_sequence_behind_its_table_is_refused_with_the_command_that_mends_it(connection):
    insert(connection, 5)
    connection.execute(f"SELECT setval('{SEQUENCE}', 3)")
    then_refused(connection, f"SELECT setval('{SEQUENCE}', 5)")

    connection.execute(f"SELECT setval('{SEQUENCE}', 5)")
    migrations.check(connection, SCHEMA)


def test_a_sequence_that_would_hand_out_the_last_position_again_is_refused(connection):
    insert(connection, 5)
    connection.execute(f"SELECT setval('{SEQUENCE}', 5, false)")
    then_refused(connection, "setval")


def test_a_sequence_cache_is_refused_with_the_command_that_mends_it(connection):
    connection.execute(f"ALTER SEQUENCE {SEQUENCE} CACHE 20")
    then_refused(connection, fix := f"ALTER SEQUENCE {SEQUENCE} CACHE 1")

    connection.execute(fix)
    migrations.check(connection, SCHEMA)


def test_a_checkpoint_beyond_the_log_is_refused_with_the_command_that_mends_it(connection):
    insert(connection, 5)
    connection.execute("INSERT INTO coupon_clock.checkpoint (name, position) VALUES ('mails', 7), ('prices', 5)")
    then_refused(connection, fix := "UPDATE coupon_clock.checkpoint SET position = 5 WHERE name = 'mails'")

    connection.execute(fix)
    migrations.check(connection, SCHEMA)


def test_triggers_that_were_left_disabled_are_refused(connection):
    connection.execute("ALTER TABLE coupon_clock.event DISABLE TRIGGER ALL")
    then_refused(connection, fix := "ALTER TABLE coupon_clock.event ENABLE TRIGGER ALL")

    connection.execute(fix)
    migrations.check(connection, SCHEMA)


def test_a_standby_is_refused_and_once_promoted_known_to_have_moved(own_server):
    settings = Settings.load(database_url=own_server.url)
    with connect(settings) as connection:
        migrations.migrate(connection, SCHEMA)
        assert not failover_detected(connection, SCHEMA)
        remember_cluster(connection, SCHEMA)
        assert not failover_detected(connection, SCHEMA)
    own_server.stop()
    (own_server.data / "standby.signal").touch()
    own_server.start()
    with connect(settings) as connection:
        then_refused(connection, "standby", "primary")

        assert fetch_one(connection, "SELECT pg_promote()") == (True,)
        migrations.check(connection, SCHEMA)
        assert failover_detected(connection, SCHEMA)
        remember_cluster(connection, SCHEMA)
        assert not failover_detected(connection, SCHEMA)


def test_a_copy_of_the_database_has_moved(postgres, connection, database_url):
    remember_cluster(connection, SCHEMA)
    connection.close()
    copy = f"copy_{uuid4().hex}"
    with psycopg.connect(postgres.url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {copy} TEMPLATE {database_url.split('?')[0].rpartition('/')[2]}")
    with connect(Settings.load(database_url=in_database(postgres.url, copy))) as copied:
        assert failover_detected(copied, SCHEMA)
    with psycopg.connect(postgres.url, autocommit=True) as server:
        server.execute(f"DROP DATABASE {copy}")

"""Migrations, what the log refuses, and what is refused before anything is written."""

import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import psycopg
import pytest
from psycopg import Connection
from psycopg.errors import GeneratedAlways, RaiseException

from coupon_clock.app import Application, RebuildOptions
from coupon_clock.infrastructure.event_store import migrations
from coupon_clock.infrastructure.event_store.cluster_identity import failover_detected, remember_cluster
from coupon_clock.infrastructure.event_store.migrations import (
    ForeignTable,
    Migration,
    SchemaInUse,
    SchemaMissing,
    SchemaTooNew,
)
from coupon_clock.infrastructure.event_store.safety import UnsafeLog
from coupon_clock.infrastructure.postgres.connection import connect, execute_script
from coupon_clock.infrastructure.postgres.database import Schema, fetch_one
from coupon_clock.infrastructure.settings import Settings, UnusableSettings
from coupon_clock.local_servers.postgres import LocalPostgres, binaries, plain_environment
from coupon_clock.maintenance.doctor import examine
from coupon_clock.testing import in_database
from examples import ending_in

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
    connection.execute("INSERT INTO coupon_clock.schema_migration VALUES (99, clock_timestamp(), 98)")
    with pytest.raises(SchemaTooNew, match="newer coupon-clock"):
        migrations.check(connection, SCHEMA)
    with pytest.raises(SchemaTooNew):
        migrations.migrate(connection, SCHEMA)


def test_code_older_than_a_schema_that_lets_it_goes_on(connection):
    connection.execute("INSERT INTO coupon_clock.schema_migration VALUES (99, clock_timestamp(), 1)")
    migrations.check(connection, SCHEMA)
    assert migrations.migrate(connection, SCHEMA) == []


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


WITH_TRANSACTION_TIMEOUT = 170_000


def test_a_writers_transaction_is_bounded(connection):
    with connection.transaction():
        insert(connection)
        assert setting(connection, "idle_in_transaction_session_timeout") == "30s"
        if connection.info.server_version >= WITH_TRANSACTION_TIMEOUT:
            assert setting(connection, "transaction_timeout") == "1min"
    assert setting(connection, "idle_in_transaction_session_timeout") == "0"


def test_a_writer_that_set_itself_a_shorter_bound_keeps_it(connection):
    connection.execute("SET idle_in_transaction_session_timeout = '900ms'")
    if connection.info.server_version >= WITH_TRANSACTION_TIMEOUT:
        connection.execute("SET transaction_timeout = '5s'")
    with connection.transaction():
        insert(connection)
        assert setting(connection, "idle_in_transaction_session_timeout") == "900ms"
        if connection.info.server_version >= WITH_TRANSACTION_TIMEOUT:
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


def test_checkpoints_beyond_the_last_position_drawn_are_marked_and_nothing_is_refused(connection):
    insert(connection, 5)
    connection.execute(
        "INSERT INTO coupon_clock.checkpoint (name, kind, position) "
        "VALUES ('mails', 'follower', 7), ('prices', 'follower', 5)"
    )
    migrations.check(connection, SCHEMA)

    marked = connection.execute("SELECT name FROM coupon_clock.checkpoint WHERE beyond_log").fetchall()
    assert marked == [("mails",)]


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


# ── whose tables ─────────────────────────────────────────────────────────────────────────────────

NAMES = ("event", "alarm", "checkpoint", "lease", "schema_migration", "coupon_template", "shop_month")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["TABLE {} (id integer)", "VIEW {} AS SELECT 1 AS id"])
def test_somebody_elses_relation_of_one_of_our_names_is_refused_before_anything_is_changed(no_tables, name, kind):
    settings = Settings.load(database_url=no_tables.database_url.get_secret_value(), database_schema="public")
    with connect(settings) as connection:
        connection.execute(f"CREATE {kind.format(f'public.{name}')}")
        with pytest.raises(ForeignTable, match=r"nothing was changed .*COUPON_CLOCK_DATABASE_SCHEMA"):
            Application.migrate(settings)
        assert relations(connection) == [name]


@pytest.mark.parametrize(
    "other",
    [
        "SEQUENCE public.event_notification_id_seq",
        "TABLE public.alarm_pkey (id integer)",
        "TYPE public.alarm AS ENUM ('loud')",
        "FUNCTION public.now_utc() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    ],
)
def test_so_is_anything_else_that_our_statements_would_take_for_ours(no_tables, other):
    settings = in_public(no_tables)
    with connect(settings) as connection:
        connection.execute(f"CREATE {other}".encode())
        before = everything(connection)
        with pytest.raises(ForeignTable, match="already exists"):
            Application.migrate(settings)
        assert everything(connection) == before


@pytest.mark.parametrize("name", ["event", "alarm", "schema_migration"])
def test_somebody_elses_table_is_not_examined_as_if_it_were_the_log(no_tables, name):
    settings = in_public(no_tables)
    with connect(settings) as connection:
        connection.execute(f"CREATE TABLE public.{name} (id integer)".encode())
    with pytest.raises((SchemaMissing, ForeignTable), match=r"coupon-clock migrate|COUPON_CLOCK_DATABASE_SCHEMA"):
        Application.open(settings)


@pytest.mark.parametrize("name", ["pg_catalog", "pg_own", "information_schema"])
def test_postgresqls_own_schemas_are_not_for_our_tables(name):
    with pytest.raises(UnusableSettings, match="PostgreSQL's own"):
        Settings.load(database_schema=name)


def test_a_schema_beside_somebody_elses_tables_of_other_names_may_be_ours_too(no_tables):
    settings = Settings.load(database_url=no_tables.database_url.get_secret_value(), database_schema="public")
    with connect(settings) as connection:
        connection.execute("CREATE TABLE public.product (id integer)")
        Application.migrate(settings)
        with Application.open(settings) as app:
            app.execute(ending_in(3600))
            app.maintenance.rebuild()
        assert {"product", "coupon_template"} <= set(relations(connection))


@pytest.mark.parametrize("suffix", ["_shadow", "_outgoing", "_old"])
def test_a_rebuild_drops_no_table_that_is_not_its_own(live, connection, suffix):
    connection.execute(f"CREATE TABLE coupon_clock.coupon_template{suffix} AS SELECT 42 AS answer")
    live.execute(ending_in(3600))
    before = fetch_one(connection, "SELECT 'coupon_clock.coupon_template'::regclass::oid")
    with pytest.raises(ForeignTable, match=f"coupon_template{suffix} was not made by coupon-clock"):
        live.maintenance.rebuild(options=RebuildOptions(keep_old=True))
    assert fetch_one(connection, "SELECT 'coupon_clock.coupon_template'::regclass::oid") == before
    assert fetch_one(connection, "SELECT count(*) FROM coupon_clock.checkpoint WHERE name LIKE '%%shadow'") == (0,)
    assert fetch_one(connection, f"SELECT answer FROM coupon_clock.coupon_template{suffix}") == (42,)


@pytest.mark.parametrize(
    "other",
    [
        "TYPE coupon_clock.coupon_template_shadow AS ENUM ('small')",
        "TABLE coupon_clock.coupon_template_shadow_shop_idx (id integer)",
    ],
)
def test_a_rebuild_that_finds_a_name_of_an_index_or_a_type_taken_says_so(live, connection, other):
    connection.execute(f"CREATE {other}".encode())
    live.execute(ending_in(3600))
    with pytest.raises(ForeignTable, match=r"coupon_template_shadow.*already exists"):
        live.maintenance.rebuild()


def test_a_rebuild_replaces_no_table_that_somebody_put_in_the_place_of_ours(live, connection):
    execute_script(
        connection,
        "DROP TABLE coupon_clock.coupon_template; CREATE TABLE coupon_clock.coupon_template AS SELECT 42 AS answer",
    )
    live.execute(ending_in(3600))
    with pytest.raises(ForeignTable, match="coupon_template was not made by coupon-clock"):
        live.maintenance.rebuild()
    assert fetch_one(connection, "SELECT answer FROM coupon_clock.coupon_template") == (42,)


def test_what_is_ours_is_still_ours_after_a_dump_and_a_restore(postgres, live, database_url, no_tables):
    if not (binaries() / "pg_dump").exists():
        pytest.skip(f"there is no pg_dump in {binaries()}")
    live.execute(ending_in(3600))
    dumped = subprocess.run(
        [str(binaries() / "pg_dump"), database_url], check=True, capture_output=True, env=plain_environment()
    )
    restored = no_tables.database_url.get_secret_value()
    subprocess.run([str(binaries() / "psql"), "-qv", "ON_ERROR_STOP=1", restored], input=dumped.stdout, check=True)
    with Application.open(no_tables) as app:
        app.maintenance.rebuild()
        assert Application.migrate(no_tables) == []


def in_public(settings: Settings) -> Settings:
    return settings.model_copy(update={"database_schema": "public"})


def everything(connection: Connection) -> list[tuple[str, str]]:
    return connection.execute(
        """
        SELECT relkind::text, relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace
         UNION ALL
        SELECT 'function', proname::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace
         ORDER BY 1, 2
        """
    ).fetchall()


def relations(connection: Connection) -> list[str]:
    return [
        name
        for (name,) in connection.execute(
            "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v')"
        )
    ]


# ── migrating a schema that is in use ────────────────────────────────────────────────────────────

WIDER = Migration(("wider.sql",), oldest_code=1)


@pytest.fixture
def second(monkeypatch) -> Sequence[Migration]:
    """A second migration, whose script is here."""
    monkeypatch.setattr(migrations, "script", lambda migration: "ALTER TABLE {schema}.event ADD COLUMN extra text")
    return [*migrations.MIGRATIONS, WIDER]


def test_a_migration_waits_briefly_for_readers_again_and_again_and_lets_others_pass(live, connection, settings, second):
    with psycopg.connect(settings.database_url.get_secret_value()) as reader, ThreadPoolExecutor(1) as thread:
        reader.execute("SELECT count(*) FROM coupon_clock.event")
        migrated = thread.submit(lambda: migrations.migrate(connection, SCHEMA, migrations=second))
        for _ in range(20):
            live.execute(ending_in(3600))
        assert not migrated.done()
        reader.rollback()
        assert migrated.result(20) == [2]
    with Application.open(settings) as older:
        older.execute(ending_in(3600))


def test_a_migration_that_never_gets_its_lock_changes_nothing_and_says_so(connection, settings, second):
    with psycopg.connect(settings.database_url.get_secret_value()) as reader:
        reader.execute("SELECT count(*) FROM coupon_clock.event")
        with pytest.raises(SchemaInUse, match=rf"nothing was changed \(server processes {reader.info.backend_pid}\)"):
            migrations.migrate(connection, SCHEMA, migrations=second, patience_s=0)
    assert migrations.applied(connection, SCHEMA) == (1, 1)


def test_whoever_has_the_lock_that_keeps_migrations_apart_is_named_too(no_tables):
    with psycopg.connect(no_tables.database()) as other, connect(no_tables) as connection:
        other.execute("SELECT pg_advisory_lock(%s)", (migrations.MIGRATION_LOCK,))
        with pytest.raises(SchemaInUse, match=rf"server processes {other.info.backend_pid}\)"):
            migrations.migrate(connection, SCHEMA, patience_s=0)


def test_a_dry_run_prints_sql_that_does_the_same_and_changes_nothing(no_tables):
    sql = Application.planned_migration(no_tables)
    with connect(no_tables) as connection:
        assert migrations.applied(connection, SCHEMA) == (0, 0)
        execute_script(connection, sql.encode())
    assert Application.planned_migration(no_tables) == ""
    assert Application.migrate(no_tables) == []
    with Application.open(no_tables) as app:
        app.execute(ending_in(3600))


# ── encodings ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "EUC_CN"])
def test_a_database_that_cannot_hold_all_text_is_refused_everywhere(postgres, encoding):
    name = f"encoded_{uuid4().hex}"
    settings = Settings.load(database_url=in_database(postgres.url, name))
    with psycopg.connect(postgres.url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'")
        try:
            for call in (Application.migrate, Application.open):
                with pytest.raises(UnsafeLog, match=f"{encoding}.*ENCODING 'UTF8'"):
                    call(settings)
            assert any(encoding in diagnosis.says and not diagnosis.ok for diagnosis in examine(settings))
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")

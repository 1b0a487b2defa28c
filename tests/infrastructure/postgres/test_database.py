"""Connections: what every one is set up with, and what happens when the server goes, comes back, or is another."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import psycopg
import pytest
from psycopg import conninfo

from coupon_clock.app import Application
from coupon_clock.infrastructure.event_store.migrations import open_database
from coupon_clock.infrastructure.event_store.safety import UnsafeLog
from coupon_clock.infrastructure.postgres.connection import connect, execute_script
from coupon_clock.infrastructure.postgres.database import Database
from coupon_clock.infrastructure.postgres.errors import (
    DatabaseUnavailable,
    PoolExhausted,
    TimedOut,
    UnsuitableTransactions,
    translate_errors,
)
from coupon_clock.infrastructure.settings import Settings
from coupon_clock.local_servers.postgres import LocalPostgres
from examples import ending_in, increase
from promotion import promote
from waiting import eventually


@pytest.fixture
def own_server(tmp_path) -> Iterator[LocalPostgres]:
    server = LocalPostgres(tmp_path / "postgres")
    server.start()
    Application.migrate(Settings.load(database_url=server.url))
    yield server
    server.kill()


def test_a_server_that_does_not_exist_is_an_error_that_says_what_to_check(tmp_path):
    with pytest.raises(DatabaseUnavailable, match="COUPON_CLOCK_DATABASE_URL"):
        open_database(Settings.load(database_url=f"postgresql://postgres@/postgres?host={tmp_path}"))


def test_a_pool_whose_connections_are_all_in_use_names_the_setting(database_url):
    settings = Settings.load(database_url=database_url, database_connections=2)
    with (
        open_database(settings) as database,
        database.connection(),
        database.connection(),
        pytest.raises(PoolExhausted, match=r"all 2 connections .* COUPON_CLOCK_DATABASE_CONNECTIONS"),
    ):
        database.connection().__enter__()
    with open_database(settings) as database, database.connection(), database.connection():
        pass


def test_more_threads_than_a_slow_postgresql_serves_get_that_sentence_all_alike(database_url):
    settings = Settings.load(database_url=database_url, database_connections=2)
    with open_database(settings) as database, ThreadPoolExecutor(30) as threads:

        def work_slowly() -> None:
            with database.connection() as connection:
                connection.execute("SELECT pg_sleep(1)")

        failures = [each.exception() for each in [threads.submit(work_slowly) for _ in range(30)]]
    assert {type(failure) for failure in failures if failure} == {PoolExhausted}
    assert all("all 2 connections" in str(failure) for failure in failures if failure)


def test_connections_that_a_restarted_server_forgot_are_replaced_unseen(own_server):
    with open_database(Settings.load(database_url=own_server.url)) as pool:
        pool._pool.wait()
        own_server.kill()
        own_server.start()
        for _ in range(5):
            with pool.connection() as connection:
                connection.execute("SELECT 1")


def test_a_pool_whose_server_came_back_as_a_standby_refuses_and_says_why(own_server):
    with open_database(Settings.load(database_url=own_server.url)) as pool:
        pool._pool.wait()
        own_server.stop()
        (own_server.data / "standby.signal").touch()
        own_server.start()
        with pytest.raises(UnsafeLog, match="standby"), pool.connection():
            pass

        promote(own_server)
        eventually(lambda: is_lent(pool))


def is_lent(pool: Database) -> bool:
    try:
        with pool.connection() as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)
    except (UnsafeLog, DatabaseUnavailable):
        return False


def test_a_statement_that_takes_too_long_is_reported_apart_from_a_server_that_is_away(settings):
    with connect(settings) as connection:
        connection.execute("SET statement_timeout = '1ms'")
        with pytest.raises(TimedOut), translate_errors():
            connection.execute("SELECT pg_sleep(10)")


def test_a_statement_past_its_limit_is_cancelled_and_the_connection_can_be_used_again(settings):
    with connect(settings, limit_s=0.2) as connection:
        with pytest.raises(TimedOut, match=r"longer than 0\.2 s"), translate_errors():
            connection.execute("SELECT pg_sleep(10)")
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_plan_of_a_function_made_when_the_log_was_empty_does_not_scan_it_later(live):
    with live.database.connection() as connection:
        for _ in range(10):
            connection.execute("SELECT * FROM coupon_clock.load_streams(ARRAY[gen_random_uuid()], 1, 1)")
        execute_script(
            connection,
            """
            ALTER TABLE coupon_clock.event SET (autovacuum_enabled = off);
            INSERT INTO coupon_clock.event (originator_id, originator_version, topic, state)
            SELECT gen_random_uuid(), 1, 't', 's' FROM generate_series(1, 10000);
            """,
        )
        with connection.transaction():
            connection.execute("SELECT * FROM coupon_clock.load_streams(ARRAY[gen_random_uuid()], 1, 1)")
            scans = "SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relid = 'coupon_clock.event'::regclass"
            assert connection.execute(scans).fetchone() == (0,)


# ── defaults of the role or the database ─────────────────────────────────────────────────────────


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_single_calls_under_another_isolation_are_refused_with_the_command_that_helps(database_url, isolation):
    with Application.open(Settings.load(database_url=database_url)) as app:
        app.execute(template := ending_in(3600))
    given_default(database_url, f"default_transaction_isolation = '{isolation}'")
    with Application.open(Settings.load(database_url=database_url)) as app:
        what_to_do = "ALTER ROLE postgres SET default_transaction_isolation TO 'read committed'"
        for _ in range(3):
            with pytest.raises(UnsuitableTransactions, match=what_to_do):
                app.execute(increase(template.template_id))
        assert type(app.execute_many([ending_in(3600)])[0]) is UnsuitableTransactions
        with pytest.raises(UnsuitableTransactions, match=what_to_do):
            app.runtime.deadlines.handle_due([template.template_id], "reconciler")


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_rebuilds_projectors_and_checks_under_another_isolation_do_their_work_beside_writers(database_url, isolation):
    given_default(database_url, f"default_transaction_isolation = '{isolation}'")
    read_committed = conninfo.make_conninfo(
        database_url, options="-c default_transaction_isolation=read\\ committed -c statement_timeout=0"
    )
    stop = Event()
    with Application.open(Settings.load(database_url=read_committed)) as writer, ThreadPoolExecutor(2) as threads:

        def write() -> None:
            while not stop.is_set():
                writer.execute(increase(writer.execute(ending_in(3600)).template_id))

        with Application.open(Settings.load(database_url=database_url)) as app, app.running(["projector"]):
            writing = [threads.submit(write) for _ in range(2)]
            for _ in range(3):
                app.maintenance.rebuild("coupon_template")
            stop.set()
            assert [each.exception() for each in writing] == [None, None]
            app.page(1, at_least=app.end_of_log())
            assert list(app.maintenance.verify()) == []


def test_a_read_only_role_is_told_what_to_do_and_can_read(database_url):
    with Application.open(Settings.load(database_url=database_url)) as app:
        app.execute(template := ending_in(3600))
    given_default(database_url, "default_transaction_read_only = on")
    with Application.open(Settings.load(database_url=database_url)) as app:
        assert app.is_usable(template.shop_number, template.template_id)
        with pytest.raises(UnsuitableTransactions, match="default_transaction_read_only TO off"):
            app.execute(increase(template.template_id))


def given_default(database_url: str, setting: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {connection.info.dbname} SET {setting}")


def test_no_two_connections_name_a_prepared_statement_alike(settings):
    names = []
    for _ in range(2):
        with connect(settings) as connection:
            for number in range(3):
                connection.execute(f"SELECT {number} AS n, %s::int", (1,), prepare=True)
            names += [name for (name,) in connection.execute("SELECT name FROM pg_prepared_statements")]
    assert len(set(names)) == len(names) == 6

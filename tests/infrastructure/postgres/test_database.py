"""Connections: what every one is set up with, and what happens when the server goes, comes back, or is another."""

from collections.abc import Iterator

import psycopg
import pytest

from coupon_clock.app import Application
from coupon_clock.infrastructure.event_store.migrations import open_database
from coupon_clock.infrastructure.event_store.safety import UnsafeLog
from coupon_clock.infrastructure.postgres.database import connect
from coupon_clock.infrastructure.postgres.errors import DatabaseUnavailable, TimedOut, translate_errors
from coupon_clock.infrastructure.settings import Settings
from coupon_clock.local_servers.postgres import LocalPostgres


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


def test_a_url_that_cannot_be_read_is_an_error_that_says_what_to_check():
    with pytest.raises(DatabaseUnavailable, match="COUPON_CLOCK_DATABASE_URL"):
        connect(Settings.load(database_url="nonsense"))


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

        with psycopg.connect(own_server.url) as connection:
            connection.execute("SELECT pg_promote()")
        with pool.connection() as connection:
            connection.execute("SELECT 1")


def test_a_statement_that_takes_too_long_is_reported_apart_from_a_server_that_is_away(settings):
    with connect(settings) as connection:
        connection.execute("SET statement_timeout = '1ms'")
        with pytest.raises(TimedOut), translate_errors():
            connection.execute("SELECT pg_sleep(10)")


def test_no_plan_scans_a_table_that_has_an_index(settings):
    with connect(settings) as connection:
        plan = connection.execute("EXPLAIN SELECT * FROM coupon_clock.alarm WHERE due_at <= now()").fetchall()
    assert not any("Seq Scan" in line for (line,) in plan)

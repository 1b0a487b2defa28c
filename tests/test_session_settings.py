"""Whatever settings a session has, all comes to the same: they may be those of a pooler's other client, or be set for a
whole database or role."""

import psycopg
import pytest

from coupon_clock.local_servers.postgres import LocalPostgres
from coupon_clock.testing import open_test_application, throw_away_database
from examples import MORNING
from other_settings import (
    HOSTILE_SCHEMA,
    MOST_VALUES,
    all_at_once,
    of_all_new_sessions,
    other_values,
    set_behind_our_back,
)
from walk import walk


@pytest.fixture(scope="module")
def undisturbed(postgres: LocalPostgres) -> list[str]:
    return walked(postgres)


def walked(postgres: LocalPostgres) -> list[str]:
    with throw_away_database(postgres.url) as url:
        return walked_in(url)


def walked_in(database_url: str) -> list[str]:
    with open_test_application(database_url, MORNING) as app:
        return walk(app)


def test_a_walk_comes_to_the_same_each_time(postgres, undisturbed):
    assert walked(postgres) == undisturbed


@pytest.mark.parametrize("number", range(MOST_VALUES))
def test_settings_that_change_behind_our_back_change_nothing(database_url, undisturbed, number):
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(HOSTILE_SCHEMA)
        settings = all_at_once(other_values(connection, ["user"]), number)
    with open_test_application(database_url, MORNING) as app, set_behind_our_back(settings):
        assert walk(app) == undisturbed


@pytest.mark.parametrize("number", range(MOST_VALUES))
@pytest.mark.parametrize("of_whom", ["database", "role"])
def test_settings_of_a_database_or_role_change_nothing(database_url, undisturbed, of_whom, number):
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(HOSTILE_SCHEMA)
        settings = all_at_once(other_values(connection, ["user", "superuser"]), number)
    settings["client_encoding"] = "LATIN1"
    with of_all_new_sessions(database_url, of_whom, settings):
        assert walked_in(database_url) == undisturbed


def test_each_setting_of_a_database_changes_nothing_by_itself_either(postgres, undisturbed, request):
    if not request.config.getoption("--every-setting"):
        pytest.skip("takes minutes: part of make test-long, with --every-setting")
    different = []
    with psycopg.connect(postgres.url) as connection:
        values = other_values(connection, ["user", "superuser"])
    for name, value in [(name, value) for name, several in values.items() for value in several]:
        with throw_away_database(postgres.url) as url, of_all_new_sessions(url, "database", {name: value}):
            different += [] if walked_in(url) == undisturbed else [(name, value)]
    assert different == []


def test_an_encoding_of_the_environment_changes_nothing(database_url, undisturbed, monkeypatch):
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    assert walked_in(database_url) == undisturbed

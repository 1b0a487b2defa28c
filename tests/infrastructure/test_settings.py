"""What the settings take, and what their refusals keep to themselves."""

from traceback import format_exception

import pytest
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from coupon_clock.infrastructure.settings import Settings, UnusableSettings

SECRET = "hunter2"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg", "POSTGRESQL"])
def test_a_url_is_taken_in_the_forms_of_libpq_and_sqlalchemy(scheme):
    settings = Settings.load(database_url=f"{scheme}://shop%40eu:p%25%40%3A%2F@one:5432,[::1]:5433/db?sslmode=require")
    assert conninfo_to_dict(settings.database()) == {
        "user": "shop@eu",
        "password": "p%@:/",
        "host": "one,::1",
        "port": "5432,5433",
        "dbname": "db",
        "sslmode": "require",
    }


def test_pairs_of_keys_and_values_are_taken(monkeypatch):
    monkeypatch.setenv("COUPON_CLOCK_DATABASE_URL", "host=/run/postgresql port=5433 password='p%@: /'\n")
    parameters = conninfo_to_dict(Settings.load().database())
    assert parameters == {"host": "/run/postgresql", "port": "5433", "password": "p%@: /"}


@pytest.mark.parametrize(
    "url",
    [
        SECRET,
        f"mysql://user:{SECRET}@host/db",
        f"postgresql+psycopg2://user:{SECRET}@host/db",
        f"postgresql://user:p@{SECRET}@host/db",
        f"postgresql://user:p?@{SECRET}@host/db",
        f"postgresql://user:p/{SECRET}@host/db",
        f"postgresql://user:1/{SECRET}@host/db",
        f"postgresql://user:%{SECRET}@host/db",
        f"postgresql://user:%00{SECRET}@host/db",
        f"postgresql://user@host:{SECRET}/db",
        f"postgresql://user@host/db?passwd={SECRET}",
        f"host=host passwd={SECRET}",
        f"host=host password=p {SECRET}",
        f"host=host password='{SECRET}",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_in_one_sentence_that_does_not_repeat_it(url):
    refusal = refused(database_url=url)
    assert "COUPON_CLOCK_DATABASE_URL: must be" in refusal
    assert "\n" not in refusal


@pytest.mark.parametrize(
    "given",
    [
        {"databse_url": SECRET},
        {"rocketmq_secret_key": [SECRET]},
        {"database_url": [SECRET]},
        {"rocketmq_secret": SECRET, "database_connections": 0},
    ],
    ids=str,
)
def test_no_secret_and_no_unknown_setting_is_repeated(given):
    assert all(f"COUPON_CLOCK_{name.upper()}: " in refused(**given) for name in given)


def test_other_settings_are_refused_with_what_was_given():
    assert "COUPON_CLOCK_DATABASE_CONNECTIONS: " in refused(database_connections=0)
    assert "(got 0)" in refused(database_connections=0)


NUMBERS = [name for name, field in Settings.model_fields.items() if field.annotation in (int, float)]
UNSHOWN = 10**5_000
"""Python refuses to print it."""
TEXTS = [name for name, field in Settings.model_fields.items() if field.annotation in (str, SecretStr)]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value",
    [float("inf"), float("-inf"), float("nan"), -1, -1e300, 1e300, 10**400, UNSHOWN, 2**63, True, "inf", "1e999", None],
    ids=lambda value: "unshown" if value == UNSHOWN else f"{value!r:.20}",
)
def test_no_number_is_taken_that_no_loop_could_work_with(name, value):
    then_it_is_one_sentence(refused(**{name: value}), name)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_are_refused_from_the_environment_are_one_sentence_too(name, monkeypatch):
    monkeypatch.setenv(f"COUPON_CLOCK_{name.upper()}", "1e300")
    then_it_is_one_sentence(refused(), name)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("value", ["a\0b", "a\x1b[2Jb", "a\u202eb", "a\udc80b", "x" * 10_000, 7, b"\xff", True])
def test_no_text_is_taken_that_a_server_could_not_read(name, value):
    then_it_is_one_sentence(refused(**{name: value}), name)


@pytest.mark.parametrize("name", ["database_schema", "rocketmq_topic", "rocketmq_group"])
@pytest.mark.parametrize("value", ["", " ", "a b", "ä", "x" * 121, 'a"b', "a;b", "a.b"])
def test_a_name_that_its_server_could_not_have_is_refused(name, value):
    then_it_is_one_sentence(refused(**{name: value}), name)


@pytest.mark.parametrize("schema", ["information_schema", "pg_catalog", "pg_toast", "pg_temp", "pg_", "Pg_catalog"])
def test_schemas_of_postgresql_are_refused(schema):
    then_it_is_one_sentence(refused(database_schema=schema), "database_schema")


def test_texts_are_trimmed():
    settings = Settings.load(rocketmq_access_key=" key\n", rocketmq_secret_key="secret\n", rocketmq_topic="topic\n")
    assert (settings.rocketmq_access_key, settings.rocketmq_topic) == ("key", "topic")
    assert settings.rocketmq_secret_key.get_secret_value() == "secret"


def then_it_is_one_sentence(refusal: str, name: str) -> None:
    assert refusal.startswith(f"The settings cannot be used: COUPON_CLOCK_{name.upper()}: ")
    assert refusal.isprintable()
    assert len(refusal) < 600


def test_settings_that_are_made_without_load_repeat_nothing_either():
    with pytest.raises(ValueError, match="databse_url") as error:
        Settings(databse_url=SECRET)  # type: ignore[call-arg]
    assert SECRET not in str(error.value)


def refused(**given: object) -> str:
    with pytest.raises(UnusableSettings) as error:
        Settings.load(**given)
    everything = "".join(format_exception(error.value)) + repr(error.value.__context__) + repr(error.value.__cause__)
    assert SECRET not in everything
    return str(error.value)

"""Names in Chinese, whatever encoding the database, the role or the environment asks clients to use."""

from collections.abc import Callable, Iterator

import psycopg
import pytest
from msgspec.structs import replace
from psycopg.conninfo import make_conninfo

from coupon_clock.app import Application, Settings
from examples import SHOP, ending_in

NAME = "新年满减券 – 歡迎 ¥"


def by_the_database(url: str, _: pytest.MonkeyPatch) -> str:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {connection.info.dbname} SET client_encoding = 'LATIN1'")
    return url


def by_the_role(url: str, _: pytest.MonkeyPatch) -> str:
    with psycopg.connect(url, autocommit=True) as connection:
        in_database = f"IN DATABASE {connection.info.dbname}"
        connection.execute(f"ALTER ROLE postgres {in_database} SET client_encoding = 'EUC_CN'")
    return url


def by_pgclientencoding(url: str, environment: pytest.MonkeyPatch) -> str:
    environment.setenv("PGCLIENTENCODING", "LATIN1")
    return url


def by_pgoptions(url: str, environment: pytest.MonkeyPatch) -> str:
    environment.setenv("PGOPTIONS", "-c client_encoding=LATIN1")
    return url


def by_the_url(url: str, _: pytest.MonkeyPatch) -> str:
    return make_conninfo(url, client_encoding="SQL_ASCII")


def by_options_of_the_url(url: str, _: pytest.MonkeyPatch) -> str:
    return make_conninfo(url, options="-c client_encoding=GBK")


WAYS = (by_the_database, by_the_role, by_pgclientencoding, by_pgoptions, by_the_url, by_options_of_the_url)


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def encoded_otherwise(
    request: pytest.FixtureRequest, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Application]:
    way: Callable[[str, pytest.MonkeyPatch], str] = request.param
    with Application.open(Settings.load(database_url=way(database_url, monkeypatch))) as app:
        yield app


def test_names_in_chinese_pass_through_commands_projectors_rebuilds_and_checks(encoded_otherwise, database_url):
    app, template = encoded_otherwise, replace(ending_in(3600), name=NAME)
    position = app.execute(template).position
    with psycopg.connect(database_url, client_encoding="UTF8") as connection:
        app.execute(other := replace(ending_in(3600), name=NAME), connection=connection)

    with app.running(["projector"]):
        assert app.find(SHOP, template.template_id, at_least=position).name == NAME
        assert app.find(SHOP, other.template_id, at_least=app.end_of_log()).name == NAME
    assert app.history(SHOP, template.template_id)[0].event.name == NAME

    app.maintenance.rebuild("coupon_template")
    assert app.find(SHOP, template.template_id).name == NAME
    assert list(app.maintenance.verify()) == []
    assert stored_name(database_url, template.template_id) == NAME


def test_a_callers_connection_in_another_encoding_stores_what_it_was_given(live, database_url):
    template = replace(ending_in(3600), name=NAME)
    with psycopg.connect(database_url, client_encoding="LATIN1") as connection:
        live.execute(template, connection=connection)
    assert live.history(SHOP, template.template_id)[0].event.name == NAME


def stored_name(url: str, template_id: object) -> object:
    with psycopg.connect(url, client_encoding="UTF8") as connection:
        found = connection.execute(
            "SELECT name FROM coupon_clock.coupon_template WHERE template_id = %s", (template_id,)
        )
        return found.fetchone()[0]  # type: ignore[index]

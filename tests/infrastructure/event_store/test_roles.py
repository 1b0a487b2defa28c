"""The three roles of roles.sql: each can do its part, and nothing else."""

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from command_line import coupon_clock
from coupon_clock.app import Application, MissingRight, Settings
from coupon_clock.infrastructure.postgres.connection import execute_script
from coupon_clock.local_servers.postgres import LocalPostgres
from coupon_clock.maintenance.doctor import examine
from coupon_clock.testing import throw_away_database
from examples import SHOP, ending_in, increase
from waiting import eventually

ROLES = ("owner", "app", "reader")


@pytest.fixture(scope="module")
def own_server(server_folder: Path) -> Iterator[LocalPostgres]:
    """Roles belong to a server, not to a database."""
    server = LocalPostgres(server_folder / "roles")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def as_role(own_server: LocalPostgres) -> Iterator[Callable[[str], Settings]]:
    """Settings of each role, in a database whose tables were there before the roles."""
    with throw_away_database(own_server.url) as url:
        given_roles(url)
        yield lambda role: Settings.load(database_url=make_conninfo(url, user=f"coupon_clock_{role}"))


def given_roles(url: str, schema: str = "coupon_clock") -> None:
    printed = Application.roles_sql(Settings.load(database_url=url, database_schema=schema))
    with psycopg.connect(url, autocommit=True) as superuser:
        superuser.execute(printed.encode())


def test_the_command_line_prints_them_with_the_schema_filled_in():
    printed = coupon_clock("migrate", "--print-roles")
    assert printed.returncode == 0
    assert 'GRANT USAGE ON SCHEMA "coupon_clock" TO coupon_clock_app' in printed.stdout
    assert "{" not in printed.stdout.replace("'{", "")


def test_they_can_be_made_before_the_first_migration_and_again(own_server, as_role):
    with psycopg.connect(own_server.url, autocommit=True) as superuser:
        superuser.execute("CREATE DATABASE empty")
    url = make_conninfo(own_server.url, dbname="empty")
    given_roles(url)
    Application.migrate(Settings.load(database_url=make_conninfo(url, user="coupon_clock_owner")))
    with Application.open(Settings.load(database_url=make_conninfo(url, user="coupon_clock_app"))) as app:
        app.execute(ending_in(3600))
    given_roles(url)
    with psycopg.connect(url) as superuser, pytest.raises(psycopg.errors.InsufficientPrivilege):
        superuser.execute("SET ROLE coupon_clock_app; DELETE FROM coupon_clock.schema_migration")


@pytest.mark.parametrize("migrated_by", ["postgres", "coupon_clock_owner"])
def test_in_public_they_get_nothing_of_what_is_somebody_elses(own_server, migrated_by):
    name = f"shop_of_{migrated_by}"
    with psycopg.connect(own_server.url, autocommit=True) as superuser:
        superuser.execute(f"CREATE DATABASE {name}".encode())
    url = make_conninfo(own_server.url, dbname=name)
    with psycopg.connect(url, autocommit=True) as shop:
        execute_script(
            shop, "CREATE TABLE public.orders (id serial); CREATE FUNCTION public.own() RETURNS int RETURN 1"
        )
        before = shop.execute(NOT_OURS).fetchall()
        given_roles(url, "public")
        Application.migrate(in_public(url, migrated_by))
        given_roles(url, "public")
        assert shop.execute(NOT_OURS).fetchall() == before
    with Application.open(in_public(url, "coupon_clock_app")) as app:
        app.execute(ending_in(3600))
    with Application.open(in_public(url, "coupon_clock_owner")) as owner:
        owner.maintenance.rebuild()
    for role in ROLES:
        with (
            psycopg.connect(make_conninfo(url, user=f"coupon_clock_{role}")) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute("SELECT * FROM public.orders")


NOT_OURS = """
SELECT relname::text, relowner, relacl::text FROM pg_class WHERE relname LIKE 'orders%'
 UNION ALL
SELECT proname::text, proowner, proacl::text FROM pg_proc WHERE proname = 'own'
 UNION ALL
SELECT nspname::text, nspowner, NULL FROM pg_namespace WHERE nspname = 'public'
 ORDER BY 1
"""


def in_public(url: str, role: str) -> Settings:
    return Settings.load(database_url=make_conninfo(url, user=role), database_schema="public")


def test_all_that_a_superuser_had_made_is_the_owners_afterwards(own_server):
    with throw_away_database(own_server.url) as url:
        given_roles(url)
        with psycopg.connect(url) as superuser:
            owners = superuser.execute(
                """
                SELECT relowner::regrole::text FROM pg_class WHERE relnamespace = 'coupon_clock'::regnamespace
                 UNION
                SELECT proowner::regrole::text FROM pg_proc WHERE pronamespace = 'coupon_clock'::regnamespace
                """
            ).fetchall()
    assert owners == [("coupon_clock_owner",)]


def test_an_application_commands_runs_and_reads(as_role):
    with Application.open(as_role("app")) as app, app.running():
        template = ending_in(1)
        app.execute(template)
        eventually(lambda: len(app.history(SHOP, template.template_id)) == 2, within=20)
        app.find(SHOP, template.template_id, at_least=app.end_of_log(), timeout=20)
        app.follow("mails", lambda _: stop.set(), stop=(stop := Event()))
        assert list(app.maintenance.verify()) == []
    assert Application.migrate(as_role("app")) == []


@pytest.mark.parametrize(
    "call",
    [
        lambda app: app.maintenance.rebuild(),
        lambda app: app.maintenance.rebuild("shop_month"),
    ],
)
def test_an_application_cannot_rebuild_and_says_what_it_lacks(as_role, call):
    with Application.open(as_role("app")) as app:
        app.execute(ending_in(3600))
        with pytest.raises(MissingRight, match="migrate --print-roles"):
            call(app)


def test_an_owner_migrates_and_rebuilds(as_role):
    with Application.open(as_role("app")) as app:
        app.execute(template := ending_in(3600))
    assert Application.migrate(as_role("owner")) == []
    with Application.open(as_role("owner")) as owner:
        owner.maintenance.rebuild()
        owner.maintenance.rebuild("shop_month")
        owner.maintenance.repair_alarms()
    with Application.open(as_role("app")) as app, app.running(["projector"]):
        done = app.execute(increase(template.template_id))
        app.find(SHOP, template.template_id, at_least=done.position, timeout=20)


def test_a_reader_reads_verifies_and_diagnoses(as_role):
    with Application.open(as_role("app")) as app:
        app.execute(template := ending_in(3600))
    with Application.open(as_role("reader")) as reader:
        assert reader.is_usable(SHOP, template.template_id)
        assert len(reader.history(SHOP, template.template_id)) == 1
        assert reader.page(SHOP).views == []
        assert reader.maintenance.rejected() == []
        assert list(reader.maintenance.verify_rows()) == []
        assert list(reader.maintenance.verify_alarms()) == []
        assert reader.maintenance.verify_promise().streams == 1
        assert reader.maintenance.dry_run("coupon_template").events == 1
        assert reader.maintenance.status().alarms.in_a_day == 1
        assert "it is due at" in reader.maintenance.explain(template.template_id).why
    parts = {diagnosis.part: diagnosis for diagnosis in examine(as_role("reader"))}
    assert parts["log"].ok
    assert parts["clock"].ok


@pytest.mark.parametrize(
    "write",
    [
        lambda app: app.execute(ending_in(3600)),
        lambda app: app.maintenance.rearm(),
        lambda app: app.maintenance.rebuild(),
        lambda app: app.runtime.deadlines.handle_due([], "reconciler"),
    ],
)
def test_a_reader_writes_nothing_and_is_told_what_it_lacks(as_role, write):
    with Application.open(as_role("app")) as app:
        app.execute(ending_in(3600))
    with Application.open(as_role("reader")) as reader, pytest.raises(MissingRight, match="migrate --print-roles"):
        write(reader)


def test_of_many_commands_of_a_reader_each_says_what_it_lacks(as_role):
    with Application.open(as_role("reader")) as reader:
        assert [type(outcome) for outcome in reader.execute_many([ending_in(3600)] * 2)] == [MissingRight] * 2


@pytest.mark.parametrize("role", ["app", "reader"])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE coupon_clock.event SET topic = 'x'",
        "DELETE FROM coupon_clock.event",
        "TRUNCATE coupon_clock.event",
        "DELETE FROM coupon_clock.schema_migration",
        "INSERT INTO coupon_clock.projection_table VALUES ('coupon_clock.event'::regclass)",
        "DROP TABLE coupon_clock.alarm",
        "CREATE TABLE coupon_clock.own (id integer)",
        "ALTER TABLE coupon_clock.event DISABLE TRIGGER ALL",
    ],
)
def test_neither_application_nor_reader_changes_what_is_the_owners(as_role, role, statement):
    with (
        psycopg.connect(as_role(role).database()) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(statement)


def test_a_stranger_is_told_what_it_lacks(own_server, as_role):
    with psycopg.connect(own_server.url, autocommit=True) as superuser:
        execute_script(superuser, "DROP ROLE IF EXISTS stranger; CREATE ROLE stranger LOGIN")
    url = make_conninfo(as_role("app").database(), user="stranger")
    with pytest.raises(MissingRight, match="coupon_clock"):
        Application.open(Settings.load(database_url=url))
    told = coupon_clock("verify", "alarms", database_url=url)
    assert (told.returncode, told.stderr.count("\n")) == (2, 1)

"""What PostgreSQL says is missing, and the GRANT that helps: each is executed, and then it works."""

import re
from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import make_conninfo

from coupon_clock.app import Application, MemoryBroker, MissingRight, Settings, UnusableTransaction
from examples import SHOP, ending_in


@pytest.fixture
def superuser(database_url: str) -> Iterator[Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def role(superuser: Connection) -> Iterator[str]:
    """Who may do all that an application does, but owns nothing. Its name has to be quoted."""
    name = f"A shop's {uuid4().hex[:8]}"
    for statement in (
        f'CREATE ROLE "{name}" LOGIN',
        f'GRANT USAGE ON SCHEMA coupon_clock TO "{name}"',
        f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA coupon_clock TO "{name}"',
        f'GRANT SELECT ON ALL SEQUENCES IN SCHEMA coupon_clock TO "{name}"',
    ):
        superuser.execute(statement.encode())
    yield name
    superuser.execute(f'DROP OWNED BY "{name}"; DROP ROLE "{name}"'.encode())


@pytest.fixture
def of_role(database_url: str, role: str) -> Settings:
    return Settings.load(database_url=make_conninfo(database_url, user=role))


def command(settings: Settings) -> None:
    with Application.open(settings) as app:
        app.execute(ending_in(3600))


def query(settings: Settings) -> None:
    with Application.open(settings) as app:
        app.page(SHOP)


def verification(settings: Settings) -> None:
    with Application.open(settings) as app:
        list(app.maintenance.verify_rows())


@pytest.mark.parametrize(
    ("revoked", "call", "granted"),
    [
        ("USAGE ON SCHEMA coupon_clock", command, "USAGE ON SCHEMA"),
        ("SELECT ON coupon_clock.event_notification_id_seq", command, "SELECT ON SEQUENCE"),
        ("SELECT ON coupon_clock.event", command, "SELECT ON"),
        ("SELECT ON coupon_clock.schema_migration", query, "SELECT ON"),
        ("INSERT ON coupon_clock.event", command, "INSERT, UPDATE, DELETE ON"),
        ("INSERT ON coupon_clock.alarm", command, "INSERT, UPDATE, DELETE ON"),
        ("SELECT ON coupon_clock.coupon_template", query, "SELECT ON"),
        ("SELECT ON coupon_clock.shop_month", verification, "SELECT ON"),
        ("EXECUTE ON FUNCTION coupon_clock.load_streams", command, "EXECUTE ON FUNCTION"),
    ],
)
def test_a_missing_right_is_one_sentence_with_the_grant_that_helps(superuser, role, of_role, revoked, call, granted):
    superuser.execute(f'REVOKE {revoked} FROM PUBLIC, "{role}"'.encode())
    with pytest.raises(MissingRight, match="permission denied") as refused:
        call(of_role)
    assert "\n" not in str(refused.value)

    (statement,) = re.findall(rf'GRANT {granted} [^ ]+ TO "{role}"', str(refused.value))
    superuser.execute(statement.encode())
    call(of_role)


def test_who_owns_a_table_is_asked_to_change_it(superuser, role, of_role):
    superuser.execute(f'GRANT CREATE ON SCHEMA coupon_clock TO "{role}"'.encode())
    with Application.open(of_role) as app, pytest.raises(MissingRight, match="connect as its owner"):
        app.maintenance.rebuild()


def test_a_migration_without_the_right_to_make_a_schema_says_what_helps(superuser, role, of_role):
    elsewhere = of_role.model_copy(update={"database_schema": "elsewhere"})
    with pytest.raises(MissingRight) as refused:
        Application.migrate(elsewhere)
    (statement,) = re.findall(r"GRANT .* ON DATABASE [^ ]+ TO [^)]+", str(refused.value))
    superuser.execute(statement.encode())
    assert Application.migrate(elsewhere) == [1]


def test_row_security_that_keeps_a_projector_out_is_named(superuser, role, of_role, live):
    live.execute(ending_in(3600))
    superuser.execute(b"ALTER TABLE coupon_clock.coupon_template ENABLE ROW LEVEL SECURITY")
    with Application.open(of_role) as app:
        projector = app.runtime.deadlines.parts(MemoryBroker()).projectors[0]
        with pytest.raises(MissingRight, match=r"row-level security.*BYPASSRLS"):
            projector.run_once()


def test_a_callers_transaction_says_the_grant_too(superuser, role, of_role):
    superuser.execute(f'REVOKE INSERT ON coupon_clock.event FROM "{role}"'.encode())
    with (
        Application.open(of_role) as app,
        psycopg.connect(of_role.database()) as connection,
        pytest.raises(UnusableTransaction, match=r'GRANT INSERT.* ON "coupon_clock"\."event" TO'),
    ):
        app.execute(ending_in(3600), connection=connection)

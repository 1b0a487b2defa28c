"""Makes the tables and functions, by numbered migrations, and opens databases that have them."""

from dataclasses import dataclass
from importlib.resources import files

from psycopg import Connection
from psycopg.rows import TupleRow

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure.event_store.safety import refuse_unsafe, refuse_unsafe_log, refuse_unsafe_server
from coupon_clock.infrastructure.postgres.connection import execute_script
from coupon_clock.infrastructure.postgres.database import Database, Schema, fetch_one
from coupon_clock.infrastructure.settings import Settings

MIGRATIONS: tuple[tuple[str, ...], ...] = (("schema.sql", "functions.sql"),)
"""Number n is MIGRATIONS[n - 1]. One that has been released is never changed."""

MIGRATION_LOCK = 1129271117

LEDGER = """
CREATE TABLE IF NOT EXISTS {schema}.schema_migration (number integer PRIMARY KEY, applied_at timestamptz NOT NULL)
"""
APPLIED = "SELECT coalesce(max(number), 0) FROM {schema}.schema_migration"
NOTE = "INSERT INTO {schema}.schema_migration VALUES (%s, clock_timestamp())"


@dataclass(eq=False)
class SchemaMissing(CouponClockError):
    """The schema {schema} is at migration {found}, this code needs {needed}: run `coupon-clock migrate`."""

    schema: str
    found: int
    needed: int


class SchemaTooNew(SchemaMissing):
    """The schema {schema} is at migration {found}, this code knows {needed}: install a newer coupon-clock."""


def migrate(connection: Connection[TupleRow], schema: Schema) -> list[int]:
    """Brings the schema up to date and returns the numbers applied. Safe when several processes start at once.

    Raises SchemaTooNew, UnsafeLog.
    """
    refuse_unsafe_server(connection)
    with connection.transaction():
        connection.execute("SELECT set_config('statement_timeout', '0', true), set_config('lock_timeout', '0', true)")
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
        if fetch_one(connection, "SELECT to_regnamespace(quote_ident(%s)) IS NULL", schema.name)[0]:
            connection.execute(schema.sql("CREATE SCHEMA {schema}"))
        connection.execute(schema.sql(LEDGER))
        found = applied(connection, schema)
        if found > len(MIGRATIONS):
            raise SchemaTooNew(schema.name, found, len(MIGRATIONS))
        for number in range(found + 1, len(MIGRATIONS) + 1):
            execute_script(connection, schema.sql(script(number)))
            connection.execute(schema.sql(NOTE), (number,))
    return list(range(found + 1, len(MIGRATIONS) + 1))


def script(number: int) -> str:
    """The SQL of one migration, with `{schema}` not filled in yet."""
    folder = files("coupon_clock.infrastructure.event_store")
    return "\n".join(folder.joinpath(name).read_text("utf-8") for name in MIGRATIONS[number - 1])


def open_database(settings: Settings) -> Database:
    """A pool whose connections are refused while what they lead to is unsafe. Raises DatabaseUnavailable, UnsafeLog."""
    return Database.open(settings, refuse_unsafe)


def check(connection: Connection[TupleRow], schema: Schema) -> None:
    """Raises SchemaMissing, SchemaTooNew, or UnsafeLog with what to do."""
    refuse_unsafe_server(connection)
    (exists,) = fetch_one(connection, schema.sql("SELECT to_regclass('{schema}.schema_migration') IS NOT NULL"))
    found = applied(connection, schema) if exists else 0
    if found != len(MIGRATIONS):
        raise (SchemaMissing if found < len(MIGRATIONS) else SchemaTooNew)(schema.name, found, len(MIGRATIONS))
    refuse_unsafe_log(connection, schema)


def applied(connection: Connection[TupleRow], schema: Schema) -> int:
    return int(fetch_one(connection, schema.sql(APPLIED))[0])

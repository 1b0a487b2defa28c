"""Makes the tables and functions, by numbered migrations, and opens databases that have them."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from time import monotonic, sleep
from typing import Literal, NamedTuple

from psycopg import Connection
from psycopg.errors import DuplicateFunction, DuplicateObject, DuplicateTable, LockNotAvailable
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Identifier
from psycopg.sql import Literal as Value

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure.event_store.safety import refuse_unsafe, refuse_unsafe_log, refuse_unsafe_server
from coupon_clock.infrastructure.postgres.connection import execute_script
from coupon_clock.infrastructure.postgres.database import Database, Schema, fetch_one
from coupon_clock.infrastructure.postgres.errors import first_line, translate_errors
from coupon_clock.infrastructure.settings import Settings


class Migration(NamedTuple):
    """`oldest_code`: the lowest number of migrations that code may know and still use a schema with this one."""

    scripts: tuple[str, ...]
    oldest_code: int


MIGRATIONS: tuple[Migration, ...] = (Migration(("schema.sql", "functions.sql"), oldest_code=1),)
"""Number n is MIGRATIONS[n - 1]. One that has been released is never changed."""

MIGRATION_LOCK = 1129271117
PATIENCE_S = 60.0
PAUSE_S = 0.2

# Whoever waits for a lock makes all others wait behind it: not for long, then they go first and it is tried again.
SHORT_WAITS = "SELECT set_config('statement_timeout', '0', true), set_config('lock_timeout', '500ms', true)"

LEDGER = """
CREATE TABLE {schema}.schema_migration (
    number      integer PRIMARY KEY,
    applied_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    oldest_code integer     NOT NULL
)"""
# Asked of the catalogs: to_regclass may remember what it did not find before this session waited for the lock.
EXISTING = """
SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = %(schema)s),
       EXISTS (SELECT FROM pg_tables WHERE schemaname = %(schema)s AND tablename = 'schema_migration')
"""
IS_OURS = """
SELECT count(*) = 3
  FROM pg_attribute
 WHERE attrelid = '{schema}.schema_migration'::regclass AND attname IN ('number', 'applied_at', 'oldest_code')
"""
APPLIED = """
SELECT coalesce(max(number), 0), coalesce((array_agg(oldest_code ORDER BY number DESC))[1], 0)
  FROM {schema}.schema_migration
"""

HOLDERS = """
SELECT coalesce(string_agg(DISTINCT lock.pid::text, ', '), 'none any more')
  FROM pg_locks AS lock
  LEFT JOIN pg_class ON pg_class.oid = lock.relation
 WHERE lock.granted
   AND lock.pid <> pg_backend_pid()
   AND lock.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND (pg_class.relnamespace = to_regnamespace(quote_ident(%s)) OR (lock.locktype = 'advisory' AND lock.objid = %s))
"""


@dataclass(eq=False)
class SchemaMissing(CouponClockError):
    """The schema {schema} is at migration {found}, this code needs {needed}: run `coupon-clock migrate`."""

    schema: str
    found: int
    needed: int


class SchemaTooNew(SchemaMissing):
    """The schema {schema} is at migration {found}, this code knows {needed}: install a newer coupon-clock."""


@dataclass(eq=False)
class ForeignTable(CouponClockError):
    """The schema {schema} has something else of that name, and nothing was changed ({what}): rename it, or set \
COUPON_CLOCK_DATABASE_SCHEMA to a schema without it."""

    schema: str
    what: str


@dataclass(eq=False)
class SchemaInUse(CouponClockError):
    """Transactions held what is in the schema {schema} for too long, and nothing was changed (server processes \
{pids}): end them, then run `coupon-clock migrate` again."""

    schema: str
    pids: str


class Planned(NamedTuple):
    """The numbers of migrations to be applied, and all statements."""

    numbers: list[int]
    statements: list[bytes]


Also = Callable[[Connection[TupleRow]], list[bytes]]
"""Further statements that are needed, after the migrations."""


def nothing_else(_: Connection[TupleRow]) -> list[bytes]:
    return []


def migrate(
    connection: Connection[TupleRow],
    schema: Schema,
    also: Also = nothing_else,
    *,
    migrations: Sequence[Migration] = MIGRATIONS,
    patience_s: float = PATIENCE_S,
) -> list[int]:
    """Brings the schema up to date, all or nothing, and returns the numbers applied.

    Safe when several processes start at once; needs no rights where nothing is to be done.
    Raises SchemaTooNew, ForeignTable, SchemaInUse, UnsafeLog, MissingRight.
    """
    give_up_at = monotonic() + patience_s
    while plan(connection, schema, also, migrations).statements:
        try:
            with translate_errors(LockNotAvailable), taken_names_refused(schema), connection.transaction():
                connection.execute(SHORT_WAITS)
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
                planned = plan(connection, schema, nothing_else, migrations)
                for statement in planned.statements:
                    execute_script(connection, statement)
                for statement in also(connection):
                    execute_script(connection, statement)
                return planned.numbers
        except LockNotAvailable as error:
            if monotonic() > give_up_at:
                (pids,) = fetch_one(connection, HOLDERS, schema.name, MIGRATION_LOCK)
                raise SchemaInUse(schema.name, pids) from error
            sleep(PAUSE_S)
    return []


@contextmanager
def taken_names_refused(schema: Schema) -> Iterator[None]:
    """Turns what PostgreSQL says of a name that something else has into ForeignTable."""
    try:
        yield
    except (DuplicateTable, DuplicateObject, DuplicateFunction) as error:
        raise ForeignTable(schema.name, first_line(error)) from error


def plan(
    connection: Connection[TupleRow],
    schema: Schema,
    also: Also = nothing_else,
    migrations: Sequence[Migration] = MIGRATIONS,
) -> Planned:
    """Returns what `migrate` would execute. Raises as it does."""
    refuse_unsafe_server(connection)
    found, oldest_code = applied(connection, schema)
    if oldest_code > len(migrations):
        raise SchemaTooNew(schema.name, found, len(migrations))
    statements = []
    if found == 0:
        if not existing(connection, schema)[0]:
            statements.append(schema.sql("CREATE SCHEMA {schema}"))
        statements.append(schema.sql(LEDGER))
    numbers = list(range(found + 1, len(migrations) + 1))
    for number in numbers:
        migration = migrations[number - 1]
        note = (
            f"INSERT INTO {{schema}}.schema_migration (number, oldest_code) VALUES ({number}, {migration.oldest_code})"
        )
        statements += [schema.sql(script(migration)), schema.sql(note)]
    return Planned(numbers, statements + also(connection))


def script(migration: Migration) -> str:
    """The SQL of one migration, with `{schema}` not filled in yet."""
    return "\n".join(map(sql_file, migration.scripts))


def names_made(kind: Literal["TABLE", "FUNCTION"]) -> list[str]:
    """Returns the names of all tables or functions that the migrations make."""
    scripts = "".join([LEDGER, *map(script, MIGRATIONS)])
    return sorted(set(re.findall(rf"CREATE {kind} {{schema}}\.(\w+)", scripts)))


def roles(schema: Schema) -> str:
    """Returns SQL that makes an owner, an application and a reader with their rights."""
    names = {"tables": Value(names_made("TABLE")), "functions": Value(names_made("FUNCTION"))}
    return SQL(sql_file("roles.sql")).format(schema=Identifier(schema.name), **names).as_string()


def sql_file(name: str) -> str:
    return files("coupon_clock.infrastructure.event_store").joinpath(name).read_text("utf-8")


def open_database(settings: Settings) -> Database:
    """A pool whose connections are refused while what they lead to is unsafe. Raises DatabaseUnavailable, UnsafeLog."""
    return Database.open(settings, refuse_unsafe)


def check(connection: Connection[TupleRow], schema: Schema, known: int = len(MIGRATIONS)) -> None:
    """Raises SchemaMissing, SchemaTooNew, ForeignTable, or UnsafeLog with what to do.

    A later schema will do where it says so: it is migrated first, then the processes are replaced one by one.
    """
    refuse_unsafe_server(connection)
    found, oldest_code = applied(connection, schema)
    if found < known:
        raise SchemaMissing(schema.name, found, known)
    if oldest_code > known:
        raise SchemaTooNew(schema.name, found, known)
    refuse_unsafe_log(connection, schema)


def applied(connection: Connection[TupleRow], schema: Schema) -> tuple[int, int]:
    """Returns the last migration and the oldest code that may use it, zeros where there is none.

    Raises ForeignTable.
    """
    if not existing(connection, schema)[1]:
        return 0, 0
    if not fetch_one(connection, schema.sql(IS_OURS))[0]:
        raise ForeignTable(schema.name, "its schema_migration has other columns")
    number, oldest_code = fetch_one(connection, schema.sql(APPLIED))
    return number, oldest_code


def existing(connection: Connection[TupleRow], schema: Schema) -> tuple[bool, bool]:
    """Returns whether there is the schema, and whether there is a schema_migration in it."""
    ((schema_exists, ledger_exists),) = connection.execute(EXISTING, {"schema": schema.name})
    return schema_exists, ledger_exists

"""What keeps a log whole: checks of the server, the triggers and the sequence, for each new connection."""

from contextlib import suppress
from dataclasses import dataclass

from psycopg import Connection
from psycopg.errors import InsufficientPrivilege, ReadOnlySqlTransaction
from psycopg.rows import TupleRow

from coupon_clock.domain.errors import CouponClockError
from coupon_clock.infrastructure.postgres.database import Schema, fetch_one

OLDEST_POSTGRESQL = 150_000

SERVER = "SELECT pg_is_in_recovery(), current_setting('server_encoding')"
LOG_EXISTS = """
SELECT to_regclass('{schema}.event') IS NOT NULL AND to_regclass('{schema}.projection_table') IS NOT NULL
"""
ENABLED_TRIGGERS = """
SELECT count(*)
  FROM pg_trigger
 WHERE tgrelid = to_regclass('{schema}.event')
   AND tgname IN ('bound_writer', 'refuse_change')
   AND tgenabled IN ('O', 'A')
"""
HIGHEST = "SELECT coalesce(max(notification_id), 0) FROM {schema}.event"
SEQUENCE = "event_notification_id_seq"
SEQUENCE_STATE = "SELECT last_value, is_called FROM {schema}.{sequence}"
SEQUENCE_CACHE = "SELECT seqcache FROM pg_sequence WHERE seqrelid = to_regclass('{schema}.{sequence}')"
IS_BEYOND_LOG = """
NOT beyond_log AND position > (SELECT last_value - (NOT is_called)::int FROM {schema}.{sequence})
"""
ANY_BEYOND_LOG = f"SELECT EXISTS (SELECT FROM {{schema}}.checkpoint WHERE {IS_BEYOND_LOG})"
MARK_BEYOND_LOG = f"UPDATE {{schema}}.checkpoint SET beyond_log = true WHERE {IS_BEYOND_LOG}"


@dataclass(eq=False)
class UnsafeLog(CouponClockError):
    """Nothing is written to this database until this is repaired: {reason}."""

    reason: str


def refuse_unsafe(connection: Connection[TupleRow], schema: Schema) -> None:
    """For each new connection: it may lead to another server than the last one. Raises UnsafeLog."""
    refuse_unsafe_server(connection)
    if fetch_one(connection, schema.sql(LOG_EXISTS))[0]:
        refuse_unsafe_log(connection, schema)


def refuse_unsafe_server(connection: Connection[TupleRow]) -> None:
    version = connection.info.server_version
    if version < OLDEST_POSTGRESQL:
        raise UnsafeLog(f"PostgreSQL is {version // 10_000}, and 15 is the oldest that works: upgrade it")
    is_standby, encoding = fetch_one(connection, SERVER)
    if encoding != "UTF8":
        raise UnsafeLog(
            f"the database {connection.info.dbname} stores text as {encoding}, and only UTF8 holds all names: make "
            "another with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
        )
    if is_standby:
        raise UnsafeLog("the server is a standby: connect to the primary")


def refuse_unsafe_log(connection: Connection[TupleRow], schema: Schema) -> None:
    refuse_disabled_triggers(connection, schema)
    refuse_unsafe_sequence(connection, schema)
    mark_checkpoints_beyond_log(connection, schema)


def refuse_disabled_triggers(connection: Connection[TupleRow], schema: Schema) -> None:
    """A restore can leave them out or disabled: then a writer may hang for ever, and the log may be changed."""
    if fetch_one(connection, schema.sql(ENABLED_TRIGGERS))[0] != 2:
        raise UnsafeLog(
            f"the log's triggers are missing or disabled: ALTER TABLE {schema.name}.event ENABLE TRIGGER ALL, "
            "or restore them from the dump"
        )


def refuse_unsafe_sequence(connection: Connection[TupleRow], schema: Schema) -> None:
    """A cached or lagging sequence hands out positions below ones that followers have passed."""
    # The log first: it only grows, so a sequence read after it is never behind by chance.
    (highest,) = fetch_one(connection, schema.sql(HIGHEST))
    (last, called) = fetch_one(connection, schema.sql(SEQUENCE_STATE, sequence=SEQUENCE))
    (cache,) = fetch_one(connection, schema.sql(SEQUENCE_CACHE, sequence=SEQUENCE))
    name = f"{schema.name}.{SEQUENCE}"
    if cache != 1:
        raise UnsafeLog(f"the sequence {name} has a cache of {cache}: ALTER SEQUENCE {name} CACHE 1")
    if last < highest or (last == highest and not called):
        raise UnsafeLog(f"the sequence {name} is at {last}, its table at {highest}: SELECT setval('{name}', {highest})")


def mark_checkpoints_beyond_log(connection: Connection[TupleRow], schema: Schema) -> None:
    """What they took in is in the log no more, and they would skip what takes those positions next. Marked before
    anything is appended over this connection, because afterwards it cannot be seen any more."""
    if fetch_one(connection, schema.sql(ANY_BEYOND_LOG, sequence=SEQUENCE))[0]:
        with suppress(InsufficientPrivilege, ReadOnlySqlTransaction):  # who may not write cannot append either
            connection.execute(schema.sql(MARK_BEYOND_LOG, sequence=SEQUENCE))
